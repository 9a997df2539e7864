"""conv_gru beside the plain code of DVD-GAN's repositories (three convolutions a step), beside the best rewrite of that
in plain torch, and torch.compile of it. Only sizes, peers, the least work and the table of rates; how they are checked
and timed is the harness's business."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vgkernels
from benchmarks import table
from benchmarks.harness import Case
from benchmarks.measure import Cost
from benchmarks.trial import Compiled

Goals = dict[str, tuple[float, float]]
LENGTHS = "lengths"  # clips of different lengths
OFF_THE_KINK = 3.0  # of the candidate, see `inputs`
TILE, POINTS = 4, 36  # Winograd's F(4x4, 3x3): 36 products for a tile of 16 pixels, in place of 144


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """x, weight_ih, weight_hh, bias, and lengths where they differ; shape is T, B, C (= Cin), kernel, map.

    relu's derivative jumps at 0, where float32 and float64 may fall on different sides without either being wrong. So
    the candidate's bias is far from 0, up for one half of the channels and down for the other: half of the values are
    cut off, as usual, but at each pixel those of the same channels."""
    steps, batch, channels, kernel, *size = case.shape
    rng, dtype = torch.Generator().manual_seed(1), getattr(torch, case.dtype)
    x = torch.randn(steps, batch, channels, *size, generator=rng)
    scale = 0.5 / math.sqrt(2 * channels * kernel ** len(size))
    weights = scale * torch.randn(2, 3 * channels, channels, *[kernel] * len(size), generator=rng)
    bias = 0.5 * torch.randn(3 * channels, generator=rng)
    if case.options["activation"] == "relu":
        bias[2 * channels :] = OFF_THE_KINK * (1 - 2 * (torch.arange(channels) % 2))
    found = [t.to(device, dtype) for t in (x, *weights, bias)]
    if case.variant == LENGTHS:
        found.append((torch.linspace(0.25, 1, batch) * steps).long().to(device))
    return tuple(found)


def ours(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    activation: str,
    checkpoint: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    named = {"activation": activation, "checkpoint": checkpoint, "algorithm": algorithm}
    output, _ = vgkernels.conv_gru(x, None, weight_ih, weight_hh, bias, lengths=lengths, **named)
    return output


def without_checkpoint(*tensors: Tensor, activation: str, checkpoint: bool) -> Tensor:
    """Ours, keeping the gates: what `checkpoint=True` is to be compared with."""
    return ours(*tensors, activation=activation)


def eager(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    activation: str,
    checkpoint: bool = False,
) -> Tensor:
    """The plain code: at each step [h; x] and three convolutions, in the dtype of x throughout."""
    step = functools.partial(convolve, padding=weight_hh.shape[-1] // 2)
    act = getattr(torch, activation)
    w_r, w_z, w_n = (joined if torch.is_grad_enabled() else joined_once)(weight_ih, weight_hh)
    b_r, b_z, b_n = bias.chunk(3)
    h = x.new_zeros(x.shape[1], weight_hh.shape[1], *x.shape[3:])
    states = []
    for t in range(len(x)):
        both = torch.cat([h, x[t]], 1)
        r = torch.sigmoid(step(both, w_r, b_r))
        z = torch.sigmoid(step(both, w_z, b_z))
        n = act(step(torch.cat([r * h, x[t]], 1), w_n, b_n))
        h = frozen(t, lengths, h, z * h + (1 - z) * n)
        states.append(h)
    return torch.stack(states)


def rewrite(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    activation: str,
    checkpoint: bool = False,
) -> Tensor:
    """The best that plain torch does: one convolution of x for all steps, one of h for r and z."""
    step = functools.partial(convolve, padding=weight_hh.shape[-1] // 2)
    act, channels = getattr(torch, activation), weight_hh.shape[1]
    w_rz, w_n = weight_hh.split([2 * channels, channels])
    of_x = step(x.flatten(0, 1), weight_ih, bias).unflatten(0, x.shape[:2])
    h = x.new_zeros(x.shape[1], channels, *x.shape[3:])
    states = []
    for t in range(len(x)):
        x_rz, x_n = of_x[t].split([2 * channels, channels], 1)
        r, z = torch.sigmoid(x_rz + step(h, w_rz)).chunk(2, 1)
        n = act(x_n + step(r * h, w_n))
        h = frozen(t, lengths, h, torch.lerp(n, h, z))
        states.append(h)
    return torch.stack(states)


def convolve(maps: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int) -> Tensor:
    return (F.conv2d if weight.ndim == 4 else F.conv3d)(maps, weight, bias, padding=padding)


def frozen(t: int, lengths: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    """Past its end a clip keeps its state."""
    return new if lengths is None else torch.where((t < lengths).view(-1, *[1] * (new.ndim - 1)), new, old)


def joined(weight_ih: Tensor, weight_hh: Tensor) -> tuple[Tensor, ...]:
    """The plain code's three weights over [h; x]: one copy of the weights a call, and of their gradients."""
    return torch.cat([weight_hh, weight_ih], 1).chunk(3)


