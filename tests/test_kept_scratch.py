"""Decides that large scratch stays with the process between calls, as much as VGKERNELS_KEEP_SCRATCH says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from op_suite import needs_native

CALL = """
import torch, vgkernels
from pathlib import Path

torch.set_num_threads(1)

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) // 1024

def call(channels):
    x = torch.ones(8, 2, channels, 16, 16)
    weights = [torch.zeros(3 * channels, channels, 3, 3, requires_grad=True) for _ in range(2)]
    vgkernels.conv_gru(x, None, *weights)[0].sum().backward()

call(8)
before = resident()
for _ in range(3):
    call(128)
print(resident() - before)
"""
pytestmark = [
    needs_native,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def kept(wish: str | None) -> int:
    """MiB that three training steps leave behind; the scratch of one is about 60 MiB."""
    environment = {name: value for name, value in os.environ.items() if name != "VGKERNELS_KEEP_SCRATCH"}
    if wish is not None:
        environment["VGKERNELS_KEEP_SCRATCH"] = wish
    done = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_large_scratch_is_kept_up_to_a_limit() -> None:
    nothing = kept("0")
    assert abs(kept("16") - nothing) < 16 + 8
    assert 30 < kept(None) - nothing < 256
