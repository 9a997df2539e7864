"""The package as a package: version, typing mark, what setup.py decides, loading, falling back, the info report.

Installing for real takes minutes and is in tools/check_installs.sh.
"""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import vgkernels
from vgkernels import _native

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(vgkernels.__file__).parent


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("VGKERNELS_")}
    env = {**env, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=120)


def test_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", vgkernels.__version__)
    assert importlib.metadata.version("vgkernels") == vgkernels.__version__


def test_typing_mark_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert 'vgkernels = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()


# ---- what setup.py decides ----


def planned(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...] = (), **environment: str) -> dict:
    """The globals of setup.py, run with these commands or modules missing and this environment, building nothing."""
    which, access, find_spec = shutil.which, os.access, importlib.util.find_spec
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "VGKERNELS_CUDA", "VGKERNELS_NO_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setattr("shutil.which", lambda name, *rest: None if name in missing else which(name, *rest))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name not in missing and access(path, mode))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else find_spec(name))
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("missing", "environment", "reason"),
    [
        (("g++", "c++", "clang++"), {}, "no C++ compiler"),
        (("torch",), {}, "no torch was installed"),
        ((), {"VGKERNELS_NO_NATIVE": "1"}, "VGKERNELS_NO_NATIVE=1"),
    ],
)
def test_pure_python_has_a_reason(monkeypatch, missing, environment, reason) -> None:
    plan = planned(monkeypatch, missing, **environment)
    assert reason in plan["PLAN"]["why_no_cpu"]
    assert not plan["EXTENSIONS"]


@pytest.mark.parametrize(
    ("missing", "environment", "message"),
    [
        (("nvcc",), {"VGKERNELS_CUDA": "1"}, "VGKERNELS_CUDA=1, but there is no nvcc"),
        (("torch",), {"VGKERNELS_CUDA": "1"}, "VGKERNELS_CUDA=1 can't be followed: this is a build where no torch"),
        ((), {"VGKERNELS_CUDA": "1", "VGKERNELS_NO_NATIVE": "1"}, "this is a build with VGKERNELS_NO_NATIVE=1"),
        ((), {"VGKERNELS_CUDA": "yes"}, "VGKERNELS_CUDA must be 0 or 1"),
    ],
)
def test_what_was_asked_for_is_done_or_refused(monkeypatch, missing, environment, message) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        planned(monkeypatch, missing, **environment)


def test_cuda_can_be_forbidden(monkeypatch) -> None:
    plan = planned(monkeypatch, VGKERNELS_CUDA="0")
    assert [extension.name for extension in plan["EXTENSIONS"]] == ["vgkernels._C"]
    assert "VGKERNELS_CUDA=0" in plan["PLAN"]["why_no_cuda"]


def test_architecture_list(monkeypatch) -> None:
    setup = planned(monkeypatch)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;12.0+PTX")
    flags = [flag for arch in setup["cuda_archs"]("nvcc") for flag in setup["gencode"](arch)]
    pairs = ("80,code=sm_80", "90a,code=sm_90a", "120,code=sm_120", "120,code=compute_120")
    assert flags == [f"-gencode=arch=compute_{pair}" for pair in pairs]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="expected numbers such as"):
        setup["cuda_archs"]("nvcc")


