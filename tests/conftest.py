"""Decides what every test run has in common: the header that names the kernels under test, and Hypothesis profiles."""

import os

import hypothesis
import torch

from vgkernels import _native

# "ci" tries the same examples every time, so that a red run can be repeated; a developer's run looks further.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_report_header() -> list[str]:
    status = _native.native_status()
    cpu = torch.ops.vgkernels.build_info() if status.cpu_loaded else f"NOT LOADED: {status.cpu_reason}"
    cuda = "loaded" if status.cuda_loaded else f"not loaded: {status.cuda_reason}"
    required = os.environ.get("VGKERNELS_REQUIRE_NATIVE") == "1"
    return [
        f"vgkernels: cpu kernels {cpu}",
        f"vgkernels: cuda kernels {cuda}",
        f"vgkernels: torch {torch.__version__}, a missing kernel is {'an error' if required else 'a fallback'}",
    ]
