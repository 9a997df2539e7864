"""Whether conv_gru's "auto" picks the right engine: `python -m benchmarks.conv_gru_engines`.

Times algorithm="auto", "direct" and "winograd" beside each other, inference and training step, on shapes that are not
among the benchmark's cases, by which the choice could have been tuned. Makes the table of docs/conv_gru.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vgkernels
from benchmarks import measure, table
from benchmarks.conv_gru import least_work
from benchmarks.harness import TOLERANCE
from benchmarks.measure import Cost, Stopwatch
from benchmarks.trial import BATCH_MS, error

CPU = torch.device("cpu")
ENGINES = ("auto", "direct", "winograd")
INFERENCE, TRAINING = "inference", "training step"
MAY_LOSE = 0.05  # of the better engine's time

# (T, B, Cin, C, H, W): few and many channels, maps down to 3x3, odd ones, one clip and many.
SHAPES = (
    (8, 1, 96, 96, 12, 12),
    (16, 4, 64, 64, 6, 6),
    (4, 8, 16, 48, 28, 28),
    (10, 2, 160, 160, 10, 10),
    (24, 1, 32, 32, 20, 20),
    (6, 1, 320, 320, 8, 8),
    (12, 2, 192, 192, 4, 4),
    (48, 2, 64, 64, 8, 8),
    (5, 3, 80, 40, 13, 17),
    (2, 1, 64, 64, 48, 48),
    (16, 8, 128, 128, 4, 4),
    (6, 4, 384, 384, 3, 3),
)
Shape = tuple[int, ...]


def inputs(shape: Shape) -> list[Tensor]:
    """x, weight_ih, weight_hh, bias, all with a gradient."""
    steps, batch, inputs, channels, height, width = shape
    rng = torch.Generator().manual_seed(1)
    sizes = [(steps, batch, inputs, height, width), (3 * channels, inputs, 3, 3), (3 * channels, channels, 3, 3)]
    scales = [1.0, *[(9 * (inputs + channels)) ** -0.5] * 2]
    tensors = [scale * torch.randn(size, generator=rng) for size, scale in zip(sizes, scales, strict=True)]
    return [t.requires_grad_() for t in (*tensors, torch.zeros(3 * channels))]


@dataclasses.dataclass
class Work:
    """One shape in one direction; called with an engine, what it computed."""

    direction: str
    tensors: Sequence[Tensor]  # for inference the same objects at each call, so that packed weights are kept
    grad: Tensor

    def run(self, engine: str) -> list[Tensor]:
        x, weight_ih, weight_hh, bias = self.tensors
        with torch.set_grad_enabled(self.direction == TRAINING):
            output, _ = vgkernels.conv_gru(x, None, weight_ih, weight_hh, bias, algorithm=engine)
            if self.direction == INFERENCE:
                return [output]
            return [output.detach(), *torch.autograd.grad(output, self.tensors, self.grad)]

    def ms(self, engine: str, calls: int) -> float:
        """The mean of `calls` calls, each one's results dropped before the next."""
        watch = Stopwatch(CPU)
        for _ in range(calls):
            watch.mark()
            self.run(engine)
            watch.mark()
        return watch.laps(1)[0]


def works(shape: Shape) -> list[Work]:
    tensors = inputs(shape)
    grad = torch.randn(*shape[:2], shape[3], *shape[4:], generator=torch.Generator().manual_seed(2))
    return [Work(INFERENCE, [t.detach() for t in tensors], grad), Work(TRAINING, tensors, grad)]


def cost(shape: Shape, direction: str) -> Cost:
    steps, batch, inputs, channels, *size = shape
    asked = {INFERENCE: "fwd", TRAINING: "fwd+bwd"}[direction]
    return least_work(asked, "float32", steps, [steps] * batch, inputs, channels, 3, size)