joined_once = functools.lru_cache(maxsize=1)(joined)  # inference finds its weights in its own form

truth = eager  # in fp64: nothing of ours judges ours
KEPT = "gates kept"
PEERS = {"eager": eager, "rewrite": rewrite, "compile": Compiled(rewrite), KEPT: without_checkpoint}
BASELINE = "eager"


def remark(case: Case, direction: str, tensors: tuple[Tensor, ...]) -> str:
    """Which engine "auto" took: the bits tell. "mixed" where its convolutions took different ones."""

    def results(algorithm: str) -> list[Tensor]:
        with torch.set_grad_enabled(direction != "fwd"):
            output = ours(*tensors, **case.options, algorithm=algorithm)
        leaves = [t for t in tensors if direction != "fwd" and t.requires_grad]
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output)) if leaves else []
        return [output.detach(), *gradients]

    found = results("auto")
    possible = ("direct", "winograd") if winograd_can(case) and found[0].device.type == "cpu" else ("direct",)
    if len(possible) == 1:
        return "engine direct"
    same = [name for name in possible if all(map(torch.equal, found, results(name)))]
    return f"engine {same[0] if len(same) == 1 else 'mixed'}"


def winograd_can(case: Case) -> bool:
    return case.shape[3] == 3 and case.dtype != "float64"


def cost(case: Case, direction: str) -> Cost:
    """The convolutions as their definition has them, 2 flops a tap, 2 T B S 3C (Cin + C) taps, and each tensor once.

    Backward: the gradients of maps and of weights are as much each. Winograd multiplies less, and may go below this
    floor. Bytes: forward x, weights in, output out; backward x, output, its gradient, weights in, gradients out."""
    steps, batch, channels, kernel, *size = case.shape
    maps, taps = steps * batch * channels * math.prod(size), kernel ** len(size)
    weights = 3 * channels * (2 * channels * taps + 1)
    forward = Cost(2 * maps + weights, 2.0 * maps * 3 * 2 * channels * taps)
    backward = Cost(4 * maps + 2 * weights, 2 * forward.flops)
    parts = {"fwd": (forward,), "bwd": (backward,), "fwd+bwd": (forward, backward)}[direction]
    itemsize = getattr(torch, case.dtype).itemsize
    return Cost(sum(part.bytes for part in parts) * itemsize, sum(part.flops for part in parts), case.dtype)


def winograd_share(size: tuple[int, ...]) -> float:
    """Winograd's products as a share of the definition's, tiles that hang over the map's edge counted whole."""
    height, width = size
    return POINTS * math.ceil(height / TILE) * math.ceil(width / TILE) / (9 * height * width)


def tiny(case: Case) -> Case:
    """Odd sizes, few channels: for --check."""
    steps, batch, _, kernel, *size = case.shape
    return dataclasses.replace(case, shape=(min(steps, 3), min(batch, 2), 5, kernel, *[3, 7, 9][-len(size) :]))


UNROLLED = "not tried: the loop is unrolled, which takes long to compile"
TRAIN = ("fwd+bwd",)


def _case(name: str, shape: tuple[int, ...], goals: Goals | None = None, compiled: bool = False, **more: Any) -> Case:
    """fp32, 3x3, relu, both directions unless `more` says otherwise; the shape is without the kernel's size."""
    kernel, options = more.pop("kernel", 3), {"activation": more.pop("activation", "relu")}
    if more.pop("checkpoint", False):
        options["checkpoint"] = True
    left_out = {} if "checkpoint" in options else {KEPT: ""}
    left_out |= {} if compiled else {"compile": UNROLLED}
    more = {"directions": ("fwd", "fwd+bwd"), "left_out": left_out, **more}
    return Case(name, (*shape[:3], kernel, *shape[3:]), goals=goals or {}, options=options, **more)


