"""Loads the compiled kernels, by exact name, and says in one line why where it can't; warns once about a fallback.

Which call may fall back is decided in _checks.py and in each op's file, what a forked child does in _forked.py.
"""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class NativeStatus:
    """What is loaded; a reason is empty where its library is."""

    cpu_loaded: bool
    cuda_loaded: bool
    cpu_reason: str
    cuda_reason: str


def build_info() -> dict[str, Any]:
    """What setup.py recorded: torch, compiler, flags, CUDA architectures, commit. Empty if it did not run."""
    try:
        return dict(json.loads((FOLDER / "_build_info.json").read_text()))
    except (OSError, ValueError):
        return {}


def _load(name: str, why_not_built: str) -> str:
    """Loads one library; returns the reason where that fails, else the empty string."""
    path = FOLDER / f"{name}.abi3.so"  # exact: a leftover of another name or build must not be picked up
    if not path.exists():
        return why_not_built
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path.name} doesn't load: {str(error.__cause__ or error).strip().splitlines()[0]}"
    return ""


def _load_all() -> NativeStatus:
    if os.environ.get("VGKERNELS_NO_NATIVE") == "1":
        return NativeStatus(False, False, *(["VGKERNELS_NO_NATIVE=1 is set"] * 2))
    info = build_info()
    unbuilt = "the package was not built (run `pip install -e .`)"
    cpu_reason = _load("_C", info.get("why_no_cpu") or unbuilt)
    if cpu_reason:  # _C holds the schemas
        cuda_reason = cpu_reason
    elif torch.version.cuda is None and info and not info["why_no_cuda"]:
        cuda_reason = f"torch {torch.__version__} has no CUDA libraries"
    else:
        cuda_reason = _load("_C_cuda", info.get("why_no_cuda") or unbuilt)
    return NativeStatus(not cpu_reason, not cuda_reason, cpu_reason, cuda_reason)


_status = _load_all()
# Where the ops are looked up. Tests put a namespace here in which the CUDA kernels take CPU tensors, by an emulator.
kernels: Any = torch.ops.vgkernels


def runs_cuda_kernels(device: torch.device) -> bool:
    """Whether a call on that device comes to the CUDA kernels."""
    return device.type == "cuda" or kernels is not torch.ops.vgkernels


def native_status() -> NativeStatus:
    """What importing this module loaded."""
    return _status  # not functools.cache: torch.compile traces through that, into the loading


@torch.compiler.assume_constant_result  # under torch.compile it runs while tracing, and breaks no graph
def fallback(op: str, why: str) -> None:
    """Says once for each op and reason that the reference runs; with VGKERNELS_REQUIRE_NATIVE=1 raises instead.

    Raises:
        RuntimeError: VGKERNELS_REQUIRE_NATIVE=1 is set.
    """
    text = f"{op}: no native kernel runs: {why}"
    if os.environ.get("VGKERNELS_REQUIRE_NATIVE") == "1":
        raise RuntimeError(f"{text} (VGKERNELS_REQUIRE_NATIVE=1)")
    if (op, why) not in _warned:
        _warned.add((op, why))
        warnings.warn(f"{text}; the slower PyTorch reference does. See `python -m vgkernels.info`.", stacklevel=4)