def test_every_room_is_found(monkeypatch) -> None:
    (cpu,) = planned(monkeypatch, VGKERNELS_CUDA="0")["EXTENSIONS"]
    assert set(cpu.sources) == {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*/*.cpp")}


# ---- what make decides before anything is installed ----


def made(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` in a folder that holds only what its rules ask for, with no active environment unless one is given."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt", "tools/setup.sh"):
        shutil.copy(ROOT / name, folder / name)
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CXX", "PYTHON")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**env, **environment}, timeout=60)


@pytest.mark.parametrize("active", ["", ".venv"])
def test_a_path_with_a_space_is_no_obstacle(tmp_path: Path, active: str) -> None:
    folder = tmp_path / "sp ace"
    planned = made(folder, "-n", "demo", **({"VIRTUAL_ENV": str(folder / active)} if active else {}))
    assert planned.returncode == 0, planned.stderr
    assert "-m venv .venv\n" in planned.stdout and '".venv/bin/python" -m vgkernels_models' in planned.stdout
    assert str(tmp_path) not in planned.stdout


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({"VIRTUAL_ENV": "/tmp/gone"}, "VIRTUAL_ENV=/tmp/gone can't be used (no virtual environment is there)"),
        ({"VIRTUAL_ENV": "/tmp/sp ace"}, "VIRTUAL_ENV=/tmp/sp ace can't be used (its path has a space)"),
        ({"PYTHON": "/nonexistent"}, "there is no interpreter /nonexistent: name one with PYTHON="),
        ({"CXX": "/nonexistent -O2"}, "no C++ compiler /nonexistent (Debian, Ubuntu: apt install g++)"),
    ],
)
def test_what_make_cannot_use_is_said_in_one_line(tmp_path: Path, environment: dict[str, str], answer: str) -> None:
    refused = made(tmp_path, "demo", **environment)
    said = [line for line in refused.stderr.splitlines() if not re.search(r"\*\*\* \[.*Error 1$", line)]
    assert refused.returncode == 2 and len(said) == 1 and answer in said[0]
    assert not (tmp_path / ".venv").exists()


# ---- what is loaded, and what happens if it is not ----


def test_status_gives_a_reason_for_what_is_missing() -> None:
    status = _native.native_status()
    assert status.cpu_loaded == (not status.cpu_reason)
    assert status.cuda_loaded == (not status.cuda_reason)
    assert status.cpu_loaded or os.environ.get("VGKERNELS_REQUIRE_NATIVE") != "1", status.cpu_reason


def test_fallback_warns_once_for_an_op_and_reason(monkeypatch) -> None:
    monkeypatch.delenv("VGKERNELS_REQUIRE_NATIVE", raising=False)
    monkeypatch.setattr(_native, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for op, why in (("op_a", "x"), ("op_a", "x"), ("op_b", "x"), ("op_a", "y")):
            _native.fallback(op, why)
    assert [str(warning.message).split(";")[0] for warning in caught] == [
        f"{op}: no native kernel runs: {why}" for op, why in (("op_a", "x"), ("op_b", "x"), ("op_a", "y"))
    ]


def test_fallback_breaks_no_graph(monkeypatch) -> None:
    monkeypatch.delenv("VGKERNELS_REQUIRE_NATIVE", raising=False)
    monkeypatch.setattr(_native, "_warned", set())

    def double(x: torch.Tensor) -> torch.Tensor:
        _native.fallback("compiled", "test")
        return x * 2

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    with pytest.warns(UserWarning, match="compiled: no native kernel runs: test"):
        assert compiled(torch.ones(1)).item() == 2


def test_required_kernels_are_an_error(monkeypatch) -> None:
    monkeypatch.setenv("VGKERNELS_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match=r"op_a: no native kernel runs: x \(VGKERNELS_REQUIRE_NATIVE=1\)"):
        _native.fallback("op_a", "x")


CALL = """
import torch, vgkernels
image, flow = torch.rand(1, 2, 5, 6), torch.zeros(1, 2, 5, 6)
print(torch.equal(vgkernels.flow_warp(image, flow), image))
"""


def test_kernels_can_be_switched_off_at_run_time() -> None:
    off = run_python("-c", CALL, VGKERNELS_NO_NATIVE="1")
    assert (off.returncode, off.stdout) == (0, "True\n")
    assert off.stderr.count("UserWarning: flow_warp: no native kernel runs") == 1
    assert "<string>:4" in off.stderr  # the caller's line, not ours
    required = run_python("-c", CALL, VGKERNELS_NO_NATIVE="1", VGKERNELS_REQUIRE_NATIVE="1")
    assert required.returncode == 1
    assert "RuntimeError: flow_warp: no native kernel runs" in required.stderr


def test_libraries_hold_no_cpython_and_no_loose_ends() -> None:
    faults = runpy.run_path(str(ROOT / "tools/check_symbols.py"))["faults"]
    libraries = sorted(PACKAGE.glob("_C*.abi3.so"))
    assert libraries or not _native.native_status().cpu_loaded
    assert [fault for library in libraries for fault in faults(str(library))] == []
    assert any("libtorch_python" in fault for fault in faults(torch._C.__file__))  # it does find such a thing


# ---- python -m vgkernels.info ----


def test_info_says_what_is_built_and_loaded() -> None:
    shown = run_python("-m", "vgkernels.info", VGKERNELS_NO_NATIVE="1")
    assert shown.returncode == 0, shown.stderr
    for line in (
        rf"^vgkernels +{re.escape(vgkernels.__version__)} ",
        rf"^torch +{re.escape(torch.__version__)}, CUDA",
        r"^cpu kernels +not loaded: VGKERNELS_NO_NATIVE=1 is set$",
        r"^cuda kernels +not loaded: ",
        r"^(built|cpu build) +\S",
        r"^environment +.*VGKERNELS_NO_NATIVE=1",
    ):
        assert re.search(line, shown.stdout, re.MULTILINE), f"{line} not in\n{shown.stdout}"


def test_broken_torch_gets_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    shown = run_python("-m", "vgkernels.info", PYTHONPATH=path)
    assert shown.returncode == 0, shown.stderr
    assert "BROKEN OR MISSING: OSError: libtorch_cpu.so" in shown.stdout
    imported = run_python("-c", "import vgkernels", PYTHONPATH=path)
    assert imported.returncode == 1
    assert "ImportError: vgkernels needs PyTorch >= 2.11" in imported.stderr.splitlines()[-1]


# ---- the repository ----


def test_no_file_names_a_machine_or_a_package_index() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    own = r"(?<![\w.}])/(?:work|root|home|mnt)/|/(?:opt)/[a-z]|index-(?:url)|find-(?:links)|trusted-(?:host)"
    named = []
    for path in (ROOT / name for name in listed.stdout.split("\0") if name):
        if path.is_file():
            named += [f"{path}: {found[0]}" for found in re.finditer(own, path.read_text(errors="replace"))]
    assert not named
