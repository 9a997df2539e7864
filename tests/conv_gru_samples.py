"""What the tests of conv_gru share: samples, tolerances, bad input, the definition as a plain loop, and the suite.

Decides how large an error may be; what is checked is decided in op_suite.py and the test files.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from op_suite import Bad, OpSuite, Sample
from torch import Tensor

import vgkernels
from vgkernels import _native
from vgkernels._checks import FLOATING

ALGORITHMS = ("auto", "direct", "winograd")
# Absolute, on states of about 1 and a few steps; float64 is rounding alone.
TOLERANCE = {
    torch.float64: {"out": 1e-13, **dict.fromkeys(("x", "h0", "weight_ih", "weight_hh", "bias"), 1e-12)},
    torch.float32: {"out": 5e-6, **dict.fromkeys(("x", "h0", "weight_ih", "weight_hh", "bias"), 5e-5)},
}
LOW_PRECISION_ERROR = 2e-2  # the specification's, relative to the largest
ROUNDED_PRODUCTS_ERROR = 4e-2  # on CUDA, where library convolutions hand the gates 16 bits
REFUSED: Any = (RuntimeError, TypeError, ValueError)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def definition(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    lengths: Tensor | None = None,
    reverse: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, h_T, what the activation was given): DVD-GAN's loop over concatenated channels, clip by clip."""
    channels, steps, clips = weight_hh.shape[1], *x.shape[:2]
    conv = F.conv2d if x.dim() == 5 else F.conv3d
    w_r, w_z, w_n = torch.cat([weight_hh, weight_ih], 1).split(channels)  # over [h; x]
    b_r, b_z, b_n = (None, None, None) if bias is None else bias.split(channels)
    same = {"padding": weight_hh.shape[-1] // 2}
    outputs, last, candidates = [], [], [x.new_ones(1)]
    for b in range(clips):
        h = x.new_zeros(1, channels, *x.shape[3:]) if h0 is None else h0[b : b + 1]
        length = steps if lengths is None else int(lengths[b])
        states = {}
        for t in reversed(range(length)) if reverse else range(length):
            both = torch.cat([h, x[t, b : b + 1]], 1)
            r, z = torch.sigmoid(conv(both, w_r, b_r, **same)), torch.sigmoid(conv(both, w_z, b_z, **same))
            candidate = conv(torch.cat([r * h, x[t, b : b + 1]], 1), w_n, b_n, **same)
            candidates.append(candidate.flatten())
            h = z * h + (1 - z) * (torch.tanh(candidate) if activation == "tanh" else torch.relu(candidate))
            states[t] = h
        frozen = h if not reverse else x.new_zeros(h.shape) if h0 is None else h0[b : b + 1]
        outputs.append(torch.stack([states.get(t, frozen) for t in range(steps)]))
        last.append(h)
    return torch.cat(outputs, 1), torch.cat(last), torch.cat(candidates)


def make(
    name: str,
    steps: int,
    batch: int,
    inputs: int,
    channels: int,
    *extent: int,
    k: int = 3,
    bias: bool = True,
    h0: bool = True,
    seed: int = 0,
    **options: Any,
) -> Sample:
    """Weights that keep states near 1."""
    taps = (k,) * len(extent)
    scale = (k ** len(extent) * channels) ** -0.5
    tensors = {"x": normal(steps, batch, inputs, *extent, seed=seed)}
    if h0:
        tensors["h0"] = normal(batch, channels, *extent, seed=seed + 1)
    tensors["weight_ih"] = scale * normal(3 * channels, inputs, *taps, seed=seed + 2)
    tensors["weight_hh"] = scale * normal(3 * channels, channels, *taps, seed=seed + 3)
    if bias:
        tensors["bias"] = 0.5 * normal(3 * channels, seed=seed + 4)
    return Sample(name, tensors, options)


def smooth(*args: Any, **options: Any) -> Sample:
    """A sample none of whose candidates is so near to ReLU's kink that a difference quotient or rounding crosses it."""
    for seed in itertools.count(step=5):
        sample = make(*args, seed=seed, **options)
        tensors = {"h0": None, **sample.tensors}
        if sample.options.get("activation") == "tanh" or (
            definition(**tensors, **sample.options)[2].abs().min() > 2e-3
        ):
            return sample
    raise AssertionError


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


SAMPLES = [
    smooth("plain", 3, 2, 2, 3, 4, 3),
    smooth("tanh", 3, 2, 2, 3, 3, 4, activation="tanh"),
    smooth("no-bias-no-h0", 3, 2, 3, 2, 4, 3, bias=False, h0=False),
    smooth("tanh-reverse-no-h0", 3, 2, 2, 3, 3, 4, h0=False, activation="tanh", reverse=True),
    smooth("lengths", 3, 4, 2, 2, 3, 3, lengths=lengths(2, 0, 3, 1)),
    smooth("reverse-lengths-no-bias", 3, 3, 2, 2, 3, 3, bias=False, reverse=True, lengths=lengths(2, 3, 0)),
    smooth("volume", 2, 2, 1, 2, 3, 2, 3),
    smooth("volume-tanh-reverse-lengths", 3, 2, 2, 1, 2, 3, 2, activation="tanh", reverse=True, lengths=lengths(3, 2)),
    smooth("pointwise-17-channels", 2, 2, 1, 17, 1, 2, k=1),
    smooth("larger-kernel-than-map", 3, 2, 2, 2, 1, 1, k=5),
    smooth("winograd", 2, 2, 2, 3, 5, 6, algorithm="winograd"),
    smooth("checkpoint-one-step", 1, 2, 2, 3, 3, 3, checkpoint=True),
    smooth("checkpoint-lengths", 3, 2, 2, 2, 3, 3, checkpoint=True, lengths=lengths(3, 1)),
]
EMPTY = [
    make("no-clip", 3, 0, 2, 3, 4, 3),
    make("no-clip-tanh-reverse", 3, 0, 2, 3, 4, 3, h0=False, bias=False, activation="tanh", reverse=True),
    make("no-clip-volume-lengths", 2, 0, 2, 3, 2, 2, 2, lengths=torch.zeros(0, dtype=torch.int64)),
]


def changed(**change: Any) -> Any:
    """For `Bad`: name=function of the tensor there, or name=value of the tensor or option."""

    def change_in_place(tensors: dict[str, Any], options: dict[str, Any]) -> None:
        for k, value in change.items():
            if k in tensors:
                tensors[k] = value(tensors[k]) if callable(value) else value
            else:
                options[k] = value

    return change_in_place


def resized(tensor: Tensor, *extent: int) -> Tensor:
    return tensor.new_zeros((*tensor.shape[: tensor.dim() - len(extent)], *extent))


BAD = [
    Bad("no-tensor", changed(x=3), TypeError, "expected x to be a tensor, got int"),
    Bad("list", changed(h0=Tensor.tolist), TypeError, "expected h0 to be a tensor, got list"),
    Bad("no-weight", changed(weight_ih=None), TypeError, "expected weight_ih to be a tensor, got NoneType"),
    Bad("integer", changed(x=Tensor.int), TypeError, "expected x of dtype float64 or .*, got int32"),
    Bad("complex", changed(weight_hh=Tensor.cfloat), TypeError, "expected weight_hh of dtype .*, got complex64"),
    Bad("sparse", changed(bias=Tensor.to_sparse), TypeError, "expected bias to be a dense tensor"),
    Bad(
        "weight-dtype",
        changed(weight_ih=Tensor.half),
        TypeError,
        "expected weight_ih of x's dtype float32, got float16",
    ),
    Bad("weight-hh-dtype", changed(weight_hh=Tensor.double), TypeError, "expected weight_hh of x's dtype float32, got"),
    Bad("bias-dtype", changed(bias=Tensor.bfloat16), TypeError, "expected bias of x's dtype float32, got bfloat16"),
    Bad("h0-dtype", changed(h0=Tensor.half), TypeError, "expected h0 of dtype float32, got float16"),
    Bad("h0-double", changed(h0=Tensor.double), TypeError, "expected h0 of dtype float32, got float64"),
    Bad("h0-device", changed(h0=lambda t: t.to("meta")), ValueError, "expected h0 on x's device cpu, got meta"),
    Bad("weight-device", changed(weight_hh=lambda t: t.to("meta")), ValueError, "expected weight_hh on x's device cpu"),
    Bad(
        "4-D",
        changed(x=lambda t: t[0]),
        ValueError,
        r"expected x of shape \(T, B, Cin, H, W\) or \(T, B, Cin, D, H, W\), got \(2, 2, 4, 3\)",
    ),
    Bad(
        "volume-of-2-D-weights",
        changed(x=lambda t: t.unsqueeze(3)),
        ValueError,
        r"expected weight_hh of shape \(3C, C, k, k, k\), got \(9, 3, 3, 3\)",
    ),
    Bad(
        "no-rows", changed(x=lambda t: t[..., :0, :]), ValueError, r"expected x with H > 0, got shape \(3, 2, 2, 0, 3\)"
    ),
    Bad("no-columns", changed(x=lambda t: t[..., :0]), ValueError, "expected x with W > 0, got shape"),
    Bad("no-input-channels", changed(x=lambda t: t[:, :, :0]), ValueError, "expected x with Cin > 0, got shape"),
    Bad(
        "no-channels",
        changed(weight_hh=lambda t: t[:0, :0]),
        ValueError,
        "expected weight_hh with C > 0, got shape",
    ),
    Bad(
        "even-kernel",
        changed(weight_hh=lambda t: resized(t, 2, 2), weight_ih=lambda t: resized(t, 2, 2)),
        ValueError,
        r"expected weight_hh of an odd k, got shape \(9, 3, 2, 2\)",
    ),
    Bad(
        "oblong-kernel",
        changed(weight_hh=lambda t: resized(t, 1, 3)),
        ValueError,
        r"expected weight_hh of shape \(3C, C, k, k\) = \(9, 3, 3, 3\), got \(9, 3, 1, 3\)",
    ),
    Bad(
        "two-kernels",
        changed(weight_ih=lambda t: resized(t, 5, 5)),
        ValueError,
        r"expected weight_ih of shape .*5, 5\)",
    ),
    Bad(
        "rows-of-gates",
        changed(weight_hh=lambda t: t[:8]),
        ValueError,
        r"expected weight_hh of shape \(3C, C, k, k\) = \(9, 3, 3, 3\), got \(8, 3, 3, 3\)",
    ),
    Bad(
        "input-channels",
        changed(weight_ih=lambda t: t[:, :1]),
        ValueError,
        r"expected weight_ih of shape \(3C, Cin, k, k\) = \(9, 2, 3, 3\), got \(9, 1, 3, 3\)",
    ),
    Bad("bias-size", changed(bias=lambda t: t[:3]), ValueError, r"expected bias of shape \(3C\) = \(9\), got \(3,\)"),
    Bad(
        "h0-channels",
        changed(h0=lambda t: t[:, :2]),
        ValueError,
        r"expected h0 of shape \(B, C, H, W\) = \(2, 3, 4, 3\), got \(2, 2, 4, 3\)",
    ),
    Bad("h0-batch", changed(h0=lambda t: t[:1]), ValueError, "expected h0 of shape"),
    Bad("h0-size", changed(h0=lambda t: t[..., 1:]), ValueError, "expected h0 of shape"),
    Bad("lengths-list", changed(lengths=[3, 2]), TypeError, "expected lengths to be a tensor, got list"),
    Bad(
        "float-lengths", changed(lengths=torch.ones(2)), TypeError, "expected lengths of dtype int64 or .*, got float32"
    ),
    Bad("lengths-size", changed(lengths=lengths(1, 2, 3)), ValueError, r"expected lengths of shape \(B\) = \(2\), got"),
    Bad("long-lengths", changed(lengths=lengths(3, 4)), ValueError, "expected lengths of 0 to T = 3, got 3 to 4"),
    Bad("negative-lengths", changed(lengths=lengths(3, -1)), ValueError, "expected lengths of 0 to T = 3, got -1 to 3"),
    Bad(
        "activation",
        changed(activation="gelu"),
        ValueError,
        "expected activation to be one of 'relu', 'tanh', got 'gelu'",
    ),
    Bad("reverse", changed(reverse=1), TypeError, "expected reverse to be a bool, got int"),
    Bad("impl", changed(impl="cuda"), ValueError, "expected impl to be one of 'auto', 'native', .*, got 'cuda'"),
]
# What the reference has no argument for; impl="auto" keeps the suite from asking it.
ONLY_OURS = [
    ({"checkpoint": 0}, TypeError, "expected checkpoint to be a bool, got int"),
    ({"algorithm": "fft"}, ValueError, "expected algorithm to be one of 'auto', 'direct', 'winograd', got 'fft'"),
]
BAD += [Bad(str(change), changed(**change, impl="auto"), error, match) for change, error, match in ONLY_OURS]
# Through torch.ops h0 has the accumulation dtype and lengths are int64.
BAD_NATIVE = [
    Bad("integer", changed(x=Tensor.int), REFUSED, "expected x"),
    Bad("4-D", changed(x=lambda t: t[0]), REFUSED, "expected x"),
    Bad("no-rows", changed(x=lambda t: t[..., :0, :]), REFUSED, "expected"),
    Bad("no-input-channels", changed(x=lambda t: t[:, :, :0]), REFUSED, "expected"),
    Bad("weight-dtype", changed(weight_ih=Tensor.half), REFUSED, "expected weight_ih"),
    Bad("weight-hh-dtype", changed(weight_hh=Tensor.double), REFUSED, "expected weight_hh"),
    Bad("even-kernel", changed(weight_hh=lambda t: resized(t, 2, 2)), REFUSED, "expected"),
    Bad("rows-of-gates", changed(weight_hh=lambda t: t[:8]), REFUSED, "expected weight_"),
    Bad("input-channels", changed(weight_ih=lambda t: t[:, :1]), REFUSED, "expected weight_ih"),
    Bad("two-kernels", changed(weight_ih=lambda t: resized(t, 5, 5)), REFUSED, "expected weight_"),
    Bad("bias-size", changed(bias=lambda t: t[:3]), REFUSED, "expected bias"),
    Bad("bias-dtype", changed(bias=Tensor.double), REFUSED, "expected bias"),
    Bad("h0-size", changed(h0=lambda t: t[..., 1:]), REFUSED, "expected h0"),
    Bad("h0-dtype", changed(h0=Tensor.double), REFUSED, "expected h0"),
    Bad("lengths-size", changed(lengths=lengths(1, 2, 3)), REFUSED, "expected lengths"),
    Bad("lengths-dtype", changed(lengths=lengths(1, 2).int()), REFUSED, "expected lengths"),
    Bad("algorithm", changed(algorithm=3), REFUSED, "expected algorithm"),
]


class ConvGRUSuite(OpSuite):
    op = "conv_gru"
    samples = SAMPLES
    empty = EMPTY
    bad = BAD
    bad_native = BAD_NATIVE
    wide = frozenset({"h0"})
    tolerance = TOLERANCE

    def call(self, sample: Sample, **more: Any) -> Tensor:
        return both(*vgkernels.conv_gru(**self.arguments(sample), **more))

    def reference(self, sample: Sample) -> Tensor:
        reference = vgkernels.conv_gru_reference
        return both(*reference(**without_ours(self.arguments(sample), reference)))

    def arguments(self, sample: Sample) -> dict[str, Any]:
        """By name; a bias among the options counts as a constant. Winograd is for the CPU, not for float64."""
        x, options = sample.tensors["x"], dict(sample.options)
        for name, value in options.items():
            if isinstance(value, Tensor):
                options[name] = value.to(x.device, x.dtype if value.is_floating_point() else None)
        if options.get("algorithm") == "winograd" and (
            x.dtype == torch.float64 or (not x.is_meta and _native.runs_cuda_kernels(x.device))
        ):
            del options["algorithm"]
        return {"h0": None, **sample.tensors, **options}

    def native_calls(self, sample: Sample) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        forward = _native.kernels.conv_gru.default
        arguments = op_arguments(self.arguments(sample))
        yield forward, (*arguments[:6], None, *arguments[6:8], True, arguments[8])
        x = sample.tensors["x"]
        good = next(s for s in self.samples if s.name == sample.name)
        good = self.cast(good, x.dtype if x.dtype in FLOATING else torch.float32, x.device)
        base = op_arguments(self.arguments(good))
        output, h_T, gates = forward(*base[:6], None, *base[6:8], True, base[8])
        needs = (True, "h0" in sample.tensors, True, True, "bias" in sample.tensors)
        kept = None if sample.options.get("checkpoint") else gates
        backward = _native.kernels.conv_gru_backward.default
        yield backward, (output.cos(), h_T.cos(), *arguments[:6], output, kept, *arguments[6:], *needs)


def both(output: Tensor, h_T: Tensor) -> Tensor:
    """Both results as one, so that each test has both gradients."""
    return torch.cat([output, h_T.unsqueeze(0).to(output.dtype)])


def op_arguments(arguments: dict[str, Any]) -> tuple[Any, ...]:
    names = ("x", "h0", "weight_ih", "weight_hh", "bias", "lengths")
    algorithm = arguments.get("algorithm", "auto")
    return (
        *(arguments.get(name) for name in names),
        arguments.get("activation") == "tanh",
        arguments.get("reverse", False),
        ALGORITHMS.index(algorithm) if isinstance(algorithm, str) else algorithm,
    )


def without_bias(sample: Sample) -> Sample:
    """Its bias as a constant."""
    tensors = dict(sample.tensors)
    options = {**sample.options, "bias": tensors.pop("bias")} if "bias" in tensors else sample.options
    return replace(sample, tensors=tensors, options=options)


def arguments(sample: Sample, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """By name, each its own tensor."""
    suite = ConvGRUSuite()
    given = suite.arguments(suite.cast(sample, dtype))
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}


def without_ours(given: dict[str, Any], function: Any) -> dict[str, Any]:
    """The reference has no such arguments."""
    names = ("checkpoint", "algorithm") if function is vgkernels.conv_gru_reference else ()
    return {k: v for k, v in given.items() if k not in names}


def close(got: Any, want: Any, atol: float = 1e-13) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def gradients(function: Any, sample: Sample, dtype: torch.dtype, **more: Any) -> dict[str, Tensor]:
    """{"output", "h_T", argument: its gradient} of a loss in both results, the same for every dtype."""
    suite = ConvGRUSuite()
    case = suite.cast(sample, dtype)
    leaves = {k: t.detach().requires_grad_() for k, t in case.tensors.items()}
    output, h_T = function(**suite.arguments(replace(case, tensors=leaves)), **more)[:2]
    loss = sum((each.double() * normal(*each.shape, seed=9).to(each.device)).sum() for each in (output, h_T))
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {"output": output.detach(), "h_T": h_T.detach(), **dict(zip(leaves, found, strict=True))}
