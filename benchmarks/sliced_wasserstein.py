"""sliced_wasserstein beside POT, beside plain torch (matmul, sort, mean), torch.compile of it, and beside numpy's sort.
Only sizes, samples, peers, the least work and the table of the sort alone; timing is the harness's business.

All contenders are handed the same projections, return the same W_p^p, and are differentiated to x and y only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vgkernels
from benchmarks import table
from benchmarks.harness import Case
from benchmarks.measure import Cost
from benchmarks.trial import Compiled
from vgkernels import _native

SEED = 2  # of the directions
GAUSSIAN, HADAMARD, PROJECTED = "gaussian", "hadamard", "projected"  # PROJECTED: x and y are, the sort is timed alone
WEIGHTED = "weighted"


def tell_apart(theta: Tensor, *sides: Tensor) -> None:
    """Rounds, and gives every sample its own first coordinate, so that its projections are exact in float32, of at most
    20 bits after the point, and no two of a side are equal: the last bits count the samples.

    The gradient jumps with the order of the samples. Without this, near ties would be ordered differently in float32
    and float64, equal values by stable sorts and others, and right gradients would look wrong."""
    count_bits = (max(side.shape[-2] for side in sides) - 1).bit_length()
    side_bits = (20 - count_bits) // 3
    theta_bits = 20 - count_bits - side_bits
    theta.copy_(torch.round(theta * 2**theta_bits) / 2**theta_bits)
    theta[:, 0] = 2**-theta_bits
    for side in sides:
        side.copy_(torch.round(side * 2**side_bits) / 2**side_bits)
        side[..., 0] = torch.arange(side.shape[-2]) / 2 ** (20 - theta_bits)


def directions(count: int, dim: int, kind: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(L, D), the same at each call; Hadamard ones are ours to define, what is made of them is not."""
    rng = torch.Generator(device).manual_seed(SEED)
    return vgkernels.random_projections(count, dim, kind=kind, generator=rng, dtype=dtype, device=device)


