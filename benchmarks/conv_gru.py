"""conv_gru beside the plain code of DVD-GAN's repositories (three convolutions a step), beside the best rewrite of that
in plain torch, and torch.compile of it. Only sizes, peers, the least work and the table of rates; how they are checked
and timed is the harness's business."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vgkernels
from benchmarks import measure, table
from benchmarks.harness import Case
from benchmarks.measure import Cost
from benchmarks.trial import Compiled, Under

Goals = dict[str, tuple[float, float]]
LENGTHS = "lengths"  # clips of different lengths
OFF_THE_KINK = 3.0  # of the candidate, see `inputs`
SHARE_ROUNDS = 9
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
        found.append(torch.tensor(clip_lengths(case), device=device))
    return tuple(found)


def clip_lengths(case: Case) -> list[int]:
    """Steps of each clip."""
    steps, batch = case.shape[:2]
    if case.variant != LENGTHS:
        return [steps] * batch
    lengths: list[int] = (torch.linspace(0.25, 1, batch) * steps).long().tolist()
    return lengths


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


def channels_last(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, lengths: Tensor | None = None, **options: Any
) -> Tensor:
    """`rewrite` in the layout that cuDNN likes, conversions included."""
    layout = torch.channels_last if x.dim() == 5 else torch.channels_last_3d
    x = x.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, x.shape[:2])
    weights = (weight.contiguous(memory_format=layout) for weight in (weight_ih, weight_hh))
    return rewrite(x, *weights, bias, lengths, **options)


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
STAGE = "VGKERNELS_CONV_GRU_CUDA"
CUDA_PEERS = {
    "channels_last": channels_last,
    **{stage: Under(ours, {STAGE: stage}) for stage in ("gemm", "persistent")},
}
BASELINE = "eager"


def remark(case: Case, direction: str, tensors: tuple[Tensor, ...]) -> str:
    """Which engine "auto" took: the bits tell. "mixed" where its convolutions took different ones. And, forward, what
    the weights' form costs: to pack it, and to see that the one kept still holds, in percent of a call that packs."""

    def results(algorithm: str) -> list[Tensor]:
        with torch.set_grad_enabled(direction != "fwd"):
            output = ours(*tensors, **case.options, algorithm=algorithm)
        leaves = [t for t in tensors if direction != "fwd" and t.requires_grad]
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output)) if leaves else []
        return [output.detach(), *gradients]

    found = results("auto")
    on_cpu = found[0].device.type == "cpu"
    possible = ("direct", "winograd") if winograd_can(case) and on_cpu else ("direct",)
    same = [name for name in possible if len(possible) == 1 or all(map(torch.equal, found, results(name)))]
    engine = f"engine {same[0] if len(same) == 1 else 'mixed'}"
    if direction != "fwd" or not on_cpu:
        return engine
    shares = weight_shares(case, tensors)
    return f"{engine}; of a call: weights packed {shares['pack']:.2g} %, fingerprint {shares['fingerprint']:.2g} %"


def weight_shares(case: Case, tensors: tuple[Tensor, ...]) -> dict[str, float]:
    """Percent of the time of a forward call that packs its weights: medians of interleaved rounds."""
    x, weight_ih, weight_hh = (t.detach() for t in tensors[:3])
    kernels = torch.ops.vgkernels

    def call() -> object:  # of new tensors, for which nothing is kept
        again = (t.detach() for t in tensors)
        return ours(*again, **case.options, algorithm="auto")

    works = {
        "call": call,
        "pack": lambda: kernels.conv_gru_pack(x, weight_ih, weight_hh, 0),
        "fingerprint": lambda: kernels.conv_gru_fingerprint(weight_ih, weight_hh),
    }

    def sampler(work: Callable[[], object]) -> Callable[[], float]:
        def sample() -> float:
            watch = measure.Stopwatch(x.device)
            watch.mark()
            work()
            watch.mark()
            return watch.laps(1)[0]

        return sample

    with torch.no_grad():
        samples = measure.interleave({name: sampler(work) for name, work in works.items()}, SHARE_ROUNDS)
    times = {name: statistics.median(taken) for name, taken in samples.items()}
    return {name: 100 * times[name] / times["call"] for name in ("pack", "fingerprint")}


def winograd_can(case: Case) -> bool:
    return case.shape[3] == 3 and case.dtype != "float64"


