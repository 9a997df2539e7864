"""What an op's file holds (Op, Case), what comes out (Row), and which results count: only right ones are timed.
Leaves the trial to trial.py, clocks and rates to measure.py, looks to table.py, sizes and peers to the op's file."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Cost
from benchmarks.trial import MODES, OURS, OURS_ADVISED, Peer, Trial

TOLERANCE = {"float64": 1e-9, "float32": 5e-4, "float16": 5e-3, "bfloat16": 2e-2}  # of the truth's largest value


@dataclass(frozen=True)
class Case:
    """One named size. `goals`: direction -> (goal, stretch), both in times faster than the op's BASELINE. `peer_goals`:
    the same against other peers, direction -> peer -> (goal, stretch).

    `in_place`: the op changes its inputs, and they are its result. Every call of every contender then finds the same
    values, written anew just before its clock starts. Such a case has no gradient: its directions are ("fwd",)."""

    name: str
    shape: tuple[Any, ...]  # as the op's own file reads it: one tensor's, or one shape a layer
    dtype: str = "float32"
    layout: str = "contiguous"
    flow: str = ""
    variant: str = ""  # what the op's own file wants to tell apart
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of ours, the peers and the truth
    directions: tuple[str, ...] = ("fwd", "bwd", "fwd+bwd")
    goals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    peer_goals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    floor_goal: float | None = None  # the share of the floor to be reached
    saved_goal: tuple[float, float] | None = (
        None  # (goal, stretch): the share of BASELINE's memory kept for the backward
    )
    left_out: Mapping[str, str] = field(default_factory=dict)  # peers that do not take part, and why; "" where plain
    in_place: bool = False
    differentiated: int | None = None  # only so many inputs, the first, ask for a gradient; None: all that are floating

    def label(self) -> str:
        return " ".join(filter(None, (self.name, self.dtype, self.layout, self.flow)))


class Op(Protocol):
    """benchmarks/<op>.py as a module. `ours`, `truth` and the peers are called fn(*inputs, **case.options) -> Tensor;
    in place, what they do to the inputs counts. `truth` gets the inputs in fp64. `tiny` shrinks a case for --check."""

    CASES: Sequence[Case]
    PEERS: Mapping[str, Peer]
    BASELINE: str  # the peer that goals are set against
    ours: Callable[..., Any]
    truth: Callable[..., Any]
    inputs: Callable[[Case, torch.device], tuple[Tensor, ...]]
    tiny: Callable[[Case], Case]
    cost: Callable[[Case, str], Cost]
    # CUDA_CASES, CUDA_PEERS, if there: on a GPU, cases that fill one come first, and these peers take part too
    # remark: Callable[[Case, str, tuple[Tensor, ...]], str], if there: about ours in a direction, a note of the row


@dataclass(frozen=True)
class Settings:
    """How to run: what the command line decides."""

    device: torch.device
    threads: int = 1
    repeats: int = 9
    timed: bool = True
    compile_limit_s: float | None = None  # None: trial.py's own


@dataclass
class Row:
    """One case in one direction, as in the JSON. No time and no ratio for a result that was wrong."""

    op: str
    case: str
    dtype: str
    layout: str
    flow: str
    direction: str
    threads: int
    huge_pages: bool  # ours with VGKERNELS_HUGE_PAGES=1; the headline row is the one without
    ours_ms: float | None = None
    ours_quartiles: tuple[float, float] | None = None
    peers: dict[str, float] = field(default_factory=dict)
    peer_quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)  # peer / ours
    bytes: float = 0.0
    flops: float = 0.0
    copy_GBps: float | None = None  # of a copy of the forward's bytes, interleaved with the contenders
    gemm_GFps: float | None = None  # of a square matrix product in the cost's unit, interleaved likewise
    floor_ms: float | None = None
    floor_fraction: float | None = None
    max_err: float | None = None  # as `error`; None: not a number, the wrong shape or an exception
    peer_err: dict[str, float | None] = field(default_factory=dict)
    peak_extra_mb: float | None = None  # of one call, its results included
    peer_peak_extra_mb: dict[str, float | None] = field(default_factory=dict)
    saved_mb: float | None = None  # kept for the backward; where the case has a goal for it
    peer_saved_mb: dict[str, float] = field(default_factory=dict)
    baseline: str = "eager"
    goal: tuple[float, float] | None = None  # against the baseline
    peer_goals: dict[str, tuple[float, float]] = field(default_factory=dict)
    floor_goal: float | None = None
    saved_goal: tuple[float, float] | None = None
    wrong: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def ops() -> list[str]:
    """Every file of this folder that has an op's name."""
    here = Path(__file__).parent
    return sorted(path.stem for path in here.glob("*.py") if (here.parent / "csrc" / path.stem).is_dir())


def load(op: str) -> Op:
    module: Any = importlib.import_module(f"benchmarks.{op}")
    return cast(Op, module)