def segments(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where both quantile functions of n and of m equal samples are constant: (row of x, row of y, share of 1)."""
    ends = torch.unique(torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]))
    return (ends - 1) // m, (ends - 1) // n, ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """x, y and the directions; then segments where N != M, or both sides' weights. One entry has no batch axis."""
    batch, n, m, dim, count = case.shape
    rng, dtype = torch.Generator().manual_seed(1), getattr(torch, case.dtype)
    x, y = torch.randn(batch, n, dim, generator=rng), 0.5 + 1.25 * torch.randn(batch, m, dim, generator=rng)
    found, kind = [t if batch > 1 else t[0] for t in (x, y)], case.options["kind"]
    if kind != PROJECTED:
        found.append(directions(count, dim, kind, device, dtype).cpu())
    if kind == GAUSSIAN:
        tell_apart(found[2], *found[:2])
    if case.variant == WEIGHTED:
        found += [(w := 0.5 + torch.rand(size, generator=rng)) / w.sum() for size in (n, m)]
    elif n != m:
        found += segments(n, m)
    return tuple(t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in found)


def ours(x: Tensor, y: Tensor, projections: Tensor | None = None, *coupling: Tensor, p: float, kind: str) -> Tensor:
    """Hadamard directions are not read: the op makes its own by a fast transform, from the same seed."""
    if projections is None:
        value: Tensor = _native.kernels.sliced_wasserstein(x[None], y[None], None, None, None, p)
        return value[0]
    a, b = coupling if len(coupling) == 2 else (None, None)
    if kind == HADAMARD:
        rng = torch.Generator(x.device).manual_seed(SEED)
        return vgkernels.sliced_wasserstein(x, y, n_projections=len(projections), p=p, kind=kind, generator=rng)
    return vgkernels.sliced_wasserstein(x, y, projections=projections, p=p, x_weights=a, y_weights=b)


def plain(x: Tensor, y: Tensor, projections: Tensor | None = None, *coupling: Tensor, p: float, kind: str) -> Tensor:
    """Matmul, torch.sort, mean; the segments of N != M are known beforehand."""
    s, t = (x, y) if projections is None else (x @ projections.T, y @ projections.T)
    if len(coupling) == 2:
        return weighted(s.T.contiguous(), t.T.contiguous(), *coupling, p).mean()
    s, t = s.sort(-2).values, t.sort(-2).values
    if not coupling:
        return power(s - t, p).mean()
    i, j, share = coupling
    return (power(s[i] - t[j], p) * share[:, None]).sum(-2).mean()


def rows(x: Tensor, y: Tensor, projections: Tensor | None = None, *coupling: Tensor, p: float, kind: str) -> Tensor:
    """`plain` with a direction a row: torch.sort on a GPU is faster along memory."""
    if len(coupling) == 2:
        raise NotImplementedError("with weights `plain` sorts rows as well")
    s, t = (x.mT.contiguous(), y.mT.contiguous()) if projections is None else (projections @ x.mT, projections @ y.mT)
    s, t = s.sort(-1).values, t.sort(-1).values
    if not coupling:
        return power(s - t, p).mean()
    i, j, share = coupling
    return (power(s[..., i] - t[..., j], p) * share).sum(-1).mean()


def weighted(s: Tensor, t: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    """W_p^p of each row of s (L, N), t (L, M) under the weights a (N,), b (M,): segments found row by row."""
    (s, i), (t, j) = s.sort(-1), t.sort(-1)
    s_ends, t_ends = a[i].cumsum(-1), b[j].cumsum(-1)
    ends = torch.cat([s_ends, t_ends], -1).sort(-1).values
    share = ends.diff(prepend=ends.new_zeros(len(ends), 1))
    i, j = (torch.searchsorted(e, ends).clamp(max=e.shape[-1] - 1) for e in (s_ends, t_ends))
    return (power(s.gather(-1, i) - t.gather(-1, j), p) * share).sum(-1)


def power(d: Tensor, p: float) -> Tensor:
    return d * d if p == 2 else d.abs() if p == 1 else d.abs().pow(p)


def pot(x: Tensor, y: Tensor, projections: Tensor | None = None, *coupling: Tensor, p: float, kind: str) -> Tensor:
    """POT returns the root, hence ** p; it has no batches, and needs no segments."""
    import ot  # not needed by any other op

    if projections is None:
        return ot.wasserstein_1d(x, y, p=p).mean()
    weights = coupling if len(coupling) == 2 else (None, None)
    pairs = zip(x, y, strict=True) if x.ndim == 3 else [(x, y)]
    roots = [ot.sliced_wasserstein_distance(u, v, *weights, p=p, projections=projections.T) for u, v in pairs]
    return torch.stack(roots).pow(p).mean()


def numpy(x: Tensor, y: Tensor, projections: Tensor | None = None, *coupling: Tensor, p: float, kind: str) -> Tensor:
    """np.sort of contiguous rows, one a direction; the product is torch's: numpy's BLAS has threads of its own."""
    if x.requires_grad or len(coupling) == 2:
        raise NotImplementedError("numpy has no gradient, and this pipeline no weights")
    given = (x.mT.contiguous(), y.mT.contiguous()) if projections is None else (projections @ x.mT, projections @ y.mT)
    s, t = (np.sort(rows.numpy(), axis=-1) for rows in given)
    if coupling:
        i, j, share = (t.numpy() for t in coupling)
        d = np.abs(s[:, i] - t[:, j])
        return torch.from_numpy(np.asarray((d**p @ share).mean()))
    d = s - t
    return torch.from_numpy(np.asarray((d * d if p == 2 else np.abs(d) ** p).mean()))


truth = plain  # in fp64: nothing of ours judges ours
PEERS = {"pot": pot, "torch": plain, "numpy": numpy, "compile": Compiled(plain)}
CUDA_PEERS = {"rows": rows}
BASELINE = "pot"


def cost(case: Case, direction: str) -> Cost:
    """Matrix products only, and each tensor once; the sort is left out: it has no floor that every method shares.

    Forward: 2 (N + M) D L flops. Gradients to x and y: as many again. Hadamard, a block of K directions: signs and
    folding, 2 D, and K log2 K additions a sample.
    """
    batch, n, m, dim, count = case.shape
    size, passes = getattr(torch, case.dtype).itemsize, 1 if direction == "fwd" else 2
    samples, kind = batch * (n + m), case.options["kind"]
    flops = 2.0 * samples * dim * count
    moved = samples * dim + (count * dim if kind == GAUSSIAN else 0)
    if kind == HADAMARD:
        block = min(1 << dim.bit_length() - 1, 1 << (count - 1).bit_length())
        flops = math.ceil(count / block) * samples * (2 * dim + block * math.log2(block))
    if kind == PROJECTED:
        flops, moved = 0.0, samples * count
    moved += samples * dim * (passes - 1)
    return Cost(moved * size, passes * flops, "float64" if case.dtype == "float64" else "float32")


def tiny(case: Case) -> Case:
    """Odd sizes: for --check."""
    batch, n, m, dim, count = case.shape
    dim, count = (19, 21) if case.options["kind"] != PROJECTED else (21, 21)
    return dataclasses.replace(case, shape=(min(batch, 3), 37, 37 if m == n else 29, dim, count))


def _case(name: str, shape: tuple[int, ...], **more: Any) -> Case:
    """The case in fp32, with p = 2, forward and forward with backward, unless `more` says otherwise. Backward alone
    would flatter ours, which computes its gradients in the forward. `goals`: direction -> peer -> (goal, stretch)."""
    options = {"p": more.pop("p", 2.0), "kind": more.pop("kind", GAUSSIAN)}
    asked = more.pop("goals", {})
    more["goals"] = {direction: peers[BASELINE] for direction, peers in asked.items()}
    others = {direction: {k: v for k, v in peers.items() if k != BASELINE} for direction, peers in asked.items()}
    given = {"directions": ("fwd", "fwd+bwd"), **more}
    return Case(name, shape, options=options, peer_goals=others, differentiated=2, **given)


def _goals(**times: float) -> dict[str, tuple[float, float]]:
    """A goal of no stretch against each peer."""
    return {peer: (goal, goal) for peer, goal in times.items()}


_FORWARD = ("fwd",)
# The sort alone: rows -> columns, and the goal in nanoseconds an element.
SORTS: dict[int, tuple[int, float | None]] = {1024: (512, 1.5), 8192: (512, 3.0), 262144: (16, None)}
SORT_NAME = "sort alone"

# Goals of the issue; everywhere else the goal is to be no slower than a peer. The exact one of 12288 dimensions is to
# reach 90 % of POT time / GEMM time: it may take GEMM time / 0.9, as a share of the floor 90 %. That floor's GEMM is
# the harness's square one, not the op's own product.
CASES = [
    _case(
        "N1024 D128 L512",
        (1, 1024, 1024, 128, 512),
        goals={"fwd": _goals(pot=65, torch=25, numpy=2.5), "fwd+bwd": _goals(pot=30, torch=12)},
    ),
    _case(
        "N8192 D147 L512",  # Progressive GAN's patches
        (1, 8192, 8192, 147, 512),
        goals={"fwd": _goals(pot=130, torch=30), "fwd+bwd": _goals(pot=60, torch=12)},
    ),
    _case(
        "N4096 D768 L512",
        (1, 4096, 4096, 768, 512),
        goals={"fwd": _goals(pot=40, torch=10), "fwd+bwd": _goals(pot=20, torch=7)},
    ),
    _case(
        "N64 D128 L128",  # SWGAN's batch
        (1, 64, 64, 128, 128),
        goals={"fwd": {"pot": (22, 32), "torch": (8, 8)}, "fwd+bwd": _goals(pot=12, torch=5)},
    ),
    _case("N1024 D12288 L512", (1, 1024, 1024, 12288, 512), directions=_FORWARD, floor_goal=0.9),
    _case(
        "N1024 D12288 L512 hadamard",
        (1, 1024, 1024, 12288, 512),
        kind=HADAMARD,
        directions=_FORWARD,
        goals={"fwd": _goals(pot=15)},
    ),
    _case("N1024 M768 D128 L512", (1, 1024, 768, 128, 512), goals={"fwd": _goals(pot=60)}),
    _case("N1024 M768 D128 L512 weighted", (1, 1024, 768, 128, 512), variant=WEIGHTED),
    _case("N1024 D128 L512 p1", (1, 1024, 1024, 128, 512), p=1.0),
    _case("N1024 D128 L512 p3", (1, 1024, 1024, 128, 512), p=3.0),
    _case("N1024 D128 L512", (1, 1024, 1024, 128, 512), dtype="float64"),
    _case("B16 N256 D64 L128", (16, 256, 256, 64, 128)),
    _case("N65536 D32 L64", (1, 65536, 65536, 32, 64)),
    *(
        _case(f"{SORT_NAME}, {n} x {count}", (1, n, n, count, count), kind=PROJECTED, directions=_FORWARD)
        for n, (count, _) in SORTS.items()
    ),
]


CUDA_CASES = [
    _case("B16 N4096 D128 L512", (16, 4096, 4096, 128, 512)),
    _case("N65536 D128 L512", (1, 65536, 65536, 128, 512)),
    _case("values only, 4096 x 1024", (1, 4096, 4096, 1024, 1024), kind=PROJECTED, directions=_FORWARD),
]


def sort_markdown(report: Mapping[str, Any]) -> str:
    """Nanoseconds an element of the sort alone, distance included: two arrays of rows x columns are sorted.

    The last column is what the min and max of a bitonic network of N rows would take at the rate of the run's GEMM, one
    of them for each multiply-add: log2 N (log2 N + 1) / 2 an element."""
    rows = [row for row in report["rows"] if row["case"].startswith(SORT_NAME)]
    peers = list(dict.fromkeys(peer for row in rows for peer in row["peers"]))
    cells = [["rows x columns", "ours", *peers, "goal", "network at the GEMM's rate"]]
    cells.append(["---"] * len(cells[0]))
    for row in rows:
        n = int(row["case"].split()[2])
        count, goal = SORTS[n]
        times = {who: ms * 1e6 / (2 * n * count) for who, ms in {"ours": row["ours_ms"], **row["peers"]}.items()}
        network = math.log2(n) * (math.log2(n) + 1) / row["gemm_GFps"]
        verdict = "-" if goal is None else f"{goal:g} {'met' if times['ours'] <= goal else 'missed'}"
        shown = [f"{times[who]:.3g}" if who in times else "-" for who in ("ours", *peers)]
        cells.append([f"{n} x {count}", *shown, verdict, f"{network:.3g}"])
    return "\n".join([*("| " + " | ".join(line) + " |" for line in cells), "", f"{table.place(report['meta'])}; ns."])


def ceiling_markdown(report: Mapping[str, Any]) -> str:
    """How many times the floor the peers take, beside the goals: as much as a sort that costs nothing would gain."""
    cells = [["case", "direction", "pot / floor (goal)", "torch / floor (goal)"], ["---"] * 4]
    for row in report["rows"]:
        if row["goal"] and row["peer_goals"]:
            goals = {row["baseline"]: row["goal"], **row["peer_goals"]}
            shown = [f"{row['peers'][peer] / row['floor_ms']:.3g} ({goals[peer][0]:g})" for peer in ("pot", "torch")]
            cells.append([row["case"], row["direction"], *shown])
    return "\n".join([*("| " + " | ".join(line) + " |" for line in cells), "", f"{table.place(report['meta'])}."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sliced_wasserstein", description="The tables of the sort and of the ceilings."
    )
    parser.add_argument("file", type=Path, metavar="FILE.json", help="a report of python -m benchmarks")
    given = json.loads(parser.parse_args().file.read_text())
    print(sort_markdown(given), ceiling_markdown(given), sep="\n\n")
