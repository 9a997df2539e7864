"""`python -m vgkernels.info`: versions, what was built, what is loaded and if not why; the text for a bug report.

Decides only how that is shown, with or without a working torch; _native.py and setup.py hold the facts.
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import __version__

CPU_FLAGS = ("avx2", "fma", "bmi2", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CXX")


def _system() -> Iterator[tuple[str, str]]:
    yield "vgkernels", f"{__version__} in {Path(__file__).resolve().parent}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    yield "system", platform.platform()
    packages = ("numpy", "av", "opencv-python-headless", "safetensors")
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in packages)
    try:
        text = Path("/proc/cpuinfo").read_text()
        lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].replace("\t", "").splitlines() if ":" in line)
        have = lines.get("flags", "").split()
        yield "cpu", f"{lines.get('model name', 'unknown').strip()}, {os.cpu_count()} cores"
        yield "cpu features", " ".join(flag for flag in CPU_FLAGS if flag in have) or "none of " + " ".join(CPU_FLAGS)
    except OSError:
        yield "cpu", f"{platform.machine()}, {os.cpu_count()} cores"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _torch() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "torch", f"BROKEN OR MISSING: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        yield "", "install one with `pip install 'torch>=2.11'`, then reinstall vgkernels, which builds against it"
        return
    threads = f"{torch.get_num_threads()} threads, CPU capability {torch.backends.cpu.get_cpu_capability()}"
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {threads}"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"gpu {index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    from . import _native

    status = _native.native_status()
    yield "cpu kernels", "loaded" if status.cpu_loaded else f"not loaded: {status.cpu_reason}"
    if status.cpu_loaded:
        yield "", torch.ops.vgkernels.build_info()
    yield "cuda kernels", "loaded" if status.cuda_loaded else f"not loaded: {status.cuda_reason}"
    if not status.cpu_loaded:
        yield "", "every op runs its PyTorch reference: right, but slower"


def _build() -> Iterator[tuple[str, str]]:
    facts: dict[str, Any] = {}
    path = Path(__file__).resolve().with_name("_build_info.json")
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        yield "built", f"unknown: no readable {path.name} (run `pip install -e .`)"
        return
    yield "built", f"commit {facts['commit'] or 'unknown'}, against torch {facts['torch']} (CUDA {facts['torch_cuda']})"
    yield "cpu build", facts["why_no_cpu"] or f"{facts['compiler']}: {facts['flags']}"
    yield "cuda build", facts["why_no_cuda"] or f"nvcc {facts['nvcc']} for {' '.join(facts['archs'])}"


def report() -> str:
    """The whole report, one fact a line, between the fences of a bug report."""
    names = sorted({name for name in os.environ if name.startswith("VGKERNELS_")} | set(VARIABLES) & set(os.environ))
    variables = " ".join(f"{name}={os.environ[name]}" for name in names) or "none set"
    facts = [*_system(), *_torch(), *_build(), ("environment", variables)]
    lines = [f"{name:<13} {value}" for name, value in facts]
    return "\n".join(["Paste this into a bug report:", "```", *lines, "```"])


if __name__ == "__main__":
    print(report())
