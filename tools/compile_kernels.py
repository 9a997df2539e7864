"""Compiles every .cu alone by nvcc for each architecture, warnings and spills as errors, and prints what ptxas says.

Needs no torch and no GPU; where there is no nvcc it says so and exits 0. Decides nothing about the package's own build
(setup.py), nor what a kernel may use (kernel_budgets.py). What compiled is kept in build/kernels by the hash of its
sources, so a second run is immediate.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "kernels"
ARCHS = ("80", "90", "100", "120")
FLAGS = ["-std=c++17", "-O3", "-Icsrc", "-DVG_CUDA", "--Werror", "all-warnings"]
FLAGS += ["-Xptxas", "-v,-warn-spills,-warn-lmem-usage"]


class Kernel(NamedTuple):
    name: str
    arch: str
    registers: int
    spilled: int
    shared: int
    stack: int


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    candidates = [f"{home}/bin/nvcc" if home else None, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


class Compiled(NamedTuple):
    good: bool  # without a warning
    log: str  # what nvcc printed
    cubin: Path


def compile_one(nvcc: str, version: str, source: Path, arch: str) -> Compiled:
    """From the cache if no source has changed."""
    seen = [source, *sorted(source.parent.glob("*.h")), *sorted((ROOT / "csrc/common").glob("*.h"))]
    text = b"".join(path.read_bytes() for path in seen) + " ".join([version, arch, *FLAGS]).encode()
    name = CACHE / f"{source.stem}.sm_{arch}.{hashlib.sha256(text).hexdigest()[:16]}"
    cubin, log = Path(f"{name}.cubin"), Path(f"{name}.log")
    if log.exists():
        return Compiled(True, log.read_text(), cubin)
    for old in CACHE.glob(f"{source.stem}.sm_{arch}.*"):
        old.unlink()
    relative = str(source.relative_to(ROOT))
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", "-cubin", relative, "-o", str(cubin)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode or "warning" in output:
        faults = [line for line in output.splitlines() if re.search("error|warning", line)]
        return Compiled(False, "\n".join([f"{relative} for sm_{arch}:", *faults]) + "\n", cubin)
    log.write_text(output)
    return Compiled(True, output, cubin)


def nvcc_version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))


def compile_all(nvcc: str) -> list[Compiled]:
    """Every .cu for every architecture."""
    version = nvcc_version(nvcc)
    CACHE.mkdir(parents=True, exist_ok=True)
    jobs = [(source, arch) for source in sorted((ROOT / "csrc").glob("*/*.cu")) for arch in ARCHS]
    with workers() as pool:
        return list(pool.map(lambda job: compile_one(nvcc, version, *job), jobs))


def kernels(log: str) -> list[Kernel]:
    """The entry functions that `ptxas -v` reported."""
    found = []
    for part in log.split("Compiling entry function ")[1:]:
        name, arch = re.findall(r"'(\w+)' for 'sm_(\w+)'", part)[0]
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        stack = sum(int(n) for n in re.findall(r"(\d+) bytes stack frame", part))
        shared = int((re.findall(r"(\d+) bytes smem", part) or ["0"])[0])
        found.append(Kernel(name, arch, int(re.findall(r"Used (\d+) registers", part)[0]), spills, shared, stack))
    return found


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and parameters; the same for all architectures, as the mangled names are not."""
    if shutil.which("c++filt"):
        command = ["c++filt", "--no-params"]
        names = subprocess.run(
            command, input="\n".join(names), capture_output=True, text=True, check=True
        ).stdout.split("\n")
    return [re.sub(r"\(anonymous namespace\)::|\b[a-z_]+::|^void ", "", name) for name in names]


def table(rows: list[Kernel]) -> str:
    named = sorted(zip(readable([row.name for row in rows]), rows, strict=True), key=lambda pair: pair[0])
    title = "registers / spilled bytes / shared bytes"
    width = max(len(title), *(len(name) for name, _ in named))
    lines = [f"{title:<{width}}" + "".join(f"{'sm_' + arch:>16}" for arch in ARCHS)]
    for name, group in groupby(named, key=lambda pair: pair[0]):
        cells = {row.arch: f"{row.registers} / {row.spilled} / {row.shared}" for _, row in group}
        lines.append(f"{name:<{width}}" + "".join(f"{cells.get(arch, '-'):>16}" for arch in ARCHS))
    return "\n".join(lines)


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("kernels: SKIPPED, there is no nvcc here (put it on PATH or set CUDA_HOME)")
        return 0
    results = compile_all(nvcc)
    logs = [result.log for result in results if result.good]
    rows = [kernel for log in logs for kernel in kernels(log)]
    if rows:
        print(table(rows))
    faults = [result.log for result in results if not result.good]
    print(*faults, sep="\n", end="", file=sys.stderr)
    print(f"kernels: {len(rows)} kernels of {len(results)} compilations, {len(faults)} with errors, warnings or spills")
    return 1 if faults or any(row.spilled for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
