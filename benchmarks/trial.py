"""One case on one device: its inputs, its fp64 truth, and what is done with each contender (check, time, peak memory).
Decides how ours and the peers are called; harness.py decides which calls count and what is written down."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Cost, Stopwatch, TimeLimit

if TYPE_CHECKING:
    from benchmarks.harness import Case, Op

T = TypeVar("T")
Nested = dict[str, dict[str, T]]
MODES = {"forward": ("fwd",), "train": ("bwd", "fwd+bwd")}  # one timed call of a mode gives all its directions
OURS, OURS_ADVISED = "ours", "ours with page advice"
HUGE_PAGES, ADVISED_BYTES = "VGKERNELS_HUGE_PAGES", 4_000_000  # below this output size advice is not worth a row
COMPILE_LIMIT_S = 60.0
MOST_SETS = 4096  # of inputs, however small
BATCH_MS = {"cpu": 2.0, "cuda": 20.0}  # short calls are repeated within a sample until it takes this long


@dataclass(frozen=True)
class Compiled:
    """A peer that is torch.compile of `fn`; dropped where compiling it takes over COMPILE_LIMIT_S."""

    fn: Callable[..., Tensor]


@dataclass(frozen=True)
class Under:
    """A peer that runs under environment variables: another way that an op has."""

    fn: Callable[..., Tensor]
    environment: Mapping[str, str]


Peer = Callable[..., Any] | Compiled | Under


@dataclass(frozen=True)
class Contender:
    """One implementation and the environment it runs under. A call leaves 2 (forward) or 3 (train) marks on `watch`."""

    fn: Callable[..., Tensor]
    environment: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = False
    in_place: bool = False

    def call(self, mode: str, tensors: Sequence[Tensor], grad_out: Tensor, watch: Stopwatch) -> list[Tensor]:
        """The output (in place: the inputs), and in mode "train" the gradients of every input that asks; nothing is
        allocated beforehand."""
        with measure.environment(self.environment), torch.set_grad_enabled(mode == "train"):
            leaves = [t for t in tensors if t.requires_grad]
            watch.mark()
            out = self.fn(*tensors)
            watch.mark()
            if mode == "forward":
                return list(tensors) if self.in_place else [out]
            grads = torch.autograd.grad(out, leaves, grad_out)
            watch.mark()
            return [out.detach(), *grads]


def error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest difference as a share of that truth's largest value, over output and gradients; inf for NaN or shape."""
    worst = 0.0
    for a, b in zip(results, truth, strict=True):
        if a.shape != b.shape:
            return math.inf
        if b.numel():
            off = float((a.to(b.dtype) - b).abs().max()) / (float(b.abs().max()) or 1.0)
            worst = max(worst, math.inf if math.isnan(off) else off)
    return worst


