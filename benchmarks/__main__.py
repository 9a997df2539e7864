"""The command line: which ops, cases and device, then the rows as text, JSON or the README's table.
Exit code 1 when a result of ours is wrong, 2 for a bad argument; a missed goal is printed, never a failure."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, measure, table, trial

MIN_REPEATS = 7


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Our ops beside the code they replace.")
    parser.add_argument("op", nargs="?", help=f"one of {', '.join(harness.ops())}; all of them when left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for every contender (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--check", action="store_true", help="tiny sizes, correctness only: seconds, for CI")
    parser.add_argument(
        "--case", default="", metavar="SUBSTRING", help="cases whose label (name dtype layout flow) has it"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="take turns among the ops, and begin no case after so long"
    )
    parser.add_argument("--repeats", type=int, default=9, help=f"rounds, at least {MIN_REPEATS} (default 9)")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print a report's markdown table and stop")
    parser.add_argument(
        "--floors",
        type=Path,
        metavar="FILE.json",
        help="after a change of a cost: a report's floors, from its own rates",
    )
    given = parser.parse_args(argv)
    if given.op is not None and given.op not in harness.ops():
        parser.error(f"no such op: {given.op}; there are {', '.join(harness.ops())}")
    if given.seconds is not None and given.seconds <= 0:
        parser.error("--seconds must be positive")
    if given.repeats < MIN_REPEATS or given.threads < 1:
        parser.error(f"--repeats must be at least {MIN_REPEATS} and --threads at least 1")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no GPU")
    return given


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if given.table:
        print(table.markdown(json.loads(given.table.read_text()), given.op or "", given.case))
        return 0
    if given.floors:
        report = json.loads(given.floors.read_text())
        harness.floors_again(report)
        table.save(given.floors, report["meta"], report["rows"])
        return 0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(given.threads)
        with contextlib.nullcontext() if given.check else measure.natively(), measure.single_precision(tf32=False):
            return run(given)
    finally:
        torch.set_num_threads(threads)


def asked(given: argparse.Namespace, name: str, device: torch.device) -> list[tuple[str, harness.Case]]:
    """The cases of one op."""
    return [(name, case) for case in harness.cases(harness.load(name), device) if given.case in case.label()]


def run(given: argparse.Namespace) -> int:
    """Every case asked for, one after the other, its rows printed as they come."""
    begin, device = time.monotonic(), torch.device(given.device)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # every contender gets cuDNN's best algorithm
    limit = given.seconds and given.seconds / 4  # of one compilation
    settings = harness.Settings(device, given.threads, given.repeats, timed=not given.check, compile_limit_s=limit)
    meta = measure.machine(device, given.threads)
    print(", ".join(f"{key} {value}" for key, value in meta.items() if value is not None), flush=True)
    if not given.check and meta["load_before"][0] > 0.5:
        print(f"load {meta['load_before'][0]:.1f} before the start: others share this machine, trust ratios only")

    todo = [asked(given, name, device) for name in ([given.op] if given.op else harness.ops())]
    if given.seconds is not None:  # a run that is cut short has something of every op
        todo = [[pair for turn in itertools.zip_longest(*todo) for pair in turn if pair is not None]]
    rows: list[dict[str, Any]] = []
    left_out = []
    for name, case in itertools.chain.from_iterable(todo):
        if given.seconds is not None and time.monotonic() - begin > given.seconds:
            left_out.append(f"{name} {case.label()}")
            continue
        op = harness.load(name)
        found = harness.run_case(name, op, op.tiny(case) if given.check else case, settings)
        rows += map(dataclasses.asdict, found)
        print("\n".join(table.line(row) for row in rows[-len(found) :]), flush=True)
        if given.json:  # after every case: a run that is cut short keeps what it measured
            table.save(given.json, {**meta, "load_after": os.getloadavg()}, rows)
    if left_out:
        print(f"{len(left_out)} cases left out, for which {given.seconds:g} s were too short")
        if given.json and rows:
            table.save(given.json, {**meta, "load_after": os.getloadavg(), "left_out": left_out}, rows)
    if not rows:
        print(f"no case matches {given.case!r}", file=sys.stderr)
        return 2
    right = sum(trial.OURS not in row["wrong"] for row in rows)
    print(f"ours right in {right} of {len(rows)} rows" if given.check else table.goals(rows))
    return 1 if any(trial.OURS in row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
