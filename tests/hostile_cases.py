"""Calls of every op drawn at random: good ones of any layout and value, and what makes them bad.

Decides what is drawn. The random source is an argument, so that Hypothesis can shrink what a fuzzer only repeats. What
must come of a call is decided in hostile_fuzz.py.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vgkernels

Arguments = dict[str, Any]
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Draw:
    """One call's common choices."""

    random: Random
    dtype: torch.dtype = torch.float64
    values: str = "normal"
    device: str = "cpu"

    def size(self, most: int = 5, least: int = 1) -> int:
        return self.random.randint(least, most)

    def large(self, small: int) -> int:
        """A size past 2^31 elements, on meta only."""
        return small * self.random.choice((1, 2**20, 2**31, 2**33)) if self.device == "meta" else small

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.device == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        return relaid(self.random, filled(self.random, shape, self.values).to(dtype))

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)


def filled(random: Random, shape: tuple[int, ...], values: str) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(random.getrandbits(31)), dtype=torch.float64)
    if values == "ties":
        made = made.mul(2).round() / 2
    elif values == "zeros":
        made.zero_()
    elif values == "denormal":
        made *= 1e-40
    elif values == "huge":
        made *= random.choice((1e18, 1e30, 1e38, 1e300))
    elif values == "special" and made.numel():
        for _ in range(random.randint(1, 3)):
            made.view(-1)[random.randrange(made.numel())] = random.choice(
                (math.nan, math.inf, -math.inf, -0.0, 5e-324, 2.0**31, 1e30)
            )
    return made


def relaid(random: Random, tensor: Tensor) -> Tensor:
    """The same numbers, laid otherwise in memory."""
    kind = random.choice(("packed", "permuted", "stepped", "offset", "channels_last"))
    if kind == "permuted":
        order = list(range(tensor.dim()))
        random.shuffle(order)
        return tensor.permute(order).contiguous().permute([order.index(d) for d in range(tensor.dim())])
    if kind == "stepped" and tensor.dim():
        wide = tensor.new_zeros([2 * size for size in tensor.shape])[(slice(None, None, 2),) * tensor.dim()]
        return wide.copy_(tensor)
    if kind == "offset":
        return tensor.new_zeros(tensor.numel() + 3)[3:].view(tensor.shape).copy_(tensor)
    if kind == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


# ---- good calls ----


def flow_warp(d: Draw, blend: bool = False) -> Arguments:
    volume = d.random.random() < 0.1
    axes = 3 if volume else 2
    batch, channels = d.large(d.size(2, 0)), d.size(18)
    inside, out = [d.size(6) for _ in range(axes)], [d.size(6, 0) for _ in range(axes)]
    flow_dtype = d.pick(d.dtype, d.dtype, torch.float64, torch.bfloat16)
    tensors = {"image": d.tensor(batch, channels, *inside), "flow": d.tensor(batch, axes, *out, dtype=flow_dtype)}
    if blend:
        tensors |= {"mask": d.tensor(batch, 1, *out), "new": d.tensor(batch, channels, *out)}
    modes = ("bilinear", "nearest") if volume else ("bilinear", "nearest", "bilinear", "nearest", "bicubic")
    return {**tensors, "mode": d.pick(*modes), "padding_mode": d.pick("border", "zeros", "reflection")}


def flow_warp_blend(d: Draw) -> Arguments:
    return flow_warp(d, blend=True)


def svc_projection(d: Draw) -> Arguments:
    shape = [d.large(d.size(6)), *(d.size(5) for _ in range(d.size(3)))]
    bound = d.pick(1.0, 0.3, 1, 2.5, 1e-3)
    return {"weight": d.tensor(*shape), "max_singular_value": bound, "dim": d.random.randrange(-2, 2)}


