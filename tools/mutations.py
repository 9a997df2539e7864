"""Decides how it is measured what the tests catch: takes every barrier, bound check, atomic, mask and index clamp from
the kernels and CPU cores, one at a time, and runs the torch-free tests that reach it until one fails.

    python tools/mutations.py                 all, in an hour or two; writes docs/proof/mutations.json
    python tools/mutations.py --op flow_warp --only 'min\\(' --list

What can be taken away is read off the sources by tests/native/mutations.py. Every op is compiled once, with switches;
one process imports its tests and forks a child for each mutant. Caught is what makes a test fail, crash, or take ten
times its time. What survives has a line of reason in docs/proof/mutations_explained.json, by the site's key.
What was caught once is not tried again, even where tests have changed since, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT, EXPLAINED = ROOT / "docs/proof/mutations.json", ROOT / "docs/proof/mutations_explained.json"
ENOUGH = 0.95

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from native import build, mutations  # noqa: E402

from tools.mutation_trials import (  # noqa: E402
    NOT_INTEGERS,
    RESULTS,
    SURVIVED,
    TODO,
    TOOLS,
    TREE,
    UNREACHED,
    WORK,
    say,
    serve,
)

HOWS = (*TOOLS, SURVIVED, NOT_INTEGERS, UNREACHED)


def modules() -> dict[str, set[str]]:
    """By op: the sources of its torch-free modules, which tests name in EMULATED and SOURCES, with their headers."""
    found: dict[str, set[str]] = defaultdict(set)
    for op in sorted(folder.name for folder in (ROOT / "csrc").iterdir() if folder.is_dir()):
        for path in (*(ROOT / "tests").glob(f"test_{op}_*.py"), *(ROOT / "tests").glob(f"{op}_*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("EMULATED", "SOURCES"):
                    for source in ast.literal_eval(node.value):
                        headers = build._with_headers(ROOT / source)
                        found[op] |= {file.relative_to(ROOT).as_posix() for file in headers if "csrc" in file.parts}
    return found


def results() -> dict[str, dict[str, dict]]:
    """By site, by op: the latest result."""
    found: dict[str, dict[str, dict]] = defaultdict(dict)
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        result = json.loads(line)
        found[result["site"]][result["op"]] = result
    return found


def best(by_op: dict[str, dict]) -> dict:
    """A site that several ops share is caught where one op's tests catch it."""
    return min(by_op.values(), key=lambda result: HOWS.index(result["how"]))


def summary(sites: Sequence[mutations.Site], equivalent: dict[str, str], known_holes: dict[str, str]) -> dict:
    """What is written down. An equivalent mutant can't be caught: nothing that anybody can see depends on it."""
    known = results()
    rows: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    survivors, seconds = [], 0.0
    for site in sites:
        if not (by_op := known.get(site.key)):
            continue
        how = best(by_op)["how"]
        seconds += sum(one["seconds"] for one in by_op.values())
        row = rows[site.file.split("/")[1]][site.kind]
        if how in (*TOOLS, NOT_INTEGERS):
            row[how] += 1
            continue
        row["equivalent" if site.key in equivalent else "explained" if site.key in known_holes else "unexplained"] += 1
        reason = equivalent.get(site.key) or known_holes.get(site.key) or ""
        survivors.append({"site": site.key, "line": site.line, "kind": site.kind, "how": how, "reason": reason})
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for by_kind in rows.values():
        for kind, counts in by_kind.items():
            kinds[kind if kind == "plan" else "kernels and cores"] += counts
            kinds["all"] += counts
    return {
        "command": "python tools/mutations.py",
        "date": f"{datetime.date.today()}",
        **git_state(),
        "seconds": round(seconds),
        "score": {name: score(counts) for name, counts in sorted(kinds.items())},
        "by op and kind": {op: {kind: dict(counts) for kind, counts in row.items()} for op, row in rows.items()},
        "survivors": survivors,
    }


def git_state() -> dict[str, Any]:
    """The commit, and whether sources or tests differ from it; what is written down here is no difference."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", ".", ":!docs/proof*"))}


def score(counts: Counter[str]) -> dict:
    sites = counts.total() - counts[NOT_INTEGERS]
    caught = sum(counts[tool] for tool in TOOLS)
    live = sites - counts["equivalent"]
    shares = {"caught of all": caught / max(sites, 1), "caught of what is not equivalent": caught / max(live, 1)}
    return {"sites": sites, "caught": caught, **counts} | {name: round(share, 4) for name, share in shares.items()}


def pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no pattern: {error}") from error
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ops = modules()
    parser.add_argument("--op", action="append", choices=sorted(ops), help="only sites that this op is compiled from")
    parser.add_argument("--only", default="", type=pattern, help="only sites whose key matches this pattern")
    parser.add_argument("--list", action="store_true", help="print the sites, try nothing")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results (else survivors are tried again)")
    parser.add_argument("-j", type=int, default=2, choices=range(1, 65), metavar="J", help="mutants at a time")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.j)

    sites = mutations.write(ROOT, TREE, sorted(set().union(*ops.values())))
    reasons = json.loads(EXPLAINED.read_text())
    equivalent, known_holes = reasons["equivalent"], reasons["not seen by these tests"]
    if stale := sorted({*equivalent, *known_holes} - {site.key for site in sites.values()}):
        print("explained, but in no source:\n  " + "\n  ".join(stale))
        return 1
    files = set().union(*(ops[op] for op in options.op or ops))
    chosen = [
        (number, site) for number, site in sites.items() if site.file in files and re.search(options.only, site.key)
    ]
    if not chosen:
        print(f"no site matches --only {options.only!r}" + (f" in {', '.join(options.op)}" if options.op else ""))
        return 2
    if options.list:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head`
        for number, site in chosen:
            print(f"{number:4} {site.kind:8}{site.key}")
        return 0
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    environment = dict(os.environ, VGKERNELS_NATIVE_SOURCES=str(TREE), HYPOTHESIS_PROFILE="ci", OMP_NUM_THREADS="1")
    broken = False
    for op, sources in sorted(ops.items()):
        known, todo = results(), {}
        for number, site in chosen:
            done = best(known[site.key])["how"] if site.key in known else ""
            settled = done in (*TOOLS, NOT_INTEGERS) or (done and site.key in equivalent)
            if site.file in sources and not settled:
                todo[number] = site.key
        if (options.op and op not in options.op) or not todo:
            continue
        say(f"{op}: {len(todo)} mutants")
        TODO.write_text(json.dumps(todo))
        command = [sys.executable, __file__, "--serve", op, "-j", str(options.j)]
        if code := subprocess.run(command, cwd=ROOT, env=environment).returncode:
            print(f"{op}: the tests could not be run ({code}); see {WORK}/*.log")
            broken = True
    found = summary(list(sites.values()), equivalent, known_holes)
    print(json.dumps({name: value for name, value in found.items() if name != "survivors"}, indent=1))
    for survivor in found["survivors"]:
        print(f"{survivor['how']}, {survivor['reason'] or 'NOT EXPLAINED'}: line {survivor['line']} {survivor['site']}")
    if not options.op and not options.only:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    total = found["score"]["all"]
    return int(broken or total["caught of what is not equivalent"] < ENOUGH or total.get("unexplained", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
