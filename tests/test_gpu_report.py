"""The GPU report's own machinery, with faults put in its way: steps that fail or take too long, logs of sanitizers,
calls whose bits change. Whether kernels are right is not asked here; `make gpu-report ARGS=--dry-run` asks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vgkernels
from tools import (
    gpu_report_calls as calls,
    gpu_report_environment as environment,
    gpu_report_sanitizers as sanitizers,
    gpu_report_suite as suite,
)
from tools.gpu_report_calls import Call

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools/gpu_report.sh"
STEPS = ("environment", "build", "suite", "sanitizers", "benchmarks", "determinism")
KILL_AFTER_S = 5


def executable(file: Path, text: str) -> Path:
    file.write_text("#!/usr/bin/env bash\n" + text)
    file.chmod(0o755)
    return file


# ---- the script ----


def test_limits_add_up_to_less_than_8_minutes() -> None:
    source = SCRIPT.read_text()
    limits = dict(re.findall(r"^step (\w+) (\d+) ", source, re.MULTILINE))
    assert tuple(limits) == STEPS and f"--kill-after={KILL_AFTER_S}" in source
    assert sum(map(int, limits.values())) + KILL_AFTER_S * len(limits) < 8 * 60
    page = (ROOT / "docs/gpu.md").read_text()
    assert all(f"| {name} | {limit} s |" in page for name, limit in limits.items())
    for name in ("sanitizers", "determinism", "benchmarks"):  # what a step allows itself ends before it is stopped
        for seconds in re.findall(rf"{name}=\([^)]*--seconds (\d+)", source):
            assert int(seconds) + 10 <= int(limits[name])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_report_and_its_step(tmp_path: Path, number: int) -> None:
    fake = executable(tmp_path / "python", f"echo $$ >{tmp_path}/step; exec sleep 60")
    script = subprocess.Popen(
        [SCRIPT, "--dry-run", tmp_path / "out"],
        env={**os.environ, "PYTHON": str(fake)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "step").exists() or not (tmp_path / "step").read_text():
        time.sleep(0.01)
    os.killpg(script.pid, number)
    assert script.communicate(timeout=30)[1] == f"{SCRIPT}: interrupted\n"
    assert script.returncode == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "step").read_text()), 0)


@pytest.mark.parametrize(
    ("arguments", "python", "said"),
    [
        (["--bogus"], "python3", "usage: "),
        ([], "python3", "usage: "),
        (["out"], "/nowhere/python", "there is no interpreter /nowhere/python"),
    ],
)
def test_what_is_refused_at_once(tmp_path: Path, arguments: list[str], python: str, said: str) -> None:
    environment = {**os.environ, "PYTHON": python}
    done = subprocess.run([SCRIPT, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "gpu"])
def test_what_fails_or_takes_too_long_goes_on_to_the_next_step(tmp_path: Path, dry: bool) -> None:
    fake = """
case "$*" in
  *"-c import xdist"*) exit 1 ;;
  *gpu_report_suite*) echo "figure: 3 passed, 1 failed, 0 skipped"; exit 1 ;;
  *gpu_report_sanitizers*) echo "figure: not there"; exit 77 ;;
  *benchmarks*) echo "one row"; exit 124 ;;
  *) echo "figure: fine"; echo "and more" ;;