def svc_projection_(d: Draw) -> Arguments:
    weights = [d.tensor(*(d.size(6) for _ in range(d.size(4, 2)))) for _ in range(d.size(3, 0))]
    patch = d.random.random() < 0.3
    return {
        "weights": weights,
        "max_singular_value": d.pick(1.0, 0.3, 2),
        "dim": 0 if patch else d.pick(0, 1, [d.random.randrange(2) for _ in weights]),
        "bound": "patch" if patch else "reshaped",
        "strides": d.pick(None, 1, 2) if patch else None,
        "nonfinite": d.pick("raise", "skip"),
        "algorithm": d.pick("auto", "auto", "gram", "svd"),
    }


def SingularValueClipping(d: Draw) -> Arguments:  # as the class is called
    out, channels = 2 * d.size(3), 2 * d.size(2)
    layers = nn.Sequential(
        nn.Conv2d(channels, out, d.size(3), groups=d.pick(1, 2), bias=False),
        nn.BatchNorm2d(out),
        nn.LeakyReLU(0.2),
        nn.Linear(out, d.size(5), bias=False),
    ).to(d.dtype)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(filled(d.random, tuple(parameter.shape), d.values))
    return {
        "module": layers.to(d.device),
        "every": d.pick(1, 1, 2),
        "max_singular_value": d.pick(1.0, 0.3),
        "batch_norm": d.pick(True, False),
        "bound": d.pick("reshaped", "patch"),
        "lazy": d.pick(None, None, 0.01),
    }


def samples(d: Draw) -> Arguments:
    batch, dim = [d.large(d.size(2, 1))][: d.size(1, 0)], d.size(6)
    return {"x": d.tensor(*batch, d.size(9), dim), "y": d.tensor(*batch, d.size(9), dim), "p": d.pick(2.0, 1, 1.5, 3.0)}


def sliced_wasserstein(d: Draw) -> Arguments:
    given = samples(d)
    made: Arguments = {**given, "root": d.pick(False, True), "reduction": d.pick("mean", "sum", "none")}
    if d.random.random() < 0.7:
        made["projections"] = d.tensor(d.size(5), given["x"].shape[-1], dtype=d.pick(d.dtype, torch.float32))
    else:
        made |= {"n_projections": d.size(9), "kind": d.pick("gaussian", "orthogonal", "hadamard"), "generator": seed(d)}
    if d.random.random() < 0.2 and d.device == "cpu":
        made["x_weights"] = torch.rand(given["x"].shape[:-1], generator=seed(d), dtype=d.dtype) + 0.1
    return made


def max_sliced_wasserstein(d: Draw) -> Arguments:
    return {**samples(d), "steps": d.size(3), "lr": d.pick(1.0, 0.1, 1), "generator": seed(d)}


def sort_transport(d: Draw) -> Arguments:
    columns = d.large(d.size(4))
    tensors = {"source": d.tensor(d.size(9), columns), "target": d.tensor(d.size(9), columns)}
    return {**tensors, "source_gradient": d.pick("slope", "none")}


def stiefel_retraction_(d: Draw) -> Arguments:
    return {
        "weight": d.tensor(*([d.size(2, 0)][: d.size(1, 0)]), d.size(6), d.size(6)),
        "method": d.pick("polar", "qr"),
    }


def random_projections(d: Draw) -> Arguments:
    kind = d.pick("gaussian", "orthogonal", "hadamard")
    return {"n_projections": d.size(9), "dim": d.size(9), "kind": kind, "dtype": d.dtype, "generator": seed(d)}


def sliced_wasserstein_pyramid(d: Draw) -> Arguments:
    levels, channels = d.size(2), d.size(2)
    sides = [2 ** (levels - 1) * d.size(5, 3) for _ in range(2)]
    sets = {name: d.tensor(d.size(3), channels, *sides) for name in ("images_a", "images_b")}
    counts = {"patches_per_image": d.size(3), "patch": d.size(3), "n_projections": d.size(4)}
    return {**sets, "levels": levels, **counts, "generator": seed(d)}


