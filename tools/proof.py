"""What has been shown of each op, from records alone: `python tools/proof.py record NAME JUNIT.xml...`, `... table`.

Decides what of a pytest run is kept in docs/proof/results.json, and how docs/proof.md shows it; which test shows what
is in proof_tests.txt. `record` is called right after a run: the commit is the present one, or, with `--environment`,
that of a GPU report's environment.json. `table` rewrites the page's part between its markers, from these records,
docs/proof/mutations.json and kernel_budgets.json. It runs no test and needs no torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).with_name("proof_tests.txt")
PAGE, RESULTS = Path("docs/proof.md"), Path("docs/proof/results.json")
MUTATIONS, BUDGETS = Path("docs/proof/mutations.json"), Path("tools/kernel_budgets.json")
LAUNCHED = Path("docs/proof/launched.json")
BEGIN, END = "<!-- begin: python tools/proof.py table -->", "<!-- end: python tools/proof.py table -->"

NAMES = {  # in the order in which a cell lists them
    "landing": "`make test`",
    "weekly": "`make weekly`: every schedule, all cases",
    "sanitized": "`make sanitize`: the CPU library under ASan and UBSan",
    "gpu": "`make gpu-report`",
}
SUITES = {
    "TestFlowWarp": "flow_warp",
    "TestFlowWarpBlend": "flow_warp_blend",
    "TestSvcProjection": "svc_projection",
    "TestSlicedWasserstein": "sliced_wasserstein",
    "TestConvGRU": "conv_gru",
}
OPS = dict.fromkeys(SUITES.values(), "FBS") | {"svc_projection_": "F"}  # in place: no derivative
DIRECTIONS = {"F": "forward", "B": "backward", "S": "second derivative"}
COLUMNS = {"reference": "reference", "cpu": "CPU", "emulated": "emulated", "cuda": "GPU"}
OUTCOMES = ("skipped", "passed", "failed")  # of a test that several files report, the last of these
CAUGHT = ("plain", "asan", "tsan", "crash", "timeout")  # by what; tools/mutation_trials.py


# ---- which test shows what ----


class Shown(NamedTuple):
    file: str
    backend: str
    ops: tuple[str, ...]
    directions: str
    test: str
    pattern: str


def rules(text: str) -> Iterator[Shown]:
    """The lines of proof_tests.txt, one for each test."""
    text = re.sub(r"\n {4,}", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    file, backend = "", ""
    for line in filter(None, text.split("\n")):
        head, _, tail = line.partition(":")
        if not line.startswith(" "):
            file, backend = head, tail.strip()
            continue
        ops, directions = head.split()
        for name in tail.split():
            test, _, pattern = name.partition("/")
            yield Shown(file, backend, tuple(ops.split("+")), directions, f"test_{test}", pattern)


class Classes:
    """Finds the cells of a test; a test of no rule has none."""

    def __init__(self, found: Iterable[Shown]) -> None:
        self.rules: dict[tuple[str, str], list[Shown]] = defaultdict(list)
        for rule in found:
            self.rules["*" if rule.ops == ("*",) else rule.file, rule.test].append(rule)

    def cells(self, classname: str, name: str) -> Iterator[tuple[str, str, str]]:
        """(op, direction, column) that a test of pytest's junit file counts in."""
        file, _, suite = classname.removeprefix("tests.").partition(".")
        test, _, parameters = name.removesuffix("]").partition("[")
        words = parameters.split("-")
        own = next((column for column in ("cpu", "emulated", "cuda") if column in words), None)
        instead = any(word.endswith("_reference") for word in words)
        for rule in self.rules["*" if suite else f"{file}.py", test]:
            if (suite and suite not in SUITES) or not re.search(rule.pattern, parameters):
                continue
            backend = own or rule.backend
            for op in [SUITES[suite]] if suite else rule.ops:
                for letter in rule.directions:
                    reference = instead or letter.islower()
                    if not reference:
                        yield op, DIRECTIONS[letter], backend
                    elif backend == "cpu":  # PyTorch's own: elsewhere it would count twice
                        yield op, DIRECTIONS[letter.upper()], "reference"