class Trial:
    """Inputs (on CUDA several sets, rotated over; in place: one set and the copy of it that is worked on), the gradient
    of the output, and the truth [output, *gradients]."""

    def __init__(self, op: Op, case: Case, device: torch.device) -> None:
        torch.manual_seed(1)
        self.case, self.device, self.turn = case, device, 0
        self.modes = [mode for mode, directions in MODES.items() if set(directions) & set(case.directions)]
        tensors = op.inputs(case, device)
        self.sets, self.work = [tensors], tuple(torch.empty_like(t) for t in tensors if case.in_place)
        doubles = tuple(t.to(torch.float64, copy=True) if t.is_floating_point() else t for t in tensors)
        self.large = sum(t.nbytes for t in self.work) >= ADVISED_BYTES
        if case.in_place:
            op.truth(*doubles, **case.options)
            self.truth, self.grad_out, self.constant = list(doubles), torch.empty(0, device=device), [self.work]
            elsewhere = measure.ROTATE_BYTES if device.type == "cuda" else 0
            self.elsewhere = torch.empty(elsewhere, dtype=torch.uint8, device=device)
            return
        copies = 1
        if device.type == "cuda":
            copies = min(MOST_SETS, 1 + measure.ROTATE_BYTES // sum(t.nbytes for t in tensors))
        copied = [tuple(t.clone() for t in tensors) for _ in range(copies - 1)]
        self.sets = [_leaves(given, case.differentiated) for given in (tensors, *copied)]
        self.constant = [tuple(t.detach() for t in given) for given in self.sets]  # the same objects at each call
        out = op.truth(*_leaves(doubles, case.differentiated), **case.options)
        self.grad_out = torch.randn(out.shape, device=device).to(tensors[0].dtype)
        if case.layout == "channels_last":
            self.grad_out = self.grad_out.contiguous(memory_format=torch.channels_last)
        self.truth, self.large = [out.detach()], self.grad_out.nbytes >= ADVISED_BYTES
        if "train" in self.modes:
            leaves = [t for t in doubles if t.requires_grad]
            self.truth += torch.autograd.grad(out, leaves, self.grad_out.double())

    def contenders(self, op: Op, compiled: bool) -> dict[str, Contender]:
        """Ours without page advice, ours with it where the output is large enough, and the peers."""
        ours = functools.partial(op.ours, **self.case.options)
        found = {OURS: Contender(ours, {HUGE_PAGES: "0"})}
        if self.device.type == "cpu" and self.large and not self.case.in_place:
            found[OURS_ADVISED] = Contender(ours, {HUGE_PAGES: "1"})
        for who, peer in peers_on(op, self.device).items():
            if who in self.case.left_out:
                continue
            if isinstance(peer, Under):
                found[who] = Contender(functools.partial(peer.fn, **self.case.options), peer.environment)
            elif not isinstance(peer, Compiled):
                found[who] = Contender(functools.partial(peer, **self.case.options))
            elif compiled:
                aside: dict[str, Any] = {"flow": "", "goals": {}, "peer_goals": {}, "options": {}}
                same = dataclasses.replace(self.case, **aside)  # other flow values: compiled once
                fn = _compile(peer.fn, f"{same} {sorted(self.case.options.items())}")
                found[who] = Contender(functools.partial(fn, **self.case.options), compiled=True)
        return {who: dataclasses.replace(contender, in_place=self.case.in_place) for who, contender in found.items()}

    def fresh(self, turn: int = 0) -> tuple[Tensor, ...]:
        """The inputs of one call; in place, restored: for everyone warm, as an optimiser's step leaves weights."""
        given = self.sets[turn % len(self.sets)]
        for work, tensor in zip(self.work, given, strict=False):
            work.copy_(tensor)
        if self.work and self.device.type == "cuda":
            self.elsewhere.zero_()  # or what was restored would still lie in L2
        return self.work or given

    def given(self, mode: str, turn: int = 0) -> tuple[Tensor, ...]:
        """The inputs of one call; where no gradient is asked for, they ask for none."""
        fresh = self.fresh(turn)
        return fresh if mode == "train" else self.constant[turn % len(self.constant)]

    def check(
        self, contenders: Mapping[str, Contender], compile_limit_s: float | None = None
    ) -> tuple[Nested[float], Nested[str]]:
        """Errors[who][mode], inf where the call failed, and notes[mode][who] that say why it did.

        These are the first calls, so a compiler compiles here."""
        limit_s = COMPILE_LIMIT_S if compile_limit_s is None else compile_limit_s
        errors: Nested[float] = {who: {} for who in contenders}
        notes: Nested[str] = {mode: {} for mode in MODES}
        for who, contender in contenders.items():
            for mode in self.modes:
                errors[who][mode] = math.inf
                start = time.monotonic()
                try:
                    with measure.time_limit(limit_s if contender.compiled else math.inf):
                        results = contender.call(mode, self.given(mode), self.grad_out, Stopwatch(self.device))
                    errors[who][mode] = error(results, self.truth[: len(results)])
                except TimeLimit:
                    notes[mode][who] = f"compile took > {limit_s:.0f} s: dropped"
                    torch._dynamo.reset()
                except Exception as problem:  # a peer may lack a case (dtype, memory): the others are still timed
                    text = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
                    notes[mode][who] = f"failed after {time.monotonic() - start:.0f} s: {text}"
        return errors, notes

    def time(
        self, contenders: Mapping[str, Contender], modes: Mapping[str, Sequence[str]], repeats: int, cost: Cost
    ) -> Nested[list[float]]:
        """Milliseconds [who][direction], interleaved. Among them the rates that floors rest on: a copy of the cost's
        bytes, ["copy"]["GBps"], and a matrix product in its unit, ["gemm"]["GFps"]."""
        copy = measure.copier(max(cost.bytes, measure.COPY_BYTES if self.device.type == "cuda" else 0), self.device)
        gemm = measure.multiplier(cost.unit, self.device)
        samplers: dict[str, Callable[[], dict[str, float]]] = {
            "copy": lambda: {"GBps": copy()},
            "gemm": lambda: {"GFps": gemm()},
        }
        copy()
        gemm()
        for who, contender in contenders.items():
            warm = self.sample(contender, dict.fromkeys(modes[who], 1))
            longest = {mode: max(warm[direction] for direction in MODES[mode]) for mode in modes[who]}
            calls = {mode: max(1, min(100, int(BATCH_MS[self.device.type] / ms))) for mode, ms in longest.items()}
            samplers[who] = functools.partial(self.sample, contender, calls)
        samples = measure.interleave(samplers, repeats)
        return {who: {key: [s[key] for s in taken] for key in taken[0]} for who, taken in samples.items()}

    def sample(self, contender: Contender, calls: Mapping[str, int]) -> dict[str, float]:
        """Mean milliseconds by direction over `calls[mode]` calls; each call's results are dropped before the next."""
        taken = {}
        for mode, count in calls.items():
            watch = Stopwatch(self.device)
            if self.device.type == "cuda" and self.large:
                cuda: Any = torch.cuda
                cuda._sleep(1_000_000 * count)  # the queue fills meanwhile: device time, not Python's launch time
            for _ in range(count):
                self.turn += 1
                contender.call(mode, self.given(mode, self.turn), self.grad_out, watch)
            if mode == "forward":
                (taken["fwd"],) = watch.laps(1)
            else:
                forward, taken["bwd"] = watch.laps(2)
                taken["fwd+bwd"] = forward + taken["bwd"]
        return taken

    def peaks(self, contender: Contender, modes: Sequence[str]) -> dict[str, float | None]:
        """Peak extra megabytes of one call, by direction."""
        found: dict[str, float | None] = {}
        for mode in modes:

            def call(mode: str = mode) -> object:
                return contender.call(mode, self.given(mode), self.grad_out, Stopwatch(self.device))

            found["fwd" if mode == "forward" else "fwd+bwd"] = measure.peak_extra_mb(call, self.device)
        if "train" in modes:
            with measure.environment(contender.environment):
                out = contender.fn(*self.sets[0])
                leaves = [t for t in self.sets[0] if t.requires_grad]
                backward = functools.partial(torch.autograd.grad, out, leaves, self.grad_out)
                found["bwd"] = measure.peak_extra_mb(backward, self.device)
        return found

    def saved(self, contender: Contender) -> float:
        """Megabytes kept for the backward."""
        with measure.environment(contender.environment):
            return measure.saved_mb(lambda: contender.fn(*self.sets[0]))


def peers_on(op: Op, device: torch.device) -> dict[str, Peer]:
    """Who is beside ours; on CUDA also those that are only good, or only there, on a GPU."""
    return {**op.PEERS, **(getattr(op, "CUDA_PEERS", {}) if device.type == "cuda" else {})}


def _leaves(tensors: Sequence[Tensor], count: int | None) -> tuple[Tensor, ...]:
    """Every floating tensor, or of the first `count`, asks for a gradient."""
    for tensor in tensors[:count]:
        tensor.requires_grad_(tensor.is_floating_point())
    return tuple(tensors)


@functools.lru_cache(maxsize=1)
def _compile(fn: Callable[..., Tensor], signature: str) -> Callable[..., Tensor]:
    """torch.compile for exactly these sizes; a new signature starts afresh, so none inherits dynamic shapes."""
    torch._dynamo.reset()
    compiled: Callable[..., Tensor] = torch.compile(fn, dynamic=False)
    return compiled
