"""All public ops as calls, one table: what the tests of hostile use (threads, processes, memory) do again and again.

Decides each call's tensors and options. A call is a function of its tensors and nothing else: same tensors, same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vgkernels

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """`op(**tensors)` gives a tensor, a tuple of them or, in place, nothing."""

    name: str
    small: dict[str, tuple[int, ...]]  # shapes: of a fraction of a millisecond
    large: dict[str, tuple[int, ...]]  # shared out among threads
    op: Callable[..., Any]
    gradients: bool = True  # of all tensors; without, no backward
    in_place: bool = False
    dtypes: tuple[tuple[str, torch.dtype], ...] = ()  # where not float32

    def tensors(self, seed: int = 0, large: bool = False) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        shapes, dtypes = self.large if large else self.small, dict(self.dtypes)
        made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        return {k: t.to(dtypes.get(k, torch.float32)).requires_grad_(self.gradients) for k, t in made.items()}

    def run(self, tensors: Tensors) -> list[Tensor]:
        """All that the call says: its results, their gradients, and what it left in its arguments."""
        result = self.op(**tensors)
        outputs = [] if result is None else [result] if isinstance(result, Tensor) else list(result)
        found = [output.detach() for output in outputs]
        if self.gradients:
            found += torch.autograd.grad(outputs, list(tensors.values()), [_ramp(output) for output in outputs])
        return found + ([tensor.detach().clone() for tensor in tensors.values()] if self.in_place else [])


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.numpy().tobytes() == y.numpy().tobytes()
        for x, y in zip(a, b, strict=True)
    )


def _ramp(output: Tensor) -> Tensor:
    return torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _clip(first: Tensor, second: Tensor) -> None:
    vgkernels.svc_projection_([first, second], 0.9, dim=[0, 1])


def _clip_module(linear: Tensor, convolution: Tensor, norm: Tensor, variance: Tensor) -> None:
    out, channels, k, _ = convolution.shape
    layers = nn.Sequential(
        nn.Conv2d(channels, out, k, bias=False, device="meta"),
        nn.BatchNorm2d(len(norm), device="meta"),
        nn.Linear(*reversed(linear.shape), bias=False, device="meta"),
    )
    for layer, weight in zip(layers, (convolution, norm, linear), strict=True):
        layer.weight = nn.Parameter(weight)  # over the same memory
    layers[1].running_var = variance
    vgkernels.SingularValueClipping(layers, every=1).step()


def _all_kinds() -> tuple[Tensor, ...]:
    kinds = ("gaussian", "orthogonal", "hadamard")
    return tuple(vgkernels.random_projections(12, 8, kind=kind, generator=_generator()) for kind in kinds)


def _gru_module(x: Tensor, h0: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
    module = vgkernels.ConvGRU(x.shape[2], h0.shape[2], bidirectional=True, device="meta")
    return torch.func.functional_call(module, parameters, (x, h0))


def _gru_without_gradients(**tensors: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():  # keeps packed weights
        return vgkernels.conv_gru(**tensors)


def _pyramid(a: Tensor, b: Tensor) -> Tensor:
    options: dict[str, Any] = {"patches_per_image": 4, "patch": 3, "n_projections": 4, "generator": _generator()}
    return vgkernels.sliced_wasserstein_pyramid(a, b, levels=2, **options)


def _warp(channels: int, side: int, blend: bool) -> dict[str, tuple[int, ...]]:
    shapes = {"image": (2, channels, side, side + 1), "flow": (2, 2, side, side)}
    return shapes | ({"mask": (2, 1, side, side), "new": (2, channels, side, side)} if blend else {})


def _gru(batch: int, inputs: int, states: int, side: int) -> dict[str, tuple[int, ...]]:
    weights = {"weight_ih": (3 * states, inputs, 3, 3), "weight_hh": (3 * states, states, 3, 3), "bias": (3 * states,)}
    return {"x": (3, batch, inputs, side, side), "h0": (batch, states, side, side)} | weights


def _bidirectional(batch: int, inputs: int, states: int, side: int) -> dict[str, tuple[int, ...]]:
    one = _gru(batch, inputs, states, side)
    weights = {f"{k}_l0{end}": one[k] for end in ("", "_reverse") for k in ("weight_ih", "weight_hh", "bias")}
    return {"x": one["x"], "h0": (2, *one["h0"])} | weights


def _module(out: int, channels: int, linear: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {"linear": linear, "convolution": (out, channels, 3, 3), "norm": (out,), "variance": (out,)}


def _samples(n: int, m: int, dim: int, directions: int) -> dict[str, tuple[int, ...]]:
    return {"x": (2, n, dim), "y": (2, m, dim), "projections": (directions, dim)}


def _sets(n: int, m: int, dim: int) -> dict[str, tuple[int, ...]]:
    return {"x": (2, n, dim), "y": (2, m, dim)}


CALLS = {
    call.name: call
    for call in (
        Call("flow_warp", _warp(3, 6, False), _warp(20, 48, False), vgkernels.flow_warp),
        Call("flow_warp_blend", _warp(3, 6, True), _warp(20, 48, True), vgkernels.flow_warp_blend),
        Call("svc_projection", {"weight": (6, 4, 3, 3)}, {"weight": (96, 32, 3, 3)}, vgkernels.svc_projection),
        Call(
            "svc_projection_",
            {"first": (5, 7), "second": (4, 6, 3)},
            {"first": (96, 512), "second": (32, 96, 9)},
            _clip,
            gradients=False,
            in_place=True,
        ),
        Call(
            "SingularValueClipping",
            _module(4, 3, (6, 5)),
            _module(64, 64, (128, 512)),
            _clip_module,
            gradients=False,
            in_place=True,
        ),
        Call("sliced_wasserstein", _samples(9, 7, 4, 6), _samples(700, 500, 32, 48), vgkernels.sliced_wasserstein),
        Call(
            "sliced_wasserstein hadamard",
            _sets(9, 7, 4),
            _sets(700, 500, 48),
            lambda x, y: vgkernels.sliced_wasserstein(x, y, kind="hadamard", n_projections=40, generator=_generator()),
        ),
        Call(
            "max_sliced_wasserstein",
            _sets(9, 7, 4),
            _sets(900, 800, 32),
            lambda x, y: vgkernels.max_sliced_wasserstein(x, y, steps=3, generator=_generator()),
        ),
        Call(
            "sort_transport",
            {"source": (9, 4), "target": (7, 4)},
            {"source": (900, 80), "target": (700, 80)},
            vgkernels.sort_transport,
        ),
        Call(
            "stiefel_retraction_",
            {"weight": (2, 6, 4)},
            {"weight": (2, 192, 160)},
            lambda weight: vgkernels.stiefel_retraction_(weight),
            gradients=False,
            in_place=True,
        ),
        Call("random_projections", {}, {}, _all_kinds, gradients=False),
        Call(
            "sliced_wasserstein_pyramid",
            {"a": (3, 1, 8, 8), "b": (2, 1, 8, 8)},
            {"a": (20, 3, 64, 64), "b": (20, 3, 64, 64)},
            _pyramid,
            gradients=False,
        ),
        Call("conv_gru", _gru(1, 3, 4, 5), _gru(2, 16, 32, 16), vgkernels.conv_gru),
        Call(
            "conv_gru without gradients", _gru(1, 3, 4, 5), _gru(2, 16, 32, 16), _gru_without_gradients, gradients=False
        ),
        Call("ConvGRU", _bidirectional(1, 2, 3, 4), _bidirectional(2, 16, 32, 16), _gru_module),
        Call(
            "pack_conv_gru_weights",
            dict.fromkeys(("reset", "update", "candidate"), (4, 7, 3, 3)),
            dict.fromkeys(("reset", "update", "candidate"), (64, 96, 3, 3)),
            vgkernels.pack_conv_gru_weights,
        ),
    )
}