_C128, _C64, _LARGE = (12, 2, 128, 16, 16), (12, 2, 64, 32, 32), (6, 2, 64, 64, 64)
_LONG = (12, 2, 64, 64, 64)
_EIGHT: Goals = {"fwd": (2, 3), "fwd+bwd": (2, 3)}
_HALF: Any = {"goals": {"fwd": (1.3, 2), "fwd+bwd": (1.3, 2)}, "dtype": "bfloat16"}

# DVD-GAN's maps (arXiv 1907.06571) at channels that a core can run. Goals: (goal, stretch) against "eager"; everywhere
# else the goal is to be no slower than a peer. `checkpoint` may take 1.4 times the time without it.
CASES = [
    _case("3x3, T12 B2 C128 16x16", _C128, {"fwd": (2.5, 3.5), "fwd+bwd": (2.8, 3.5)}),
    _case("3x3, T12 B2 C64 32x32", _C64, {"fwd": (2.5, 3.5), "fwd+bwd": (2.8, 3.5)}),
    _case("3x3, T6 B2 C64 64x64", _LARGE, {"fwd": (2.5, 3.5), "fwd+bwd": (2.3, 3.5)}, compiled=True),
    _case("3x3, T12 B4 C128 8x8", (12, 4, 128, 8, 8), _EIGHT),
    _case("3x3, T12 B4 C256 8x8", (12, 4, 256, 8, 8), _EIGHT),
    _case("3x3, T12 B4 C256 4x4", (12, 4, 256, 4, 4), {"fwd": (1.15, 1.5), "fwd+bwd": (1.15, 1.5)}),
    _case("3x3, T12 B2 C128 16x16", _C128, **_HALF),
    _case("3x3, T12 B2 C64 32x32", _C64, **_HALF),
    _case("3x3, T6 B2 C64 64x64", _LARGE, **_HALF),
    _case("memory, T12 B2 C64 64x64", _LONG, directions=TRAIN, saved_goal=(0.6, 0.5)),
    _case(
        "memory, checkpoint, T12 B2 C64 64x64",
        _LONG,
        checkpoint=True,
        directions=TRAIN,
        saved_goal=(0.25, 0.2),
        peer_goals={"fwd+bwd": {KEPT: (1 / 1.4, 1)}},
    ),
    _case("tanh, T12 B2 C64 32x32", _C64, activation="tanh"),
    _case("lengths, T12 B4 C64 16x16", (12, 4, 64, 16, 16), variant=LENGTHS),
    _case("5x5, T12 B2 C64 16x16", (12, 2, 64, 16, 16), kernel=5),
    _case("volumes, T6 B2 C32 8x16x16", (6, 2, 32, 8, 16, 16)),
    _case("small, T4 B1 C16 8x8", (4, 1, 16, 8, 8), compiled=True),
]


def rates_markdown(report: Mapping[str, Any]) -> str:
    """GFLOP/s. Effective: the definition's flops by the time taken. True: of them those that the engine does, Winograd
    its products; transforms, and what `checkpoint` does again, left out. "mixed" engines have no true rate here."""
    sizes = {case.name: tuple(case.shape[4:]) for case in CASES}
    cells = [["case", "direction", "engine", "effective", "true", "GEMM", "effective / GEMM", "true / GEMM"]]
    cells.append(["---"] * len(cells[0]))
    for row in report["rows"]:
        if row["op"] != "conv_gru" or row["huge_pages"] or row["ours_ms"] is None or row["direction"] == "bwd":
            continue
        engine, gemm = row["notes"]["ours"].removeprefix("engine "), row["gemm_GFps"]
        effective = row["flops"] / (row["ours_ms"] * 1e6)
        share = {"direct": 1.0, "winograd": winograd_share(sizes[row["case"]][-2:])}.get(engine)
        name = row["case"] + ("" if row["dtype"] == "float32" else f" {row['dtype']}")
        true = ["-", "-"] if share is None else [f"{effective * share:.0f}", f"{effective * share / gemm:.0%}"]
        cells.append([name, row["direction"], engine, f"{effective:.0f}", true[0], f"{gemm:.0f}"])
        cells[-1] += [f"{effective / gemm:.0%}", true[1]]
    return "\n".join(
        [*("| " + " | ".join(line) + " |" for line in cells), "", f"{table.place(report['meta'])}; GFLOP/s."]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.conv_gru", description="The table of rates.")
    parser.add_argument("file", type=Path, metavar="FILE.json", help="a report of python -m benchmarks")
    print(rates_markdown(json.loads(parser.parse_args().file.read_text())))
