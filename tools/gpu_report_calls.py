"""Calls of every op, forward and backward, for what a GPU report runs besides the tests: sanitizers and determinism.

Decides which ops, dtypes, options and sizes; not whether a result is right, which is the test suite's business.
`python -m tools.gpu_report_calls [--device cuda]` runs each once, small, for a sanitizer around it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import vgkernels

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STAGE = "VGKERNELS_CONV_GRU_CUDA"


@dataclass(frozen=True)
class Call:
    """`function(*tensors)` gives a tensor; in place it changes them. The first `differentiated` ask for a gradient.

    `free`: the places, in [result, *gradients], that may differ from run to run unless determinism is asked for."""

    name: str  # begins with the op
    function: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    differentiated: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    in_place: bool = False
    free: frozenset[int] = frozenset()

    def directions(self) -> tuple[str, ...]:
        return ("fwd", "fwd+bwd") if self.differentiated else ("fwd",)

    def inputs(self) -> list[Tensor]:
        """Copies, that nobody else holds."""
        copies = [t.clone(memory_format=torch.preserve_format) for t in self.tensors]
        return [t.requires_grad_() if i < self.differentiated else t for i, t in enumerate(copies)]

    def run(self, direction: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The result (in place: the tensors), and the gradients where `direction` has them."""
        backward = direction != "fwd"
        with environment(self.environment), torch.set_grad_enabled(backward):
            out = self.function(*tensors)
            if self.in_place:
                return [t.clone() for t in tensors]
            if not backward:
                return [out]
            gradient = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
            return [out.detach(), *torch.autograd.grad(out, tensors[: self.differentiated], gradient)]


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


