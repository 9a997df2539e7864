"""Decides how tests call the loop over time of conv_gru on CUDA: on CPU tensors, with the emulated kernels, and what it
must compute: autograd through the plain loop in float64. What is tried is decided in test_conv_gru_cuda_driver.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import conv_gru_persistent_emulation
import torch
from native.kernels import load_or_skip

from vgkernels import conv_gru_cuda

ERROR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}  # of the norm
NEEDS = ("x", "h0", "weight_ih", "weight_hh", "bias")


class Kernels:
    """The ops that conv_gru_cuda_ops.cpp defines, on CPU tensors by the emulator; the calls are kept.

    Where _C is built, calls are held to its schemas: what may be None, and that nothing else is written to.
    """

    def __init__(self, native):
        self.native = native
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith("conv_gru_"):
            raise AttributeError(name)

        def call(*arguments):
            assert not torch.is_autocast_enabled("cpu")
            if op := getattr(torch.ops.vgkernels, name, None):
                declared = op.default._schema.arguments
                pairs = list(zip(declared, arguments, strict=True))
                assert all(a is not None or str(d.type).startswith("Optional") for d, a in pairs)
                pairs = [(d, a) for d, a in pairs if isinstance(a, torch.Tensor)]
                left = [(a, bits(a).clone()) for d, a in pairs if not (d.alias_info and d.alias_info.is_write)]
            self.calls.append((name, arguments[1] is not None))
            self.run(name, *arguments)
            assert not op or all(torch.equal(bits(a), before) for a, before in left)

        return call

    def run(self, name, *arguments):
        if "persistent" in name:
            self.run_persistent(*arguments)
        else:
            self.run_step(name.removeprefix("conv_gru_").rstrip("_"), *arguments)

    def run_persistent(self, *arguments):
        native = load_or_skip("conv_gru_persistent_emulated", conv_gru_persistent_emulation.EMULATED)
        native.set_device()
        call, inputs = (native.forward, 3) if len(arguments) == 8 else (native.backward, 5)
        arrays, (tanh, reverse) = [None if a is None else numpy_of(a) for a in arguments[:-2]], arguments[-2:]
        weight, output = (arguments[2], arguments[4]) if inputs == 3 else (arguments[3], arguments[7])
        if inputs == 3:  # xg, h, weight, lengths, output, gates
            arrays = [arrays[0], arrays[2], arrays[3], arrays[1], *arrays[4:]]
        steps, batch, height, width, channels = output.shape
        sizes = [steps, batch, channels, height, width, weight.shape[-1]]
        dtype = str(output.dtype).removeprefix("torch.")
        call(dtype, sizes, arrays[:inputs], arrays[inputs:], tanh, reverse, [0, 0, 0], 0xFF)

    def run_step(self, kernel, operand, weight, *arguments):
        arrays = [a for a in (operand, weight, *arguments) if isinstance(a, torch.Tensor)]
        assert all(a.is_contiguous() for a in arrays)
        lead = arguments[0] if arguments[0] is not None else arguments[4]  # a map, or grad_h
        channels = lead.shape[-1] // (3 if kernel in ("reset_update", "candidate") else 1)
        batch, *size = lead.shape[:-1]
        inputs = operand.shape[-1] if weight is not None else 1
        sizes = [batch, inputs, channels, *[1] * (3 - len(size)), *size]
        sizes += [1 if weight is None else weight.shape[1], int(len(size) == 3)]
        typed = next(a for a in arrays if a.dtype != torch.int64)  # the first one is of the call's dtype
        dtype = str(typed.dtype).removeprefix("torch.")
        converted = [numpy_of(a) if isinstance(a, torch.Tensor) else a for a in (operand, weight, *arguments)]
        getattr(self.native, kernel)(dtype, sizes, *converted)


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def numpy_of(tensor):
    return (bits(tensor) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@dataclass
class Call:
    steps: int = 3
    batch: int = 2
    inputs: int = 4
    channels: int = 5
    size: tuple = (4, 3)
    kernel: int = 3
    dtype: torch.dtype = torch.float64
    h0: bool = True
    bias: bool = True
    lengths: list | None = None
    tanh: bool = False
    reverse: bool = False
    tensors: dict = field(init=False)

    def __post_init__(self):
        make = torch.Generator().manual_seed(1)
        state = torch.float64 if self.dtype == torch.float64 else torch.float32
        taps, (b, c) = [self.kernel] * len(self.size), (self.batch, self.channels)

        def drawn(*shape, dtype=self.dtype, scale=1.0):
            return (torch.randn(shape, generator=make, dtype=torch.float64) * scale).to(dtype)

        scale = (c * self.kernel ** len(self.size)) ** -0.5
        self.tensors = {
            "x": drawn(self.steps, b, self.inputs, *self.size),
            "h0": drawn(b, c, *self.size, dtype=state) if self.h0 else None,
            "weight_ih": drawn(3 * c, self.inputs, *taps, scale=scale),
            "weight_hh": drawn(3 * c, c, *taps, scale=scale),
            "bias": drawn(3 * c) if self.bias else None,
            "lengths": None if self.lengths is None else torch.tensor(self.lengths),
        }
        self.grads = drawn(self.steps, b, c, *self.size), drawn(b, c, *self.size, dtype=state)

    def plain(self, positive=None):
        """output, h_T and the gradients, by autograd through the loop as the paper has it, in float64.

        positive: where the arguments of the ReLU are taken to be so, (T, B, C, *S); rounding takes some across zero.
        """
        t = {name: tensor if tensor is None else tensor.clone() for name, tensor in self.tensors.items()}
        t = {k: v if v is None or k == "lengths" else v.double().requires_grad_() for k, v in t.items()}
        convolve = torch.nn.functional.conv2d if len(self.size) == 2 else torch.nn.functional.conv3d
        act, c = torch.tanh if self.tanh else torch.relu, self.channels
        h = self.grads[1].new_zeros(self.grads[1].shape, dtype=torch.float64) if t["h0"] is None else t["h0"]
        outputs = [None] * self.steps
        for step in reversed(range(self.steps)) if self.reverse else range(self.steps):
            xg = convolve(t["x"][step], t["weight_ih"], t["bias"], padding="same")
            rz = torch.sigmoid(xg[:, : 2 * c] + convolve(h, t["weight_hh"][: 2 * c], padding="same"))
            n = xg[:, 2 * c :] + convolve(rz[:, :c] * h, t["weight_hh"][2 * c :], padding="same")
            n = act(n) if positive is None else n * positive[step]
            new = rz[:, c:] * h + (1 - rz[:, c:]) * n
            if t["lengths"] is not None:
                new = torch.where((step < t["lengths"]).view(-1, *[1] * (len(self.size) + 1)), new, h)
            h = outputs[step] = new
        output = torch.stack(outputs)
        wanted = [t[name] for name in NEEDS if t[name] is not None]
        loss = (output * self.grads[0]).sum() + (h * self.grads[1]).sum()
        found = iter(torch.autograd.grad(loss, wanted))
        return output.detach(), h.detach(), {name: next(found) for name in NEEDS if t[name] is not None}

    def forward(self, kernels, keep=True, **changed):
        tensors = (self.tensors | changed).values()
        options = (None, self.tanh, self.reverse, keep, 0)  # packed first, algorithm last
        return conv_gru_cuda.forward(*tensors, *options, kernels=kernels)

    def backward(self, kernels, output, gates, needs=NEEDS):
        options = (self.tanh, self.reverse, 0, *(name in needs for name in NEEDS))
        arguments = (*self.grads, *self.tensors.values(), output, gates, *options)
        return dict(zip(NEEDS, conv_gru_cuda.backward(*arguments, kernels=kernels), strict=True))

    def needs(self):
        return [name for name in NEEDS if self.tensors[name] is not None]


def close(found, expected, what, call):
    assert found.shape == expected.shape
    error = float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))
    assert error <= ERROR[call.dtype], f"{what}: {error:.2e}"
