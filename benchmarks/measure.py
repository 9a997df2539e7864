"""How things are measured: interleaved timing, copy and GEMM rates of this machine, peak memory, what the machine is.
Knows nothing of ops or rows (harness.py) and of how results look (table.py)."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import math
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
ROTATE_BYTES = 200_000_000  # CUDA inputs rotate over more than this: an H100's L2 holds 50 MB
COPY_BYTES = 256_000_000  # read + written by the copy behind `copy_GBps`: far outside every cache
REQUIRE_NATIVE = "VGKERNELS_REQUIRE_NATIVE"


class Cost(NamedTuple):
    """Least work an op can do: bytes that must cross memory once, and flops counted in `unit` arithmetic."""

    bytes: float
    flops: float
    unit: str = "float32"


def floor_ms(cost: Cost, copy_gbps: float, gemm_gfps: float) -> float:
    """max(bytes / copy rate, flops / GEMM rate): no kernel on this machine can be faster."""
    return max(cost.bytes / (copy_gbps * 1e6), cost.flops / (gemm_gfps * 1e6))


class Stopwatch:
    """Marks on one device's timeline: the clock on a CPU, events on CUDA. `laps` is the only call that waits."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks = device, []  # type: tuple[torch.device, list[Any]]

    def mark(self) -> None:
        if self.device.type == "cuda":
            cuda: Any = torch.cuda  # untyped in torch
            self.marks.append(cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def laps(self, stages: int) -> list[float]:
        """Mean milliseconds of each of the `stages` laps of a call; a call leaves stages + 1 marks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        step = stages + 1
        starts = range(0, len(self.marks), step)
        return [statistics.fmean(self._ms(i + k, i + k + 1) for i in starts) for k in range(stages)]

    def _ms(self, a: int, b: int) -> float:
        if self.device.type == "cuda":
            return float(self.marks[a].elapsed_time(self.marks[b]))
        return float(self.marks[b] - self.marks[a]) * 1e3


def interleave(contenders: Mapping[str, Callable[[], T]], repeats: int, seed: int = 0) -> dict[str, list[T]]:
    """`repeats` rounds, every contender once a round, in a fresh random order each round."""
    rng = random.Random(seed)
    samples: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name in rng.sample(list(contenders), len(contenders)):
            samples[name].append(contenders[name]())
    return samples


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return q1, median, q3


def copier(nbytes: float, device: torch.device) -> Callable[[], float]:
    """A function that copies warm memory, `nbytes` read + written in all, and returns the GB/s it reached."""
    source = torch.ones(max(1, int(nbytes) // 8), device=device)
    target = torch.empty_like(source).copy_(source)
    calls = 20 if device.type == "cuda" else max(1, min(100, int(5e6 / nbytes)))  # CUDA: all but the first are queued

    def copy() -> float:
        watch = Stopwatch(device)
        for _ in range(calls):
            watch.mark()
            target.copy_(source)
            watch.mark()
        return 2 * source.nbytes / (watch.laps(1)[0] * 1e6)

    return copy


def multiplier(unit: str, device: torch.device) -> Callable[[], float]:
    """A function that multiplies square matrices of dtype `unit` (1024 on a CPU, 8192 on CUDA) into warm memory and
    returns the GFLOP/s it reached.

    On CUDA three products on tensor cores, of TF32, give float32's accuracy: whichever way is faster counts."""
    n = 8192 if device.type == "cuda" else 1024
    a, b, target = torch.randn(3, n, n, device=device).to(getattr(torch, unit))

    def multiply(split: bool = False) -> float:
        watch = Stopwatch(device)
        with single_precision(tf32=split):
            watch.mark()
            torch.mm(a, b, out=target)
            watch.mark()
        return 2 * n**3 / (watch.laps(1)[0] * 1e6) / (3 if split else 1)

    if device.type == "cuda" and unit == "float32":
        return lambda: max(multiply(), multiply(split=True))
    return multiply


@contextlib.contextmanager
def single_precision(tf32: bool) -> Iterator[None]:
    """Whether float32 products and convolutions on CUDA may take 11 bits of each number. By torch's default
    convolutions do, and are no peers of what keeps all 24."""
    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = tf32
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def fill_ms(fresh: bool, floats: int = 1 << 23) -> float:
    """Milliseconds to fill 32 MiB, as one result of 64 channels at 256x512: memory fresh at each call, or warm."""
    held = torch.empty(floats).fill_(0)

    def fill() -> float:
        watch = Stopwatch(torch.device("cpu"))
        watch.mark()
        target = torch.empty(floats) if fresh else held
        target.fill_(0)
        watch.mark()
        return watch.laps(1)[0]

    return statistics.median(fill() for _ in range(9))


def saved_mb(call: Callable[[], object]) -> float:
    """Megabytes that autograd keeps from `call` for its backward, inputs and results included: each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()  # held, so that no address of what is kept can come again
        del result
    return sum(storages.values()) / 1e6


def peak_extra_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """Peak memory during `call()` above what was held before it, its results included; None where it can't be known.

    A CPU's is the high-water mark of the resident set: only memory that was touched counts."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed heap that is still resident would hide new use
        Path("/proc/self/clear_refs").write_text("5")  # 5: set VmHWM to VmRSS
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before) * 1024 / 1e6
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(match[1])


class TimeLimit(BaseException):
    """The alarm of `time_limit`; no Exception, so that a compiler's own `except Exception` can't swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeLimit in the main thread when the block takes longer."""

    def alarm(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, alarm)
    # an infinite limit sets no timer; a finite one fires again every second, should one be lost inside a callback
    signal.setitimer(signal.ITIMER_REAL, 0 if math.isinf(seconds) else seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the block; C++ reads the same ones."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def natively() -> contextlib.AbstractContextManager[None]:
    """For the block, an op that would fall back to its reference raises: it is never timed, unless the user says so."""
    return environment({REQUIRE_NATIVE: os.environ.get(REQUIRE_NATIVE, "1")})


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """The `meta` of a report: device, commit, torch, load and the rates that the floors rest on."""
    copy, gemm = copier(COPY_BYTES, device), multiplier("float32", device)
    copy()
    gemm()
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    commit = _git("rev-parse", "--verify", "HEAD")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "commit": commit or os.environ.get("VGKERNELS_COMMIT", "unknown"),  # a tree that travelled has no .git
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")) if commit else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "copy_GBps": round(statistics.median(copy() for _ in range(7)), 2),
        "gemm_GFps": round(statistics.median(gemm() for _ in range(7)), 1),
        "fill_fresh_32MiB_ms": round(fill_ms(fresh=True), 1),
        "fill_warm_32MiB_ms": round(fill_ms(fresh=False), 1),
        "load_before": os.getloadavg(),
        "load_after": None,
        "transparent_hugepage": pages.read_text().strip() if pages.exists() else None,
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", ""),  # torch's own page advice, for every side
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{match[1] if match else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _git(*arguments: str) -> str:
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    except OSError:
        return ""
