"""SVCReport: what it says, and when one on a device is read and raises; tables that arrive late stand in for a GPU."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vgkernels import SVCReport, svc_projection_, svc_projection_report


def test_report_says_what_happened() -> None:
    weights = [torch.diag(torch.tensor(values)) for values in ((3.0, 2.0), (0.5, 0.1))]
    report = svc_projection_([*weights, torch.full((2, 2), math.nan)], nonfinite="skip")
    assert len(report) == 3
    assert (report.clipped, report.certified) == ([2, 0, 0], [True, True, False])
    lines = repr(report).splitlines()
    assert lines[:2] == ["SVCReport of 3 weights", "  weights[0]: 2 clipped, largest 3"]
    assert lines[2].startswith("  weights[1]: inside, largest <= 0.5")
    assert "largest <= 1.000003" in repr(SVCReport("", ["w"], [([0], torch.tensor([[0, 0, 1.0000029, 1]]))], True))
    assert lines[3] == "  weights[2]: NaN or Inf, left as it was"


class Device:
    """Tables that arrive when told to, in place of those of a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = self.waited = False
        monkeypatch.setattr(svc_projection_report, "_unread", [])
        monkeypatch.setattr(svc_projection_report, "_fetch", self.fetch)

    def fetch(self, table: Tensor) -> tuple[Tensor, Callable[[], bool], Callable[[], None]]:
        if isinstance(table, Tensor):  # of the CPU
            return table, lambda: True, lambda: None
        return table.value, lambda: self.arrived, self.wait

    def wait(self) -> None:
        self.waited = True

    def report(self, state: float, raises: bool = True) -> SVCReport:
        table: Any = Table(torch.tensor([[state, 0, 1, 1]], dtype=torch.float64))
        return SVCReport("svc_projection_", ["weights[0]"], [([0], table)], raises)


class Table:
    device = torch.device("cuda")

    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_a_late_report_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    good, bad, skipped = device.report(0), device.report(2), device.report(2, raises=False)
    assert (len(good), device.waited) == (1, False)
    assert good.state == ["inside"]
    assert device.waited
    assert skipped.state == ["nonfinite"]
    for read in (lambda: bad.clipped, lambda: bad.largest, lambda: repr(bad)):
        with pytest.raises(RuntimeError, match=r"expected finite weights, got NaN or Inf in weights\[0\]"):
            read()
    device.arrived = True
    svc_projection_(torch.eye(2))  # who has read an error does not get it again


def test_an_unread_report_raises_at_a_later_call_once_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.report(0), device.report(2), device.report(2, raises=False)
    svc_projection_(torch.eye(2))
    device.arrived = True
    weight = 2 * torch.eye(2)
    with pytest.raises(RuntimeError, match=r"expected finite weights, got NaN or Inf in weights\[0\]"):
        svc_projection_(weight)
    assert torch.equal(weight, 2 * torch.eye(2))
    svc_projection_(weight)
    assert not svc_projection_report._unread


def test_debug_reads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    monkeypatch.setenv("VGKERNELS_DEBUG", "1")
    with pytest.raises(RuntimeError, match="expected finite weights"):
        device.report(2)
    assert device.waited
    assert not svc_projection_report._unread