def cases(op: Op, device: torch.device) -> list[Case]:
    """On CUDA, sizes that fill a GPU before those that a CPU core can run."""
    return [*(getattr(op, "CUDA_CASES", ()) if device.type == "cuda" else ()), *op.CASES]


def run_case(name: str, op: Op, case: Case, settings: Settings) -> list[Row]:
    """Compares every contender with the truth, then times those that are right; if ours is wrong nothing is timed."""
    trial = Trial(op, case, settings.device)
    contenders = trial.contenders(op, compiled=settings.timed)
    errors, notes = trial.check(contenders, settings.compile_limit_s)
    tolerance = TOLERANCE[case.dtype]
    right = {who: [mode for mode in trial.modes if errors[who][mode] <= tolerance] for who in contenders}
    timings: dict[str, dict[str, list[float]]] = {}
    peaks: dict[str, dict[str, float | None]] = {}
    saved: dict[str, float] = {}
    if settings.timed and len(right[OURS]) == len(trial.modes):
        runners = {who: contender for who, contender in contenders.items() if right[who]}
        timings = trial.time(runners, right, settings.repeats, op.cost(case, case.directions[0]))
        peaks = {who: trial.peaks(contender, right[who]) for who, contender in runners.items()}
        if case.saved_goal:
            saved = {who: trial.saved(contender) for who, contender in runners.items() if "train" in right[who]}

    rows = []
    peers = [who for who in contenders if who not in (OURS, OURS_ADVISED)]
    for direction in case.directions:
        mode = next(mode for mode, directions in MODES.items() if direction in directions)
        for ours in (who for who in (OURS, OURS_ADVISED) if who in contenders):
            row = Row(name, case.name, case.dtype, case.layout, case.flow, direction, settings.threads, ours != OURS)
            row.baseline, row.goal, row.floor_goal = op.BASELINE, case.goals.get(direction), case.floor_goal
            row.peer_goals = dict(case.peer_goals.get(direction, {}))
            row.max_err = _finite(errors[ours][mode])
            row.peer_err = {who: _finite(errors[who][mode]) for who in peers if who not in notes[mode]}
            row.wrong = [OURS] if mode not in right[ours] else []  # ours may not fail either
            row.wrong += [who for who in peers if mode not in right[who] and who not in notes[mode]]
            row.notes = {who: note for who, note in notes[mode].items() if who == ours or who in peers}
            row.notes |= {who: why for who, why in case.left_out.items() if why}
            if timings and hasattr(op, "remark"):
                row.notes[OURS] = op.remark(case, direction, trial.given(mode))
            _fill_times(row, timings, ours, peers)
            row.peak_extra_mb = peaks.get(ours, {}).get(direction)
            row.peer_peak_extra_mb = {who: peaks[who].get(direction) for who in row.peers}
            if mode == "train" and ours in saved:
                row.saved_goal, row.saved_mb = case.saved_goal, saved[ours]
                row.peer_saved_mb = {who: saved[who] for who in row.peers}
            _fill_floor(row, op.cost(case, direction), timings)
            rows.append(row)
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _fill_times(row: Row, timings: Mapping[str, Mapping[str, list[float]]], ours: str, peers: Sequence[str]) -> None:
    """Medians and quartiles of the row's direction; a ratio only between two right results."""
    if row.direction not in timings.get(ours, {}):
        return
    q1, row.ours_ms, q3 = measure.quartiles(timings[ours][row.direction])
    row.ours_quartiles = (q1, q3)
    for who in peers:
        if row.direction in timings.get(who, {}):
            q1, row.peers[who], q3 = measure.quartiles(timings[who][row.direction])
            row.peer_quartiles[who] = (q1, q3)
            row.ratio[who] = row.peers[who] / row.ours_ms


def _fill_floor(row: Row, cost: Cost, timings: Mapping[str, Mapping[str, list[float]]]) -> None:
    row.bytes, row.flops = cost.bytes, cost.flops
    if row.ours_ms is not None:
        row.copy_GBps = statistics.median(timings["copy"]["GBps"])
        row.gemm_GFps = statistics.median(timings["gemm"]["GFps"])
        row.floor_ms = measure.floor_ms(cost, row.copy_GBps, row.gemm_GFps)
        row.floor_fraction = row.floor_ms / row.ours_ms


def floors_again(report: dict[str, Any]) -> None:
    """Puts into a report what today's costs say of its cases, at the rates that the run itself measured."""
    known = {(name, case.label()): case for name in ops() for case in load(name).CASES}
    for values in report["rows"]:
        label = " ".join(filter(None, (values[key] for key in ("case", "dtype", "layout", "flow"))))
        case = known[values["op"], label]
        cost = load(values["op"]).cost(case, values["direction"])
        values["bytes"], values["flops"] = cost.bytes, cost.flops
        if values["ours_ms"] is not None:
            values["floor_ms"] = measure.floor_ms(cost, values["copy_GBps"], values["gemm_GFps"])
            values["floor_fraction"] = values["floor_ms"] / values["ours_ms"]
