"""Decides how C++ and emulated .cu sources become a pybind11 module, with or without sanitizers, and how that is run.

Knows no op: what is built from what is said by each test. Needs g++, CUDA's headers and pybind11; no torch, no nvcc.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(os.environ.get("VGKERNELS_NATIVE_SOURCES", ROOT))  # elsewhere: a mutated copy (tools/mutations.py)
INCLUDE = (SOURCES / "csrc", SOURCES / "tests" / "native")
BUILD = ROOT / "build" / "native"

FLAGS = ["-std=c++17", "-DVG_DEBUG", "-fPIC", "-fno-strict-aliasing", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # #pragma unroll is nvcc's
VARIANTS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"],
    "tsan": ["-O1", "-g", "-fsanitize=thread"],
}
# A *_bindings.cpp only passes pointers on: one object without instrumentation serves every variant (7 s against 65 s).
BINDINGS = ["-O0"]
RUNTIMES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}


class NativeUnavailable(RuntimeError):
    """This machine can't build emulated kernels; the message is one line, fit for pytest.skip."""


def load(name: str, sources: Sequence[str], variant: str | None = None) -> ModuleType:
    """Build (if needed) and import the module; the variant defaults to that of the run_sanitized around us."""
    path = build(name, sources, variant or os.environ.get("VGKERNELS_NATIVE_VARIANT", "plain"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name: str, sources: Sequence[str], variant: str = "plain", link_with: Sequence[str] = ()) -> Path:
    """Compile sources (paths from the repository's root) into `name`.so; unchanged ones are not compiled again."""
    # Bindings last: of an inline function that both have, the linker takes the first, which is the instrumented one.
    objects = [str(_compile(SOURCES / source, variant)) for source in sorted(sources, key=_is_bindings)]
    link = [_compiler(), "-shared", *VARIANTS[variant], *objects, *link_with]
    return _make(BUILD / variant / _digest(link) / f"{name}.so", link)


def run_sanitized(variant: str, run: str | Sequence[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Python code (a string) or pytest arguments (a list) under the variant's runtime; reports come on stderr.

    Build the modules before, or they are compiled inside. The code can `from native import build`, as tests do.
    """
    python = [sys.executable, "-c", run] if isinstance(run, str) else [sys.executable, "-m", "pytest", *run]
    environment = dict(
        os.environ,
        LD_PRELOAD=" ".join(_runtime(library) for library in RUNTIMES[variant]),
        VGKERNELS_NATIVE_VARIANT=variant,
        PYTHONPATH=os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        ASAN_OPTIONS="detect_leaks=0",  # CPython keeps memory until the process ends
        UBSAN_OPTIONS="print_stacktrace=1",
        TSAN_OPTIONS="exitcode=66",
        OPENBLAS_NUM_THREADS="1",  # NumPy's threads are not compiled with TSan, which takes them for racing
    )
    # TSan's shadow is at fixed addresses, which a randomised layout may have given to others.
    fixed_layout = [setarch, "-R"] if variant == "tsan" and (setarch := shutil.which("setarch")) else []
    return subprocess.run(
        [*fixed_layout, *python], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


@functools.cache
def cuda_include() -> Path:
    """The folder of CUDA's headers: $CUDA_HOME, then the toolkit of the nvcc on PATH, then /usr/local/cuda."""
    homes = [Path(os.environ[variable]) for variable in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(variable)]
    if nvcc := shutil.which("nvcc"):
        said = subprocess.run([nvcc, "-v", "--dryrun", "any.cu"], capture_output=True, text=True).stderr
        homes += [Path(top).resolve() for top in re.findall(r"^#\$ TOP=(.+?)\s*$", said, re.MULTILINE)]
    homes.append(Path("/usr/local/cuda"))
    for home in homes:
        for include in (home / "include", home / "targets" / "x86_64-linux" / "include"):
            if (include / "cuda_runtime.h").is_file():
                return include
    raise NativeUnavailable("no CUDA headers: set CUDA_HOME to a folder with include/cuda_runtime.h")


@functools.cache
def _compiler() -> str:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise NativeUnavailable(f"the CUDA emulator runs on x86-64 Linux, not on {sys.platform} {platform.machine()}")
    if compiler := shutil.which("g++"):
        return compiler
    raise NativeUnavailable("no g++ on PATH")


def _compile(source: Path, variant: str) -> Path:
    try:
        import numpy  # noqa: F401  (the bindings' arrays)
        import pybind11
    except ImportError as missing:
        raise NativeUnavailable(f"no {missing.name} in this Python") from None
    system = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    folder, flags = ("bindings", BINDINGS) if _is_bindings(source) else (variant, VARIANTS[variant])
    return compile_with(source, folder, flags, system)


def compile_with(source: Path, folder: str, flags: Sequence[str], system: Sequence[str]) -> Path:
    """The object of a source, which sees our headers, CUDA's and those in the `system` folders."""
    command = [_compiler(), *FLAGS, *flags, *(f"-I{include}" for include in INCLUDE)]
    command += [argument for include in (cuda_include(), *system) for argument in ("-isystem", str(include))]
    texts = [file.read_text() for file in sorted(_with_headers(source))]
    target = BUILD / folder / _digest([*command, str(source), *texts]) / f"{source.name}.o"
    return _make(target, [*command, "-x", "c++", "-c", str(source)])


def _is_bindings(source: Path | str) -> bool:
    return str(source).endswith("_bindings.cpp")


def _with_headers(source: Path) -> set[Path]:
    """The source and our own headers that it includes, directly or not."""
    found: set[Path] = set()
    todo = [source]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        for name in re.findall(r'^\s*#\s*(?:include|define VG_ISA_FILE)\s*"([^"]+)"', file.read_text(), re.MULTILINE):
            todo += [folder / name for folder in (file.parent, *INCLUDE) if (folder / name).is_file()]
    return found


def _make(target: Path, command: list[str]) -> Path:
    """Run the command for a target that is not there; whole files only appear, also when two processes build."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([*command, "-o", str(unfinished)], env=environment, capture_output=True, text=True)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    os.replace(unfinished, target)
    return target


def _runtime(library: str) -> str:
    path = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        raise NativeUnavailable(f"gcc has no {library}")
    return path


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([_compiler_version(), *parts]).encode()).hexdigest()[:16]
