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
import contextlib
import datetime
import json
import mmap
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutations"
TREE, RESULTS = WORK / "tree", WORK / "results.jsonl"
OUT, EXPLAINED = ROOT / "docs/proof/mutations.json", ROOT / "docs/proof/mutations_explained.json"
ENOUGH = 0.95
TOOLS = ("plain", "asan", "tsan", "crash", "timeout")
CONTROL = -1  # the number of no mutant: what the tests must not catch
SURVIVED, UNREACHED, NOT_INTEGERS = "survived", "not reached", "no integers"

sys.path.insert(0, str(ROOT / "tests"))
from native import build, mutations  # noqa: E402


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


def tests_of(op: str) -> list[str]:
    files = sorted((ROOT / "tests").glob(f"test_{op}*.py"))
    return [str(file) for file in files if "load_or_skip(" in file.read_text()]


# ---- one op: a pytest session that runs its tests once as they are, then in a forked child for each mutant ----


class Trials:
    def __init__(self, op: str, keys: dict[int, str], jobs: int) -> None:
        self.op, self.keys, self.jobs = op, keys, jobs  # keys: of the mutants to try, by number
        self.reports: list[pytest.TestReport] = []
        self.kills: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed or not session.items:
            raise RuntimeError("no tests were collected")
        self.items = {item.nodeid: item for item in session.items}
        built = WORK / f"{self.op}-built.json"
        self.in_child(lambda: self.build_all(built), WORK / "build.log")
        known = {
            (name, tuple(sources), variant): path for name, sources, variant, path in json.loads(built.read_text())
        }
        anew = build.build
        build.build = lambda name, sources, variant="plain", *link_with: (
            known.get((name, tuple(sources), variant)) or anew(name, sources, variant, *link_with)
        )
        times, self.reach = self.baseline()
        self.times = {name: sum(seconds) for name, seconds in times.items()}
        self.try_all()
        return True

    def build_all(self, to: Path) -> None:
        built = []
        for module in {item.module for item in self.items.values()}:  # type: ignore[attr-defined]
            text = Path(module.__file__).read_text()
            for name, constant, variants in re.findall(r'compiling\("(\w+)", (\w+), ([^)]*)\)', text):
                for variant in ["plain", *eval(f"[{variants}]", vars(module))]:
                    begin = time.monotonic()
                    sources = getattr(module, constant)
                    built.append((name, sources, variant, str(build.build(name, sources, variant))))
                    say(f"{self.op}: compiled {name} {variant} in {time.monotonic() - begin:.0f} s")
        to.write_text(json.dumps(built))

    def in_child(self, work, log: Path) -> None:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            if status:
                raise RuntimeError(f"{self.op}: {log}\n{log.read_text()[-4000:]}")
            return
        with leaving(log):
            work()

    def baseline(self) -> tuple[dict[str, list[float]], dict[int, list[str]]]:
        """By test: its seconds. By site: the tests that reach it."""
        marks, said = WORK / f"{self.op}-marks", WORK / f"{self.op}-baseline.json"
        marks.write_bytes(bytes(1 << 15))
        os.environ["VGKERNELS_MUTANTS_REACHED"] = str(marks)
        self.in_child(lambda: self.measure(marks, said), WORK / f"{self.op}-baseline.log")
        del os.environ["VGKERNELS_MUTANTS_REACHED"]
        times, reached = json.loads(said.read_text())
        reach: dict[int, list[str]] = defaultdict(list)
        self.other = {place // 2 for places in reached.values() for place in places if place % 2}
        for name, places in reached.items():
            for place in places:
                if place % 2 == 0:
                    reach[place // 2].append(name)
        say(f"{self.op}: {len(times)} tests in {sum(map(sum, times.values())):.0f} s reach {len(reach)} sites")
        return times, reach

    def measure(self, marks: Path, said: Path) -> None:
        times: dict[str, list[float]] = defaultdict(list)
        reached: dict[str, list[int]] = {}
        with marks.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
            items = list(self.items.values())
            for item, following in zip(items, [*items[1:], None], strict=True):
                shared[:] = bytes(len(shared))
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                reached[item.nodeid] = [place for place, mark in enumerate(shared[:]) if mark]
        for report in self.reports:
            if report.failed and reached[report.nodeid]:  # a test that reaches no kernel decides nothing here
                raise RuntimeError(f"{report.nodeid} fails without a mutant:\n{report.longreprtext}")
            times[report.nodeid].append(report.duration)
        said.write_text(json.dumps([times, reached]))

    # -- mutants --

    def try_all(self) -> None:
        waiting = [CONTROL, *self.keys]
        self.reach[CONTROL] = sorted({name for number in self.keys for name in self.reach.get(number, ())})
        running: dict[int, tuple[int, float]] = {}
        self.waited: dict[int, tuple[str, float]] = {}
        now = time.monotonic()
        while waiting or running:
            while waiting and len(running) < self.jobs:
                number = waiting.pop(0)
                if number in self.reach:
                    running[self.start(number)] = number, time.monotonic()
                else:
                    self.record(number, NOT_INTEGERS if number in self.other else UNREACHED, "", 0)
            passed, now = min(time.monotonic() - now, 1), time.monotonic()  # a longer gap: all of us were stopped
            for child, (number, begin) in list(running.items()):
                done, status = os.waitpid(child, os.WNOHANG)
                seconds = time.monotonic() - begin
                if not done and not self.stands_still(number, passed):
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)  # with what it has started
                if not done:
                    _, status = os.waitpid(child, 0)
                del running[child]
                self.judge(number, status, seconds, done == child)
            time.sleep(0.02)

    def start(self, number: int) -> int:
        def order(name: str) -> float:
            return self.times[name] / (1 + self.kills[name])

        names = sorted(self.reach[number], key=order)
        if child := os.fork():
            return child
        with leaving(WORK / f"mutant-{number}.log"):
            os.setpgrp()
            os.environ["VGKERNELS_MUTANT"] = str(number)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            self.reports.clear()
            items = [self.items[name] for name in names]
            for item, following in zip(items, [*items[1:], None], strict=True):
                (WORK / f"mutant-{number}").write_text(item.nodeid)
                self.limit(item.nodeid)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if failed := [report for report in self.reports if report.failed]:
                    sys.stdout.write(failed[0].longreprtext)
                    sys.stdout.flush()
                    os._exit(1)
        return 0

    def limit(self, name: str) -> None:
        """Ten times a test's own time, counted in the processor's, which a busy machine does not lengthen; 16 GiB."""
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + 10 + 10 * self.times[name]), unlimited))
        sanitized = tool_of(name) != "plain"  # whose shadows are of terabytes
        resource.setrlimit(resource.RLIMIT_AS, (unlimited if sanitized else 16 << 30, unlimited))

    def stands_still(self, number: int, seconds: float) -> bool:
        """A test that neither ends nor uses the processor: memory was damaged, and a lock is held for ever."""
        current = WORK / f"mutant-{number}"
        test = current.read_text() if current.exists() else ""
        before, waited = self.waited.get(number, ("", 0.0))
        self.waited[number] = test, (waited + seconds if test == before else 0.0)
        return self.waited[number][1] > 120 + 30 * self.times.get(test, 0)

    def judge(self, number: int, status: int, seconds: float, ended: bool) -> None:
        current = WORK / f"mutant-{number}"
        test = current.read_text()
        current.unlink()
        if os.WIFSIGNALED(status):
            slow = not ended or os.WTERMSIG(status) == signal.SIGXCPU
            how = "timeout" if slow else "crash"
        else:
            how = {0: SURVIVED, 1: tool_of(test)}.get(os.WEXITSTATUS(status), "crash")
        if number == CONTROL:
            if how != SURVIVED:
                raise RuntimeError(f"no mutant was on, and {test} took it for one: {how}; {current}.log")
            return
        if how != SURVIVED:
            self.kills[test] += 1
            (WORK / f"mutant-{number}.log").unlink()
        self.record(number, how, test if how != SURVIVED else f"{len(self.reach[number])} tests", seconds)

    def record(self, number: int, how: str, test: str, seconds: float) -> None:
        with RESULTS.open("a") as file:
            line = {"site": self.keys[number], "op": self.op, "how": how, "test": test, "seconds": round(seconds, 1)}
            file.write(json.dumps(line) + "\n")
        say(f"{number:4} {how:12} {seconds:6.1f} s  {self.keys[number]}  {test.rpartition('/')[2]}")


def tool_of(test: str) -> str:
    return next((tool for tool in ("asan", "tsan") if re.search(rf"\[.*{tool}", test)), "plain")


@contextlib.contextmanager
def leaving(log: Path):
    """What a forked child does: output to a log; the process ends here, whatever happens."""
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        yield
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(2)


def say(line: str) -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "log").open("a") as file:
        file.write(f"{datetime.datetime.now():%H:%M:%S} {line}\n")


def serve(op: str, jobs: int) -> int:
    options = ["-s", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler"]
    todo = json.loads((WORK / "todo.json").read_text())
    trials = Trials(op, {int(number): key for number, key in todo.items()}, jobs)
    return int(pytest.main([*options, *tests_of(op)], plugins=[trials]))


# ---- all ops, and what is written down ----

HOWS = (*TOOLS, SURVIVED, NOT_INTEGERS, UNREACHED)


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
        (WORK / "todo.json").write_text(json.dumps(todo))
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
