"""compute-sanitizer's four tools around gpu_report_calls.py, at once, and what their logs say of our kernels.

Decides what counts as found. A tool first has to find the fault that is planted for it (gpu_report_planted.cu), else
its silence says nothing. All but initcheck watch our kernels alone; initcheck has to see everybody's writes, and other
people's reads of what nobody wrote are counted apart.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
OURS = "vgkernels"  # the namespace, in mangled names too
FOUND, NOT_THERE = 9, 77
PLANTED = Path(__file__).with_name("gpu_report_planted.cu")
PLANTED_LIMIT_S = 25.0
LINES = 200  # of each log's end


def command(tool: str, log: Path, program: Sequence[str]) -> list[str]:
    mine = [] if tool == "initcheck" else ["--kernel-name", f"kns={OURS}"]
    # torch probes for devices and kernels that are not there: errors of API calls are not ours
    quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []
    common = ["--tool", tool, "--error-exitcode", str(FOUND), "--show-backtrace", "no", "--log-file", str(log)]
    return ["compute-sanitizer", *common, *quiet, *mine, *program]


def reports(log: str) -> list[str]:
    """Each report of a log: its first line and what is indented below."""
    found: list[list[str]] = []
    for line in log.splitlines():
        if not (text := re.match(r"=========( ?)( *)(.*)", line)) or not text[3].strip():
            continue
        if text[2] and found:
            found[-1].append(text[3])
        elif not text[2]:
            found.append([text[3]])
    heads = r"COMPUTE-SANITIZER|.*SUMMARY|Target application|LEAK|Error: process didn't|Saved host backtrace"
    return ["\n".join(lines) for lines in found if not re.match(heads, lines[0])]


def verdict(tool: str, log: str, status: int | None) -> tuple[bool, str]:
    """(whether it passed, in a few words why); `status` None: stopped at its limit."""
    found = reports(log)
    mine = [text for text in found if OURS in text]
    others = f", {len(found) - len(mine)} of others' kernels" if len(found) > len(mine) else ""
    if mine:
        return False, f"{len(mine)} reports{others}"
    if status is None:
        return False, "timed out"
    if "SUMMARY" not in log:
        return False, f"no summary, exit status {status}"
    if status == FOUND and tool == "initcheck":
        return True, f"clean{others}"
    return (True, f"clean{others}") if status == 0 else (False, f"exit status {status}{others}")


def run(programs: Mapping[str, Sequence[str]], seconds: float, folder: Path) -> dict[str, tuple[bool, str]]:
    """Each tool around its program, all at once; their logs are printed."""
    end, results = time.monotonic() + seconds, {}
    folder = Path(tempfile.mkdtemp(dir=folder))  # another run's log is not this one's
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for tool, program in programs.items():
            with (folder / f"{tool}.out").open("wb") as out:
                around = command(tool, folder / f"{tool}.log", program)
                running[tool] = subprocess.Popen(around, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        for tool, process in running.items():
            try:
                status: int | None = process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = None
            log, said = (text_of(folder / f"{tool}.{kind}") for kind in ("log", "out"))
            passed, why = verdict(tool, log, status)
            results[tool] = passed, "; ".join([why, *re.findall(r"^figure: (.*)", said, re.MULTILINE)])
            for line in [*log.splitlines()[-LINES:], *said.splitlines()[-LINES:]]:
                print(f"{tool}: {line}")
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return results


def text_of(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def plant(folder: Path) -> Path | None:
    """The program with a fault for each tool, or None where there is no nvcc."""
    if not shutil.which("nvcc"):
        return None
    program = folder / "planted"
    done = subprocess.run(["nvcc", "-arch=native", "-lineinfo", "-o", str(program), str(PLANTED)], timeout=60)
    return program if done.returncode == 0 else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.gpu_report_sanitizers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=90, help="for all of it (default 90)")
    parser.add_argument("--dry-run", action="store_true", help="the same calls plainly, some of them, on the CPU")
    given = parser.parse_args(argv)
    if given.dry_run:
        from tools import gpu_report_calls

        print("dry run: plainly, without a sanitizer")
        return gpu_report_calls.main(["--every", "4"])
    if not shutil.which("compute-sanitizer"):
        print("compute-sanitizer is not on this machine: nothing was checked\nfigure: not there")
        return NOT_THERE
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # each tensor an allocation: an overrun of one is seen
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faults, sees = plant(folder), {}
        if faults:
            for tool, (_, why) in run({tool: [str(faults), tool] for tool in TOOLS}, PLANTED_LIMIT_S, folder).items():
                sees[tool] = "reports" in why
        left = end - time.monotonic()
        calls = [sys.executable, "-m", "tools.gpu_report_calls", "--device", "cuda", "--seconds", f"{left - 10:.0f}"]
        print("---- the calls", flush=True)
        results = run(dict.fromkeys(TOOLS, calls), left, folder)
    for tool, (passed, why) in results.items():
        proof = (
            "finds its planted fault"
            if sees.get(tool)
            else "BLIND to its planted fault"
            if sees
            else "no fault planted"
        )
        results[tool] = passed and sees.get(tool, True), f"{why}; {proof}"
    for tool, (passed, why) in results.items():
        print(f"{tool}: {'ok' if passed else 'FAILED'}: {why}")
    print("figure: " + ", ".join(f"{tool} {'ok' if passed else 'FAILED'}" for tool, (passed, _) in results.items()))
    return 0 if all(passed for passed, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