class Maker:
    """Seeded tensors on a device. `large`: sizes of many blocks, for what depends on their order."""

    def __init__(self, device: str, large: bool) -> None:
        self.device, self.large = device, large

    def normal(self, *shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return (scale * torch.randn(shape, generator=rng)).to(self.device, dtype)

    def calls(self) -> Iterator[Call]:
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            yield from self.flow_warp(dtype, name)
            yield from self.svc_projection(dtype, name)
            yield from self.sliced_wasserstein(dtype, name)
            yield from self.conv_gru(dtype, name)

    def flow_warp(self, dtype: torch.dtype, name: str) -> Iterator[Call]:
        shapes = [(2, 64, 128, 192), (4, 3, 256, 320)] if self.large else [(2, 19, 9, 13), (1, 3, 17, 33)]
        modes, paddings = ("bilinear", "nearest"), ("border", "zeros", "reflection")
        for shape, mode, padding in itertools.product(shapes, modes, paddings):
            if self.large and (mode, padding) not in (("bilinear", "border"), ("nearest", "zeros")):
                continue
            for layout in (torch.contiguous_format, torch.channels_last):
                batch, _, *size = shape
                image, new = (self.normal(*shape, dtype=dtype, seed=s).contiguous(memory_format=layout) for s in (0, 1))
                flow = self.normal(batch, 2, *size, dtype=wide(dtype), seed=2, scale=4)
                mask = self.normal(batch, 1, *size, dtype=dtype, seed=3).sigmoid()
                said = f"{name} {'x'.join(map(str, shape))} {mode} {padding} {str(layout).removeprefix('torch.')}"
                options = {"mode": mode, "padding_mode": padding}
                # the gradient of the image may be summed by float atomics
                for function, tensors in (
                    (vgkernels.flow_warp, (image, flow)),
                    (vgkernels.flow_warp_blend, (image, flow, mask, new)),
                ):
                    yield Call(
                        f"{function.__name__} {said}",
                        with_options(function, **options),
                        tensors,
                        len(tensors),
                        free=ONE,
                    )

    def svc_projection(self, dtype: torch.dtype, name: str) -> Iterator[Call]:
        sizes = [(64, 192), (256, 2048), (1, 512)] if self.large else [(19, 61), (24, 24), (40, 9), (1, 7)]
        # singular values on both sides of 1
        weights = [self.normal(m, n, dtype=dtype, seed=m, scale=1 / max(m, n) ** 0.5) for m, n in sizes]

        def in_place(*tensors: Tensor) -> None:
            vgkernels.svc_projection_(tensors)

        yield Call(f"svc_projection_ {name} {len(sizes)} matrices", in_place, tuple(weights), in_place=True)
        for weight in weights[:2]:
            said = "x".join(map(str, weight.shape))
            yield Call(f"svc_projection {name} {said}", vgkernels.svc_projection, (weight,), 1)

    def sliced_wasserstein(self, dtype: torch.dtype, name: str) -> Iterator[Call]:
        n, m, dim, count = (3000, 2100, 64, 96) if self.large else (37, 29, 19, 21)
        x, y, longer = (self.normal(2, k, dim, dtype=dtype, seed=s) for s, k in ((0, n), (1, n), (2, m)))
        theta = torch.nn.functional.normalize(self.normal(count, dim, dtype=wide(dtype), seed=3), dim=-1)
        a, b = (self.normal(k, dtype=wide(dtype), seed=s).softmax(0) for s, k in ((4, n), (5, m)))
        about = {"projections": theta}
        for p in (1.0, 2.0, 3.0):
            function = with_options(vgkernels.sliced_wasserstein, p=p, **about)
            yield Call(f"sliced_wasserstein {name} p={p:g}", function, (x, y), 2)
            yield Call(f"sliced_wasserstein {name} p={p:g} N != M", function, (x, longer), 2)
        weighted = with_options(vgkernels.sliced_wasserstein, x_weights=a, y_weights=b, **about)
        yield Call(f"sliced_wasserstein {name} weighted", weighted, (x, longer), 2)
        towards = with_options(differentiated_directions)
        yield Call(f"sliced_wasserstein {name} to directions", towards, (x[0], y[0], theta), 3)
        k = 20000 if self.device == "cuda" else 300
        many = [self.normal(k, 3, dtype=dtype, seed=s) for s in (6, 7)]
        few = with_options(vgkernels.sliced_wasserstein, projections=theta[:5, :3].contiguous())
        yield Call(f"sliced_wasserstein {name} N={k}", few, tuple(many), 2)

    def conv_gru(self, dtype: torch.dtype, name: str) -> Iterator[Call]:
        batch, channels, size = (4, 64, (24, 32)) if self.large else (2, 32, (5, 6))
        for stage in ("library", "gemm", "persistent"):
            if stage == "library" or dtype in (torch.float16, torch.bfloat16):
                yield self.recurrence(dtype, f"conv_gru {name} {stage}", stage, batch, channels, *size)
        if self.large:
            return
        more: dict[str, dict[str, Any]] = {
            "tanh reverse": {"activation": "tanh", "reverse": True},
            "lengths": {"lengths": torch.tensor([3, 1], device=self.device)},
            "checkpoint": {"checkpoint": True},
        }
        stages = ("library", "gemm", "persistent") if dtype in (torch.float16, torch.bfloat16) else ("library",)
        for (said, options), stage in itertools.product(more.items(), stages):
            yield self.recurrence(dtype, f"conv_gru {name} {stage} {said}", stage, 2, 32, 4, 3, **options)
        # On a CPU torch 2.13's own convolution_backward of bfloat16 volumes now and then gives NaN, from finite inputs
        volumes = () if self.device == "cpu" and dtype == torch.bfloat16 else stages[:2]
        for stage in volumes:
            yield self.recurrence(dtype, f"conv_gru {name} {stage} volume", stage, 2, 8, 2, 3, 4)
        yield self.recurrence(dtype, f"conv_gru {name} library 5 channels", "library", 2, 5, 4, 3)

    def recurrence(
        self, dtype: torch.dtype, name: str, stage: str, batch: int, channels: int, *size: int, **options: Any
    ) -> Call:
        steps, taps = (6 if self.large else 3), (3,) * len(size)
        scale = (3 ** len(size) * channels) ** -0.5
        shapes = [(steps, batch, channels, *size), *[(3 * channels, channels, *taps)] * 2, (3 * channels,)]
        scales = (1, scale, scale, 0.5)
        tensors = [self.normal(*shape, dtype=dtype, seed=i, scale=scales[i]) for i, shape in enumerate(shapes)]

        def function(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
            output: Tensor = vgkernels.conv_gru(x, None, weight_ih, weight_hh, bias, **options)[0]
            return output

        # cuDNN may sum the gradients of weights and input in any order
        return Call(name, function, tuple(tensors), 4, {STAGE: stage}, free=frozenset(range(1, 4)))


ONE = frozenset({1})


def differentiated_directions(x: Tensor, y: Tensor, projections: Tensor) -> Tensor:
    return vgkernels.sliced_wasserstein(x, y, projections=projections)


def with_options(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def call(*tensors: Tensor) -> Any:
        return function(*tensors, **options)

    return call


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def chosen(device: str, large: bool, every: int = 1) -> list[Call]:
    """Of each op and dtype one call in so many; they take turns, so that a run cut short has something of each."""
    found: dict[tuple[str, ...], list[Call]] = {}
    for call in Maker(device, large).calls():
        found.setdefault(tuple(call.name.split()[:2]), []).append(call)
    turns = itertools.zip_longest(*(calls[::every] for calls in found.values()))
    return [call for turn in turns for call in turn if call is not None]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.gpu_report_calls", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--every", type=int, default=1, help="of each op and dtype, one call in so many")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no call after so long")
    given = parser.parse_args(argv)
    wrong, done, end = [], 0, time.monotonic() + given.seconds
    calls = chosen(given.device, large=False, every=given.every)
    for call in itertools.takewhile(lambda _: time.monotonic() < end, calls):
        done += 1
        for direction in call.directions():
            try:
                finite = all(bool(t.isfinite().all()) for t in call.run(direction, call.inputs()))
                wrong += [] if finite else [f"{call.name} {direction}: NaN or Inf"]
            except Exception as problem:
                wrong.append(f"{call.name} {direction}: {type(problem).__name__}: {problem}".splitlines()[0])
    print("\n".join([*wrong, f"figure: {done} of {len(calls)} calls, {len(wrong)} failed"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