def cost(case: Case, direction: str) -> Cost:
    """Of as many input channels as the state has."""
    _, _, channels, kernel, *size = case.shape
    return least_work(direction, case.dtype, case.shape[0], clip_lengths(case), channels, channels, kernel, size)


def least_work(
    direction: str,
    dtype: str,
    steps: int,
    lengths: Sequence[int],
    inputs: int,
    channels: int,
    kernel: int,
    size: Sequence[int],
) -> Cost:
    """The products that the thriftiest method of conv_gru's accuracy needs, 2 flops each, and each tensor once.

    A plain convolution's flops would be no floor, since Winograd undercuts them; a larger tile than F(4x4, 3x3) would
    undercut these, but rounds more than conv_gru promises. What adds nothing is not counted: taps on the border of
    zeros, the state before the first step, steps past a clip's end, Winograd's transforms. Volumes are counted as
    Winograd along all axes. Backward: the gradients of maps and of weights are as much each, less that of the first
    state. Bytes: forward x, weights in, output out; backward x, output, its gradient, weights in, gradients out."""
    live = sum(lengths)  # steps, of all clips
    of_state = live - sum(length > 0 for length in lengths)  # the first has a state of zeros
    winograd = kernel == 3 and dtype != "float64"
    products = math.prod(axis_products(n, kernel, winograd) for n in size)
    flops = 2.0 * 3 * channels * (live * inputs + of_state * channels) * products
    pixels, weights = math.prod(size), 3 * channels * ((inputs + channels) * kernel ** len(size) + 1)
    x, states = live * pixels * inputs, steps * len(lengths) * pixels * channels
    forward = Cost(x + states + weights, flops)
    backward = Cost(x + 2 * states + steps * len(lengths) * pixels * inputs + 2 * weights, 2 * flops)
    parts = {"fwd": (forward,), "bwd": (backward,), "fwd+bwd": (forward, backward)}[direction]
    itemsize = getattr(torch, dtype).itemsize
    return Cost(sum(part.bytes for part in parts) * itemsize, sum(part.flops for part in parts), dtype)


def axis_products(n: int, kernel: int, winograd: bool) -> float:
    """Of n results along one axis: the taps that lie on the map, or Winograd's 6 for 4 results, whichever is less."""
    inside = sum(min(n - 1, i + kernel // 2) - max(0, i - kernel // 2) + 1 for i in range(n))
    return min(inside, n * math.sqrt(POINTS) / TILE) if winograd else inside


def definition_flops(case: Case, direction: str) -> float:
    """A plain convolution's, border and all: 2 T B S 3C (Cin + C) taps; each of both gradients is as much again."""
    steps, batch, channels, kernel, *size = case.shape
    maps, taps = steps * batch * channels * math.prod(size), kernel ** len(size)
    return {"fwd": 1, "bwd": 2, "fwd+bwd": 3}[direction] * 2.0 * maps * 3 * 2 * channels * taps


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


CUDA_CASES = [
    _case("3x3, T12 B32 C256 16x16", (12, 32, 256, 16, 16), dtype="bfloat16"),
    _case("3x3, T12 B8 C96 64x64", (12, 8, 96, 64, 64), dtype="bfloat16"),
    _case("3x3, T12 B8 C96 64x64", (12, 8, 96, 64, 64)),
]


def rates_markdown(report: Mapping[str, Any]) -> str:
    """GFLOP/s. Effective: the definition's flops by the time taken. True: of them those that the engine does, Winograd
    its products; transforms, and what `checkpoint` does again, left out. "mixed" engines have no true rate here."""
    by_name = {case.name: case for case in CASES}
    cells = [["case", "direction", "engine", "effective", "true", "GEMM", "effective / GEMM", "true / GEMM"]]
    cells.append(["---"] * len(cells[0]))
    for row in report["rows"]:
        if row["op"] != "conv_gru" or row["huge_pages"] or row["ours_ms"] is None or row["direction"] == "bwd":
            continue
        engine, gemm, case = row["notes"]["ours"].split(";")[0].split()[1], row["gemm_GFps"], by_name[row["case"]]
        effective = definition_flops(case, row["direction"]) / (row["ours_ms"] * 1e6)
        share = {"direct": 1.0, "winograd": winograd_share(tuple(case.shape[-2:]))}.get(engine)
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
