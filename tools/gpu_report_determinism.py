"""Of each op and direction: the same bits again, in a CUDA graph, on two streams; and how much memory a call takes.

Decides what must be equal: everything where `torch.use_deterministic_algorithms(True)` is set, where it is not all but
what an op says is free. On a CPU (a dry run) there are no graphs, streams or peaks: the same calls run plainly.
`python -m tools.gpu_report_determinism --device cuda --json FILE`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.gpu_report_calls import Call, chosen

PLAINLY = "dry run: plainly"


def differing(got: Sequence[Tensor], want: Sequence[Tensor]) -> list[int]:
    """The places whose bits differ; 0 is the result. NaN equals NaN."""
    return [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if not same_bits(a, b)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on, warn_only=True)  # torch's own ops may have no such kernel
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def repeats(call: Call, direction: str, count: int) -> dict[str, Any]:
    """Which places differed in any of `count` calls, each of fresh copies, with the flag and without."""
    found = {}
    for said, on in (("with_flag", True), ("without_flag", False)):
        with deterministic(on):
            want = call.run(direction, call.inputs())
            found[said] = sorted(
                {i for _ in range(count - 1) for i in differing(call.run(direction, call.inputs()), want)}
            )
    return found


def other_inputs(call: Call) -> list[Tensor]:
    """Of the same shapes; rows the other way round."""
    tensors = call.inputs()
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(tensor.flip(0))
    return tensors


def graph(call: Call, direction: str) -> list[int]:
    """Captured once, replayed over two sets of inputs: the places that differ from calls without a graph."""
    first, second = call.inputs(), other_inputs(call)
    want = [call.run(direction, tensors) for tensors in (call.inputs(), other_inputs(call))]
    static = call.inputs()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # warms up what may not be set up while a graph is captured
        for _ in range(2):
            call.run(direction, call.inputs())
    torch.cuda.current_stream().wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        got = call.run(direction, static)
    differ: set[int] = set()
    for tensors, wanted in zip((first, second), want, strict=True):
        with torch.no_grad():
            for tensor, value in zip(static, tensors, strict=True):
                tensor.copy_(value)
            for tensor in got:
                tensor.fill_(math.nan)  # a replay that writes nothing is seen
        captured.replay()
        differ |= set(differing(got, wanted))
    return sorted(differ)


def streams(call: Call, direction: str, rounds: int = 5) -> list[int]:
    """Two sets of inputs at once, a stream each: the places that differ from one after the other."""
    made = (call.inputs, lambda: other_inputs(call))
    want = [call.run(direction, make()) for make in made]
    given = [[make() for make in made] for _ in range(rounds)]  # held until all is done
    sides = [torch.cuda.Stream() for _ in made]
    torch.cuda.synchronize()
    got = []
    for pair in given:
        for side, tensors in zip(sides, pair, strict=True):
            with torch.cuda.stream(side):
                got.append(call.run(direction, tensors))
    torch.cuda.synchronize()
    return sorted({i for k, results in enumerate(got) for i in differing(results, want[k % 2])})


def memory(call: Call, direction: str) -> dict[str, float]:
    """Peak megabytes above what is held before, results included, and the results' own."""
    tensors = call.inputs()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call.run(direction, tensors)
    torch.cuda.synchronize()
    peak, own = torch.cuda.max_memory_allocated() - before, sum(t.nbytes for t in results)
    return {"peak_MB": peak / 1e6, "results_MB": own / 1e6, "peak_over_results": peak / max(1, own)}


def measured(call: Call, direction: str, device: str, count: int) -> dict[str, Any]:
    """One row; what raised says so in its place, and the rest goes on."""
    row: dict[str, Any] = {"call": call.name, "direction": direction}
    on_gpu = device == "cuda"
    with deterministic(True):
        works: dict[str, Callable[[], Any]] = {
            "repeats": lambda: repeats(call, direction, count),
            "graph": lambda: graph(call, direction) if on_gpu else plainly(call, direction),
            "streams": lambda: streams(call, direction) if on_gpu else plainly(call, direction),
            "memory": lambda: memory(call, direction) if on_gpu else PLAINLY,
        }
        for name, work in works.items():
            try:
                row[name] = work()
            except Exception as problem:
                row[name] = f"failed: {type(problem).__name__}: {problem}".splitlines()[0][:300]
    row["wrong"] = faults(call, row)
    return row


def plainly(call: Call, direction: str) -> str:
    call.run(direction, other_inputs(call))
    return PLAINLY


def faults(call: Call, row: dict[str, Any]) -> list[str]:
    """What in a row must not be; a place that is free without the flag may differ there."""
    wrong = [f"{name} {value}" for name, value in row.items() if isinstance(value, str) and value.startswith("failed")]
    if isinstance(row["repeats"], dict):
        wrong += [f"with the flag place {i} differs" for i in row["repeats"]["with_flag"]]
        wrong += [f"place {i} differs" for i in row["repeats"]["without_flag"] if i not in call.free]
    for name in ("graph", "streams"):
        wrong += [f"{name}: place {i} differs" for i in row[name]] if isinstance(row[name], list) else []
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.gpu_report_determinism", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="of each op and dtype, one call in so many")
    parser.add_argument("--small", action="store_true", help="the sanitizers' sizes")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no call after so long")
    given = parser.parse_args(argv)
    end = time.monotonic() + given.seconds
    works = [(call, way) for call in chosen(given.device, not given.small, given.every) for way in call.directions()]
    rows: list[dict[str, Any]] = []
    for call, direction in works:
        if time.monotonic() > end:
            break
        rows.append(measured(call, direction, given.device, given.repeats))
        for wrong in rows[-1]["wrong"]:
            print(f"WRONG {call.name} {direction}: {wrong}", flush=True)
    left_out = [f"{call.name} {direction}" for call, direction in works[len(rows) :]]
    wrong = sum(bool(row["wrong"]) for row in rows)
    if given.json:
        about = {"device": given.device, "repeats": given.repeats, "left_out": left_out}
        given.json.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n")
    print(f"figure: {len(rows) - wrong} of {len(works)} rows right, {wrong} wrong, {len(left_out)} left out")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
