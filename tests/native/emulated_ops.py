"""Decides how the CUDA kernels stand in for the CPU's behind vgkernels' own functions: run by the emulator, on CPU
tensors, through the same torch door that CUDA tensors take (csrc/*/*_ops.cpp), in the namespace vgkernels_emulated.

As a program, `python tests/native/emulated_ops.py MODULE ARGUMENTS...` runs a module that way.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import torch
from native import build
from native.kernels import ORDERS, WEEKLY

from vgkernels import _native, conv_gru_autograd

KERNELS = tuple(str(path.relative_to(build.ROOT)) for path in sorted((build.ROOT / "csrc").glob("*/*.cu")))
DOORS = (*sorted((build.ROOT / "csrc").glob("*/*_ops.cpp")), build.ROOT / "tests/native/emulator_ops.cpp")
TORCH = Path(torch.__file__).parent


@functools.cache
def library() -> None:
    """Builds and loads the library, once.

    Raises:
        build.NativeUnavailable: this machine can't.
    """
    standard = "-std=c++20" if torch.torch_version.TorchVersion(torch.__version__) >= "2.13" else "-std=c++17"
    flags = [*build.BINDINGS, standard, "-DVG_CUDA", "-DVG_EMULATED", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    doors = [str(build.compile_with(door, "doors", flags, [str(TORCH / "include")])) for door in DOORS]
    link_with = [*doors, f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
    torch.ops.load_library(build.build("emulated_ops", KERNELS, "plain", link_with))
    for room in ("flow_warp", "svc_projection", "sliced_wasserstein_entries"):
        importlib.import_module(f"vgkernels.{room}").register("vgkernels_emulated")
    conv_gru_autograd.register("vgkernels_emulated", cuda="cpu")


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Inside, vgkernels' functions run the emulated CUDA kernels on CPU tensors."""
    library()
    before, _native.kernels = _native.kernels, torch.ops.vgkernels_emulated
    try:
        yield
    finally:
        _native.kernels = before


def are_in_use() -> bool:
    return _native.kernels is not torch.ops.vgkernels


def runs_again(device: str) -> Iterator[str]:
    """While it is iterated over, ops run as results should not depend on: several threads, schedules and poisons, or
    just again. Yields what is different now."""
    if device == "cuda":
        yield from (f"run {i}" for i in range(20))
    elif not are_in_use():
        threads = torch.get_num_threads()
        for count in (1, 2, 3, 7) if WEEKLY else (1, 3):
            torch.set_num_threads(count)
            yield f"{count} threads"
        torch.set_num_threads(threads)
    else:
        for (schedule, poison), copies in itertools.product(ORDERS if WEEKLY else ORDERS[5:6], ("late", "early")):
            torch.ops.vgkernels_emulated.configure(schedule, poison, copies)
            yield f"{schedule}, poison {poison}, cp.async {copies}"
        torch.ops.vgkernels_emulated.configure("forward", 0xFF, "late")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with in_use():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