def compared(shape: Shape, work: Work, repeats: int) -> dict[str, Any]:
    """One row. A round's times stand beside each other, so what is compared is the ratio within a round, its median."""
    results = {engine: work.run(engine) for engine in ENGINES}
    off = error(results["winograd"][:1], results["direct"][:1])  # relu's kinks make gradients differ rightly
    bits = [name for name in ENGINES[1:] if all(map(torch.equal, results["auto"], results[name]))]
    warm = max(work.ms(engine, 1) for engine in ENGINES)
    calls = max(1, min(100, int(BATCH_MS["cpu"] / warm)))
    least = cost(shape, work.direction)
    rates = {"copy": measure.copier(least.bytes, CPU), "gemm": measure.multiplier(least.unit, CPU)}
    samples = measure.interleave({**{e: functools.partial(work.ms, e, calls) for e in ENGINES}, **rates}, repeats)
    against = {
        engine: statistics.median(a / b for a, b in zip(samples["auto"], samples[engine], strict=True))
        for engine in ENGINES[1:]
    }
    took = {engine: statistics.median(samples[engine]) for engine in ENGINES}
    copy, gemm = (statistics.median(samples[rate]) for rate in rates)
    floor = measure.floor_ms(least, copy, gemm)
    return {
        "shape": list(shape),
        "direction": work.direction,
        "took": bits[0] if len(bits) == 1 else "mixed",
        "ms": took,
        "quartiles": {engine: measure.quartiles(samples[engine]) for engine in ENGINES},
        "auto_over": against,
        "difference": off,
        "copy_GBps": copy,
        "gemm_GFps": gemm,
        "floor_ms": floor,
        "floor_fraction": floor / took["auto"],
    }


def lost(row: Mapping[str, Any]) -> float:
    """auto / best: against the engine to which it loses more."""
    return float(max(row["auto_over"].values()))


def markdown(report: Mapping[str, Any]) -> str:
    floors = any("floor_ms" in row for row in report["rows"])  # reports of before rows had them have none
    cells = [["T, B, Cin, C, H, W", "direction", "auto takes", *(f"{e} ms" for e in ENGINES), "auto / best"]]
    cells[0] += ["floor ms", "auto's of the floor"] if floors else []
    cells.append(["---"] * len(cells[0]))
    for row in report["rows"]:
        shape = ", ".join(map(str, row["shape"]))
        times = [f"{row['ms'][engine]:.3g}" for engine in ENGINES]
        cells.append([shape, row["direction"], row["took"], *times, f"{lost(row):.2f}"])
        cells[-1] += [f"{row['floor_ms']:.3g}", f"{row['floor_fraction']:.0%}"] if floors else []
    right = sum(lost(row) <= 1 + MAY_LOSE for row in report["rows"])
    said = "met" if right == len(report["rows"]) else "missed"
    about = (
        f"{table.place(report['meta'])}; load {report['meta']['load_before'][0]:.1f} to "
        f"{report['meta']['load_after'][0]:.1f}. auto loses at most {MAY_LOSE:.0%} in {right} of {len(report['rows'])} "
        f"rows: {said}."
    )
    return "\n".join([*("| " + " | ".join(line) + " |" for line in cells), "", about])


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.conv_gru_engines", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="take a report instead of measuring")
    given = parser.parse_args(argv)
    if min(given.threads, given.repeats) < 1:
        parser.error("--threads and --repeats are at least 1")
    return given


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if given.table:
        print(markdown(json.loads(given.table.read_text())))
        return 0
    threads, rows = torch.get_num_threads(), []
    try:
        torch.set_num_threads(given.threads)
        with measure.natively():
            meta = measure.machine(CPU, given.threads)
            for shape in SHAPES:
                rows += [compared(shape, work, given.repeats) for work in works(shape)]
    finally:
        torch.set_num_threads(threads)
    meta["load_after"] = os.getloadavg()
    if given.json:
        table.save(given.json, meta, rows)
    print(markdown({"meta": meta, "rows": rows}))
    return 1 if any(row["difference"] > TOLERANCE["float32"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
