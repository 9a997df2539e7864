"""No memory: an exception, arguments as they were, the next call right. And no memory kept over ten thousand calls.

Decides how often which call is made; each runs in a process of its own, by hostile_memory.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_calls import CALLS
from hostile_memory import KERNELS
from native.kernels import WEEKLY
from op_suite import needs_native

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def work(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    """The lines that hostile_memory.py prints; a crash shows which call was next."""
    done = subprocess.run(
        [sys.executable, TESTS / "hostile_memory.py", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])} | environment,
        capture_output=True,
        text=True,
        timeout=3000 if WEEKLY else 600,
    )
    assert done.returncode == 0, f"{done.returncode} after {done.stdout.splitlines()[-1:]}\n{done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_native
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")
def test_every_allocation_fails_once(tmp_path: Path) -> None:
    library = tmp_path / "failing_memory.so"
    source = TESTS / "native/failing_memory.cpp"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=120)
    reports = work("failing", *CALLS, LD_PRELOAD=str(library))
    assert not [report["failed"] for report in reports if "failed" in report]
    late, *rest = reports
    assert late["refused"] > 10
    assert late["uncertain"] > 0
    assert {report["name"] for report in rest} == set(CALLS)
    for report in rest:  # the fault is really planted
        assert report["allocations"] >= (40 if report["name"] in KERNELS else 10), report
        assert report["errors"]


# Of what has no kernel, of several kernels in one call and of refused calls a fifth; weekly of all as many.
TIMES = {name: 10_000 if WEEKLY or (name in KERNELS and name != "SingularValueClipping") else 2_000 for name in CALLS}


@needs_native
def test_memory_does_not_grow() -> None:
    reports = work("growth", *(f"{name}:{times}" for name, times in TIMES.items()), f"refused:{TIMES['ConvGRU']}")
    grown = {report["name"]: report["grown"] for report in reports}
    assert grown.keys() == {*CALLS, "refused"}
    assert not {name: size for name, size in grown.items() if size >= 1 << 20}
