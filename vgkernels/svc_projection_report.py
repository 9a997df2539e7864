"""What svc_projection_ found and did, read as late as possible, and the error that a late reading raises.

The kernels leave a row of [state, clipped, largest, certified] for each matrix on its device. On the CPU it is read at
once. On CUDA reading waits for the device, so nothing is read until it is asked for; a copy to pinned memory is
started, and the next call of svc_projection_ looks at it if it has arrived. Decides when, and what an error says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_STATES = ("inside", "clipped", "nonfinite")
_unread: list[SVCReport] = []  # raise on non-finite weights, on a device, read by nobody yet


class SVCReport:
    """What `svc_projection_` found, one entry for each weight.

    Attributes, lists in the order of the weights:
        state: "inside" (left as it was), "clipped", or "nonfinite" (left as it was).
        clipped: how many singular values exceeded the bound.
        largest: the largest singular value before the call; where `state` is "inside" possibly an upper bound of it, on
            CUDA also where "clipped", at most 1 % above; NaN where "nonfinite".
        certified: whether the singular values are now proven to be at most the bound, up to the dtype's tolerance.

    On CUDA reading any of them, or the repr, waits for the device and raises the RuntimeError that nonfinite="raise"
    asks for. `len` and `names` don't.
    """

    def __init__(
        self, op: str, names: Sequence[str], parts: Sequence[tuple[Sequence[int], Tensor]], raises: bool
    ) -> None:
        """`parts`: (count, 4) tables on any devices, each with the places of its rows."""
        self.names = list(names)
        self._op, self._raises = op, raises
        self._rows: list[list[float]] | None = None
        self._parts = [(places, *_fetch(table)) for places, table in parts]
        self._tables = [table for _, table in parts]
        if all(table.device.type == "cpu" for _, table in parts):
            self._read()
        elif not _is_capturing():
            if os.environ.get("VGKERNELS_DEBUG") == "1":
                self._read()
            elif raises:
                _unread.append(self)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} of {len(self)} weight{'' if len(self) == 1 else 's'}"]
        for name, state, clipped, largest, certified in zip(
            self.names, self.state, self.clipped, self.largest, self.certified, strict=True
        ):
            if state == "clipped":
                found = f"{clipped} clipped, largest {largest:.6g}{'' if certified else ', not certified'}"
            else:
                found = f"inside, largest <= {largest:.7g}" if state == "inside" else "NaN or Inf, left as it was"
            lines.append(f"  {name}: {found}")
        return "\n".join(lines)

    @property
    def state(self) -> list[str]:
        return [_STATES[int(row[0])] for row in self._read()]

    @property
    def clipped(self) -> list[int]:
        return [int(row[1]) for row in self._read()]

    @property
    def largest(self) -> list[float]:
        return [row[2] for row in self._read()]

    @property
    def certified(self) -> list[bool]:
        return [row[3] == 1 for row in self._read()]

    def refused(self, device: torch.device) -> Tensor | None:
        """A bool on `device`, without waiting: whether its kernels found a weight that is not finite, so wrote none.

        None on the CPU, where that was raised at once.
        """
        if device.type == "cpu":
            return None
        found = [(table[:, 0] == 2).any() for table in self._tables if self._raises and table.device == device]
        return torch.stack(found).any() if found else torch.zeros((), dtype=torch.bool, device=device)

    def _has_arrived(self) -> bool:
        return all(arrived() for _, _, arrived, _ in self._parts)

    def _read(self) -> list[list[float]]:
        if self._rows is None:
            rows: list[list[float]] = [[0, 0, math.nan, 0]] * len(self)
            for places, table, _, wait in self._parts:
                wait()
                for place, row in zip(places, table.tolist(), strict=True):
                    rows[place] = row
            self._rows, self._parts, self._tables = rows, [], []
            if self in _unread:
                _unread.remove(self)
        bad = [name for name, row in zip(self.names, self._rows, strict=True) if row[0] == 2]
        if bad and self._raises:
            raise nonfinite_error(self._op, bad)
        return self._rows


def nonfinite_error(op: str, names: Sequence[str]) -> RuntimeError:
    """The error of nonfinite="raise"."""
    return RuntimeError(f"{op}: expected finite weights, got NaN or Inf in {', '.join(names)}; nothing was modified")


def raise_unread() -> None:
    """Raises what an earlier call on a device found, if that has arrived by now; waits for nothing."""
    if _unread and not _is_capturing():
        for report in list(_unread):
            if report._has_arrived():
                report._read()


def _fetch(table: Tensor) -> tuple[Tensor, Callable[[], bool], Callable[[], Any]]:
    """The table, or a copy of it on its way to the host; whether it is there; and how to wait for it."""
    if table.device.type != "cuda" or _is_capturing():  # a graph's replay fills the table again
        return table, lambda: table.device.type == "cpu", lambda: None
    host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
    event = torch.cuda.Event()
    with torch.cuda.device(table.device):
        host.copy_(table, non_blocking=True)
        event.record()
    return host, event.query, event.synchronize


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