def conv_gru(d: Draw) -> Arguments:
    axes = 3 if d.random.random() < 0.15 else 2
    steps, batch, inputs, states = d.size(3, 0), d.large(d.size(2, 0)), d.size(3), d.size(5)
    sides, taps = [d.size(6) for _ in range(axes)], [d.pick(1, 3, 3, 5)] * axes
    state = d.tensor(batch, states, *sides) if d.random.random() < 0.7 else None
    known = d.random.random() < 0.2 and d.device == "cpu"
    return {
        "x": d.tensor(steps, batch, inputs, *sides),
        "h0": state,
        "weight_ih": d.tensor(3 * states, inputs, *taps),
        "weight_hh": d.tensor(3 * states, states, *taps),
        "bias": d.tensor(3 * states) if d.random.random() < 0.7 else None,
        "activation": d.pick("relu", "tanh"),
        "lengths": torch.tensor([d.size(steps, 0) for _ in range(batch)], dtype=torch.int64) if known else None,
        "reverse": d.pick(False, True),
        "checkpoint": d.pick(False, False, True),
        "algorithm": d.pick("auto", "direct"),
    }


def ConvGRU(d: Draw) -> Arguments:  # as the class is called
    inputs, states, axes, k = d.size(3), d.size(4), d.pick(2, 2, 2, 3), d.pick(1, 3)
    layers, both, first = d.size(2), d.pick(False, True), d.pick(False, True)
    shape = [d.size(2), d.size(3)] if first else [d.size(3), d.size(2)]
    sides = [d.size(5) for _ in range(axes)]
    return {
        "x": d.tensor(*shape, inputs, *sides),
        "h0": d.tensor(layers * (1 + both), shape[0 if first else 1], states, *sides) if d.pick(True, False) else None,
        "input_channels": inputs,
        "hidden_channels": states,
        "kernel_size": k,
        "num_layers": layers,
        "bidirectional": both,
        "dims": axes,
        "batch_first": first,
        "activation": d.pick("relu", "tanh"),
    }


def pack_conv_gru_weights(d: Draw) -> Arguments:
    states, inputs, taps = d.size(4), d.large(d.size(4)), [d.size(3)] * d.pick(2, 3)
    gates = {gate: d.tensor(states, states + inputs, *taps) for gate in ("reset", "update", "candidate")}
    return {**gates, "order": [d.pick("hx", "xh") for _ in range(3)]}


GOOD: dict[str, Callable[[Draw], Arguments]] = {
    each.__name__: each
    for each in (
        flow_warp, flow_warp_blend, svc_projection, svc_projection_, SingularValueClipping, sliced_wasserstein,
        max_sliced_wasserstein, sort_transport, stiefel_retraction_, random_projections, sliced_wasserstein_pyramid,
        conv_gru, ConvGRU, pack_conv_gru_weights,
    )
}  # fmt: skip