esac
"""
    python = executable(tmp_path / "python", fake)
    executable(tmp_path / "timeout", 'while [[ $1 == --* || $1 == [0-9]* ]]; do shift; done\nexec "$@"\n')
    folder = tmp_path / "a folder"
    command = [str(SCRIPT), *(["--dry-run"] if dry else []), str(folder)]
    paths = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**os.environ, "PATH": paths, "PYTHON": str(python)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stdout.splitlines()[-len(STEPS) :]
    assert [line.split()[0] for line in last] == list(STEPS)
    found = [re.split(r"  +", line, maxsplit=3)[-2:] for line in last]
    assert [line.rsplit("  ", 1)[-1].strip() for line in last] == [
        "fine",
        "fine",
        "3 passed, 1 failed, 0 skipped",
        "not there",
        "one row",
        "fine",
    ]
    assert [status for status, _ in found] == [
        "ok",
        "ok",
        "failed",
        "not there",
        "timed out",
        "ok",
    ]
    assert (folder / "summary.txt").read_text() in done.stdout and ("dry run" in done.stdout) == dry
    assert "and more" in (folder / "log.txt").read_text()


def test_all_ok_exits_with_0_and_bad_arguments_with_2(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "echo 'figure: fine'\n")
    for arguments, status in ((["--dry-run", str(tmp_path / "a")], 0), ([], 2), (["a", "b"], 2)):
        variables = {**os.environ, "PYTHON": str(python)}
        assert subprocess.run([SCRIPT, *arguments], env=variables, capture_output=True).returncode == status


# ---- environment ----


def test_commit_is_gits_or_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "said", lambda *command: "")
    monkeypatch.delenv(environment.COMMIT, raising=False)
    assert environment.commit() == ("unknown", None)
    monkeypatch.setenv(environment.COMMIT, "0123abc-dirty")
    assert environment.commit() == ("0123abc", True)
    monkeypatch.setenv(environment.COMMIT, "0123abc")
    assert environment.commit() == ("0123abc", False)


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "environment.json"
    assert environment.main([str(file)]) == 1 and "figure: no GPU" in capsys.readouterr().out
    assert environment.main([str(file), "--dry-run"]) == 0
    assert {"commit", "dirty", "torch", "nvcc", "device", "dry_run"} <= set(json.loads(file.read_text()))


# ---- the suite ----


def test_suite_counts_and_no_test_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text("import pytest\ndef test_a(): pass\ndef test_b(): 1 / 0\ndef test_c(): pytest.skip()\n")
    report = tmp_path / "suite.xml"
    command = [sys.executable, "-m", "tools.gpu_report_suite", str(report), f"--rootdir={tmp_path}"]
    done = subprocess.run([*command, str(tests)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.endswith("figure: 1 passed, 1 failed, 1 skipped\n")
    done = subprocess.run([*command, str(tests), "-k", "nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 5 and done.stdout.endswith("figure: 0 passed, 0 failed, 0 skipped\n")
    assert suite.figure(tmp_path / "nosuch.xml") == "no report"


# ---- sanitizers ----

HEAD = "========= COMPUTE-SANITIZER\n"
OURS = """\
========= Invalid __global__ write of size 4 bytes
=========     at void vgkernels::flow_warp_cuda::<unnamed>::forward<float>(T1)+0x110 in flow_warp_cuda.cu:40
=========     by thread (33,0,0) in block (0,0,0)
=========     Access to 0x7f0 is out of bounds
=========
"""
RACE = """\
========= Error: Race reported between Write access at vgkernels::k(float *)+0x90
=========     and Read access at vgkernels::k(float *)+0xb0 [252 hazards]
=========
"""
OTHERS = """\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void cudnn::convolve(float *)+0x110
=========     by thread (33,0,0) in block (0,0,0)
=========
"""
SUMMARY = "========= ERROR SUMMARY: {} errors\n"


@pytest.mark.parametrize(
    ("tool", "log", "status", "expected"),
    [
        ("memcheck", HEAD + SUMMARY.format(0), 0, (True, "clean")),
        ("memcheck", HEAD + OURS + OURS + SUMMARY.format(2), 9, (False, "2 reports")),
        ("memcheck", HEAD + OURS, None, (False, "1 reports")),
        ("memcheck", HEAD, None, (False, "timed out")),
        ("memcheck", "========= Error: Device not supported\n", 1, (False, "no summary, exit status 1")),
        ("memcheck", "", 0, (False, "no summary, exit status 0")),
        ("memcheck", HEAD + SUMMARY.format(0), 1, (False, "exit status 1")),
        ("memcheck", HEAD + OTHERS + SUMMARY.format(1), 9, (False, "exit status 9, 1 of others' kernels")),
        ("racecheck", HEAD + RACE + "========= RACECHECK SUMMARY: 1 hazard displayed\n", 9, (False, "1 reports")),
        ("racecheck", HEAD + "========= RACECHECK SUMMARY: 0 hazards displayed\n", 0, (True, "clean")),
        ("initcheck", HEAD + OTHERS + SUMMARY.format(1), 9, (True, "clean, 1 of others' kernels")),
        (
            "initcheck",
            HEAD + OTHERS + OURS + SUMMARY.format(2),
            9,
            (False, "1 reports, 1 of others' kernels"),
        ),
    ],
)
def test_verdict_on_a_log(tool: str, log: str, status: int | None, expected: tuple[bool, str]) -> None:
    assert sanitizers.verdict(tool, log, status) == expected


def test_only_initcheck_sees_all_kernels() -> None:
    for tool in sanitizers.TOOLS:
        command = sanitizers.command(tool, Path("log"), ["program"])
        assert ("kns=vgkernels" in command) == (tool != "initcheck")
        assert command[command.index("--error-exitcode") + 1] == "9" and command[-1] == "program"


def test_without_the_sanitizer_is_not_a_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert sanitizers.main([]) == sanitizers.NOT_THERE and "figure: not there" in capsys.readouterr().out


FAKE_SANITIZER = """
while [[ $1 == --* ]]; do [[ $1 == --log-file ]] && log=$2; [[ $1 == --tool ]] && tool=$2; shift 2; done
case "$*" in
  *planted*) [[ $tool == $BLIND ]] || echo "========= Found at vgkernels::planted" >>"$log" ;;
  *) echo "figure: 5 of 5 calls, 0 failed"; [[ $tool == $FAULTY ]] && echo "========= Found at vgkernels::k" >>"$log" ;;