# ---- records ----


def outcomes(files: Sequence[Path]) -> tuple[dict[tuple[str, str], str], str, float]:
    """By (class, test): what came of it; when the first run began, and the seconds of all of them."""
    found: dict[tuple[str, str], str] = {}
    begun, seconds = [], 0.0
    for file in files:
        try:
            suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
            begun += [suite.attrib["timestamp"][:10] for suite in suites]
            seconds += sum(float(suite.get("time", 0)) for suite in suites)
        except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
            raise SystemExit(f"proof: expected a JUnit file of pytest in {file}, got {error!r}") from error
        for suite in suites:
            for case in suite.iter("testcase"):
                said = {child.tag for child in case}
                outcome = "failed" if said & {"failure", "error"} else "skipped" if "skipped" in said else "passed"
                key = case.get("classname", ""), case.get("name", "")
                found[key] = max(outcome, found.get(key, "skipped"), key=OUTCOMES.index)
    if not found:
        raise SystemExit(f"proof: expected tests in {', '.join(map(str, files))}, got none")
    return found, min(begun), seconds


def record(files: Sequence[Path], environment: Path | None, root: Path = ROOT) -> dict[str, Any]:
    found, date, seconds = outcomes(files)
    cells: dict[str, dict[str, dict[str, Counter[str]]]] = defaultdict(lambda: defaultdict(dict))
    classes = Classes(rules(TESTS.read_text()))
    for (classname, name), outcome in found.items():
        for op, direction, column in set(classes.cells(classname, name)):
            cells[op][direction].setdefault(column, Counter())[outcome] += 1
    total = Counter(found.values())
    return {
        "date": date,
        **(from_report(environment) if environment else here(root)),
        "seconds": round(seconds),
        **{outcome: total[outcome] for outcome in OUTCOMES},
        "cells": cells,
    }


def here(root: Path) -> dict[str, Any]:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    own = [f":!{path}" for path in (PAGE, RESULTS.parent)]  # what this tool writes is no change of what was tested
    return {
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", ".", *own)),
        "torch": importlib.metadata.version("torch"),
        "device": f"{len(os.sched_getaffinity(0))} CPU cores",
    }


def from_report(environment: Path) -> dict[str, Any]:
    try:
        known = json.loads(environment.read_text())
        return {name: known[name] for name in ("commit", "dirty", "torch", "device")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"proof: expected a GPU report's environment in {environment}, got {error!r}") from error


# ---- the page ----


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def commit_of(run: dict[str, Any]) -> str:
    return f"`{run['commit'][:7]}`" + (" + changes" if run.get("dirty") else "")