def seed(d: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(d.random.getrandbits(31))


def call(op: str, arguments: Arguments) -> Any:
    """Makes the call; what comes back are the op's results, in a tuple where there are several."""
    if op == "SingularValueClipping":
        return vgkernels.SingularValueClipping(**arguments).step() or None
    if op == "ConvGRU":
        x, h0 = arguments["x"], arguments["h0"]
        dtype = x.dtype if isinstance(x, Tensor) and x.dtype in FLOATING else torch.float32
        torch.manual_seed(0)
        return vgkernels.ConvGRU(**{k: v for k, v in arguments.items() if k not in ("x", "h0")}, dtype=dtype)(x, h0)
    return getattr(vgkernels, op)(**arguments)


# ---- what makes them bad ----

STRANGE_TENSORS: tuple[Callable[[Random, Tensor], Any], ...] = (
    lambda r, t: t.to(r.choice((torch.int64, torch.bool, torch.uint8, torch.complex64, torch.complex128, torch.int8))),
    lambda r, t: t.to(r.choice(FLOATING)),
    lambda r, t: t.to("meta"),
    lambda r, t: t.unsqueeze(r.randint(0, t.dim())),
    lambda r, t: t.flatten(),
    lambda r, t: t.select(r.randrange(t.dim()), 0) if t.dim() and t.numel() else t.sum(),
    lambda r, t: t.narrow(d := r.randrange(t.dim()), 0, r.randint(0, t.shape[d])) if t.dim() else t,
    lambda r, t: torch.cat([t, t], r.randrange(t.dim())) if t.dim() else t,
    lambda r, t: t.transpose(0, -1) if t.dim() else t,
    lambda r, t: t.narrow(r.randrange(t.dim()), 0, 1).expand(t.shape) if t.dim() and t.numel() else t,
    lambda r, t: t.contiguous().as_strided(t.shape, [r.randint(0, 1) for _ in t.shape]) if t.numel() else t,
    lambda r, t: t.new_zeros([r.choice((0, size)) for size in t.shape]),
    lambda r, t: t.to_sparse() if t.device.type == "cpu" else t,
    lambda r, t: torch.nested.nested_tensor([t, t]) if t.device.type == "cpu" else t,
    lambda r, t: nn.Parameter(t) if t.is_floating_point() else t,
    lambda r, t: torch.complex(t, t).imag if t.dtype in (torch.float32, torch.float64) else t,
    lambda r, t: torch.complex(t, t).conj().imag if t.dtype in (torch.float32, torch.float64) else t,  # a negated view
    lambda r, t: filled(r, tuple(t.shape), r.choice(("special", "huge", "denormal"))).to(t.dtype),
    lambda r, t: t.tolist() if t.device.type == "cpu" else None,
    lambda r, t: t.float().numpy() if t.device.type == "cpu" else np.zeros(t.dim()),
    lambda r, t: None,
    lambda r, t: "tensor",
    lambda r, t: 3.5,
    lambda r, t: t.to(torch.float8_e4m3fn) if t.device.type == "cpu" else t,
    lambda r, t: torch.empty(0, dtype=t.dtype),
    lambda r, t: torch.tensor(1.0, dtype=t.dtype),
)
STRANGE_VALUES = (
    None, True, -1, 0, 1, 2, 7, 1.5, math.nan, math.inf, -math.inf, 1e31, 1e-40, 2**70, "", "bilinear", "none", "auto",
    b"auto", [], [1], (1, 2), {}, object, 3 + 4j, np.float32(1), np.int64(1), torch.tensor(2), torch.float64, slice(1),
)  # fmt: skip


def spoil(random: Random, arguments: Arguments) -> Arguments:
    """One to three arguments become something else, or something else's; counts stay small enough to be tried."""
    spoilt = dict(arguments)
    for _ in range(random.randint(1, 3)):
        name = random.choice(list(spoilt))
        spoilt[name] = strange(random, spoilt[name], [v for v in spoilt.values() if isinstance(v, Tensor)])
    return spoilt


def strange(random: Random, value: Any, tensors: list[Tensor]) -> Any:
    is_tensor = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    if is_tensor and random.random() < 0.85:
        if value.is_meta or value.numel() > 10_000:  # of shapes past 2^31 elements only views
            return random.choice((value.unsqueeze(0), value.narrow(0, 0, 0) if value.dim() else value, None))
        if random.random() < 0.1:
            return random.choice(tensors)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            try:
                return random.choice(STRANGE_TENSORS)(random, value.detach())
            except (RuntimeError, TypeError):  # not of this dtype or layout
                return value
    if isinstance(value, list | tuple) and value and random.random() < 0.8:
        changed = list(value)
        place = random.randrange(len(changed))
        changed[place] = strange(random, changed[place], [v for v in changed if isinstance(v, Tensor)])
        return random.choice((changed, changed[1:], changed * 2, tuple(changed)))
    return random.choice(STRANGE_VALUES)
