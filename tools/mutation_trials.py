"""One op's mutants: a pytest session that runs its tests once as they are, then in a forked child for each mutant.

Decides what counts as caught and when a child is stopped; which mutants are tried is decided by tools/mutations.py.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import mmap
import os
import re
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutations"
TREE, RESULTS, TODO = WORK / "tree", WORK / "results.jsonl", WORK / "todo.json"
TOOLS = ("plain", "asan", "tsan", "crash", "timeout")
CONTROL = -1  # the number of no mutant: what the tests must not catch
SURVIVED, UNREACHED, NOT_INTEGERS = "survived", "not reached", "no integers"

sys.path.insert(0, str(ROOT / "tests"))
from native import build  # noqa: E402


def tests_of(op: str) -> list[str]:
    files = sorted((ROOT / "tests").glob(f"test_{op}*.py"))
    return [str(file) for file in files if "load_or_skip(" in file.read_text()]


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
    todo = json.loads(TODO.read_text())
    trials = Trials(op, {int(number): key for number, key in todo.items()}, jobs)
    return int(pytest.main([*options, *tests_of(op)], plugins=[trials]))
