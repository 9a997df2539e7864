"""Decides how tests run kernels without torch: built or skipped, in which orders, on arrays of which bits, and in a
process of their own for a sanitizer or an instruction set. Knows no op; what is run is said by each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import pytest
from native import build

SCHEDULES = ("forward", "reverse", "random:7", "greedy-reverse")
ORDERS = tuple(itertools.product(SCHEDULES, (0xFF, 0x00)))
WEEKLY = os.environ.get("VG_WEEKLY") == "1"  # the long form of tests
DTYPES = ("float64", "float32", "float16", "bfloat16")
ISAS = ("baseline", "avx2", "avx512")
SANITIZERS = ("asan", "tsan") if WEEKLY else ("asan",)  # of the CPU kernels


def load_or_skip(name: str, sources: Sequence[str]) -> ModuleType:
    try:
        return build.load(name, sources)
    except build.NativeUnavailable as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def compiling(name: str, sources: Sequence[str], *variants: str) -> Iterator[dict[str, threading.Thread]]:
    """Compiles sanitized modules while other tests run; join a variant's thread before its use."""
    threads = {variant: threading.Thread(target=build.build, args=(name, sources, variant)) for variant in variants}
    for thread in threads.values():
        thread.start()
    yield threads
    for thread in threads.values():
        thread.join()


def output_of(variant: str, code: str) -> str:
    """What Python code prints in a fresh process that loads modules of that variant; it may complain of nothing."""
    if variant == "plain":
        environment = dict(os.environ, PYTHONPATH=str(build.ROOT / "tests"))
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    else:
        done = build.run_sanitized(variant, code)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-4000:]
    return done.stdout.strip()


def run_small_set(code: str, variants, monkeypatch: pytest.MonkeyPatch, variant: str, isa: str) -> None:
    """`code`, which prints the instruction set that it ran on, in a process of its own. Under TSan the pieces of a
    call run at once, each on a thread (pieces.h)."""
    monkeypatch.setenv("VGKERNELS_CPU_ISA", isa)
    if variant in variants:
        variants[variant].join()
    if output_of(variant, code) != isa:
        pytest.skip(f"this processor has no {isa}")


# ---- storage: every array the kernels see is of the dtype's own bits ----


def accumulate(dtype):
    return np.float64 if dtype == "float64" else np.float32


def narrow(values, dtype):
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(dtype)
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def widen(stored, dtype):
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)
