"""Decides what every test run has in common: on which backends the ops are tested, the header that names the kernels
under test, and Hypothesis profiles.

A test that takes `device` runs once on each backend: "cpu", "cuda" where there is a GPU, and "emulated", the CUDA
kernels on CPU tensors (native/emulated_ops.py).
"""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from native import build, emulated_ops

from vgkernels import _native

BACKENDS = ("cpu", "emulated", "cuda")

# "ci" tries the same examples every time, so that a red run can be repeated; a developer's run looks further.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what we start would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    status = _native.native_status()
    cpu = torch.ops.vgkernels.build_info() if status.cpu_loaded else f"NOT LOADED: {status.cpu_reason}"
    cuda = "loaded" if status.cuda_loaded else f"not loaded: {status.cuda_reason}"
    required = os.environ.get("VGKERNELS_REQUIRE_NATIVE") == "1"
    return [
        f"vgkernels: cpu kernels {cpu}",
        f"vgkernels: cuda kernels {cuda}",
        "vgkernels: "
        + ("backend cuda is there" if torch.cuda.is_available() else "backend cuda is left out: no CUDA device"),
        f"vgkernels: torch {torch.__version__}, a missing kernel is {'an error' if required else 'a fallback'}",
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "only the tests of ops on this backend; may be repeated"
    parser.addoption("--backend", action="append", choices=BACKENDS, help=about)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        everywhere = [backend for backend in BACKENDS if backend != "cuda" or torch.cuda.is_available()]
        kernels = metafunc.definition.get_closest_marker("without_kernels") is None
        backends = metafunc.config.getoption("backend") or everywhere
        metafunc.parametrize("device", [b for b in backends if kernels or b != "emulated"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("backend"):
        others = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test's tensors are; on "emulated" the CUDA kernels take them as long as the test runs."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param != "emulated":
        tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # 11 bits of each factor
        yield request.param
        torch.backends.cudnn.allow_tf32 = tf32
        return
    try:
        with (
            emulated_ops.in_use(),
            torch.backends.mkldnn.flags(enabled=False),
        ):  # whose bfloat16 conv3d gradient is wrong
            yield "cpu"
    except build.NativeUnavailable as reason:
        pytest.skip(str(reason))