def figures(counts: dict[str, int]) -> str:
    failed = counts.get("failed", 0)
    return f"{counts.get('passed', 0)}" + (f", **{failed} FAILED**" if failed else "")


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def heading(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def cell(results: dict[str, Any], op: str, direction: str, column: str) -> str:
    said = []
    for name in NAMES:
        counts = results.get(name, {}).get("cells", {}).get(op, {}).get(direction, {}).get(column, {})
        if counts.get("passed") or counts.get("failed"):
            run = results[name]
            said.append(f"{figures(counts)} {name}, {run['date']}, {commit_of(run)}")
    return "<br>".join(said) or ("not run on a GPU" if column == "cuda" else "none" if results else "not run")


def of_ops(results: dict[str, Any]) -> Iterator[str]:
    yield from heading("op", "direction", *COLUMNS.values())
    for op in sorted(OPS, key=lambda op: list(SUITES.values()).index(op.removesuffix("_"))):
        for direction in (DIRECTIONS[letter] for letter in OPS[op]):
            yield row(f"`{op}`", direction, *(cell(results, op, direction, column) for column in COLUMNS))


def of_runs(results: dict[str, Any]) -> Iterator[str]:
    yield from heading("run", "of", "date", "commit", "torch", "device", "passed", "skipped", "minutes")
    for name, what in NAMES.items():
        if not (run := results.get(name)):
            yield row(name, what, "not run", *[""] * 6)
            continue
        facts = (run["date"], commit_of(run), run["torch"], run["device"], figures(run), run["skipped"])
        yield row(name, what, *facts, round(run["seconds"] / 60))


def of_mutations(known: dict[str, Any]) -> Iterator[str]:
    if not known:
        yield "Mutations (`python tools/mutations.py`): not run."
        return
    left_out = known["score"].get("all", {}).get("no integers", 0)
    at = f"`{known['command']}`, {known['date']}, {commit_of(known)}"
    yield f"Mutations ({at}); {left_out} more sites compare no integers, and none is made of them:"
    yield ""
    names = ("equivalent", "explained", "unexplained")
    yield from heading("sources", "kind", "sites", "caught", *names, "caught of all", "of what is not equivalent")
    for what, score in known["score"].items():
        shares = (f"{score[f'caught of {among}']:.1%}" for among in ("all", "what is not equivalent"))
        yield row("all", what, score["sites"], score["caught"], *(score.get(name, 0) for name in names), *shares)
    for op, kinds in sorted(known["by op and kind"].items()):
        for kind, counts in sorted(kinds.items()):
            caught, others = sum(counts.get(how, 0) for how in CAUGHT), [counts.get(name, 0) for name in names]
            yield row(f"`csrc/{op}`", kind, caught + sum(others), caught, *others, "", "")


def of_budgets(known: dict[str, Any]) -> str:
    archs = sorted({arch for budget in known["kernels"].values() for arch in budget if arch.isdigit()}, key=int)
    bounds = sum(len(budget[arch]) for budget in known["kernels"].values() for arch in archs if arch in budget)
    held = ", ".join(f"{name} {limit}" for name, limit in known["all"].items())
    return (
        f"Budgets (`make kernels`, [kernel_budgets.json](../{BUDGETS})): {len(known['kernels'])} kernels x "
        f"{len(archs)} architectures ({', '.join(f'sm_{arch}' for arch in archs)}), {bounds} bounds of "
        f"{', '.join(known['columns'])}, {len(known['instructions'])} rules on machine instructions, {held} for all; "
        f"nvcc {known['nvcc']}."
    )


def of_launches(known: dict[str, Any]) -> str:
    """Of every template instantiation that nvcc makes."""
    if not known:
        return "Kernels launched on the emulator (`python tools/launched_kernels.py`): not run."
    return (
        f"Kernels launched on the emulator (`python tools/launched_kernels.py`, {known['date']}, {commit_of(known)}): "
        f"{known['kernels'] - len(known['missing'])} of {known['kernels']}"
        + (f"; never {', '.join(f'`{name}`' for name in known['missing'])}." if known["missing"] else ".")
    )


def tables(root: Path) -> str:
    results = load(root / RESULTS)
    parts = (of_ops(results), of_runs(results), of_mutations(load(root / MUTATIONS)))
    lines = [of_launches(load(root / LAUNCHED)), of_budgets(load(root / BUDGETS))]
    return "\n\n".join(["\n".join(part) for part in parts] + lines)


def page(text: str, generated: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"proof: expected {BEGIN} and {END} in {PAGE}")
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("record", help="keep what came of a run")
    keep.add_argument("name", choices=list(NAMES))
    keep.add_argument("junit", nargs="+", type=Path)
    keep.add_argument("--environment", type=Path, help="the environment.json of the GPU report that ran it")
    commands.add_parser("table", help=f"write {PAGE} anew")
    given = parser.parse_args(arguments)
    if given.command == "table":
        (root / PAGE).write_text(page((root / PAGE).read_text(), tables(root)))
        return 0
    if (given.name == "gpu") != bool(given.environment):
        parser.error("--environment belongs to `record gpu`: the report's environment.json")
    run = record(given.junit, given.environment, root)
    results = load(root / RESULTS) | {given.name: run}
    (root / RESULTS).parent.mkdir(parents=True, exist_ok=True)
    (root / RESULTS).write_text(json.dumps({name: results[name] for name in NAMES if name in results}, indent=1) + "\n")
    said = ", ".join(f"{run[outcome]} {outcome}" for outcome in reversed(OUTCOMES))
    print(f"{given.name}: {said}, at {commit_of(run)}")
    return int(run["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