esac
[[ $tool == $SLOW && $* != *planted* ]] && sleep 60
echo "========= ERROR SUMMARY: some" >>"$log"
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NONE", "ok: clean; 5 of 5 calls, 0 failed; finds its planted fault"),
        ("BLIND", "BLIND"),
        ("FAULTY", "1 reports"),
        ("SLOW", "timed out"),
    ],
)
def test_sanitizers_have_to_find_what_is_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, expected: str
) -> None:
    executable(tmp_path / "compute-sanitizer", FAKE_SANITIZER)
    executable(tmp_path / "nvcc", 'while [[ $1 != -o ]]; do shift; done; touch "$2"\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")
    for variable in ("BLIND", "FAULTY", "SLOW"):
        monkeypatch.setenv(variable, "racecheck" if variable == kind else "no tool")
    assert sanitizers.main(["--seconds", "3"]) == (kind != "NONE")
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if re.match("racecheck: (ok|FAILED): ", line))
    assert expected in line
    assert said.splitlines()[-1].count("FAILED") == (kind != "NONE")


def test_planted_faults_compile(tmp_path: Path) -> None:
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc on PATH")
    command = ["nvcc", "-arch=sm_90", "-Werror", "all-warnings", "-c", "-o", str(tmp_path / "planted.o")]
    done = subprocess.run([*command, str(sanitizers.PLANTED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source = sanitizers.PLANTED.read_text()
    assert all(f'strcmp(tool, "{tool}")' in source for tool in sanitizers.TOOLS)


# ---- calls ----


def test_calls_have_every_op_dtype_and_stage() -> None:
    for large in (False, True):
        found = {tuple(call.name.split()[:2]) for call in calls.chosen("cpu", large)}
        ops = ("flow_warp", "flow_warp_blend", "svc_projection", "svc_projection_", "sliced_wasserstein", "conv_gru")
        assert found == {(op, str(dtype).split(".")[1]) for op in ops for dtype in calls.DTYPES}
        stages = {call.environment.get(calls.STAGE) for call in calls.chosen("cpu", large)}
        assert stages == {None, "library", "gemm", "persistent"}
    assert all(hasattr(vgkernels, op) for op in ops)
    few = calls.chosen("cpu", large=False, every=100)
    assert {tuple(call.name.split()[:2]) for call in few} == found  # one of each
    assert len({call.name for call in calls.chosen("cpu", large=False)}) == len(calls.chosen("cpu", large=False))


def test_a_call_that_raises_or_gives_nan_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ones = (torch.ones(3),)
    made = [Call("good", torch.sin, ones, 1), Call("bad", torch.log, (-ones[0],)), Call("worse", lambda x: 1 / 0, ones)]
    monkeypatch.setattr(calls, "chosen", lambda *about, **more: made)
    assert calls.main([]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "bad fwd: NaN or Inf",
        "worse fwd: ZeroDivisionError: division by zero",
        "figure: 3 of 3 calls, 2 failed",
    ]
    monkeypatch.setattr(calls, "chosen", lambda *about, **more: made[:1])
    assert calls.main([]) == 0 and calls.main(["--seconds", "-1"]) == 0
    assert "figure: 0 of 1 calls" in capsys.readouterr().out


def test_calls_work_on_copies_under_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VGKERNELS_TOY", raising=False)
    seen = []

    def halve(x: torch.Tensor) -> None:
        seen.append(os.environ["VGKERNELS_TOY"])
        x /= 2

    call = Call("halve", halve, (torch.ones(3),), environment={"VGKERNELS_TOY": "1"}, in_place=True)
    (got,) = call.run("fwd", call.inputs())
    assert got.eq(0.5).all() and call.tensors[0].eq(1).all() and seen == ["1"] and "VGKERNELS_TOY" not in os.environ
