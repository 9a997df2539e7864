"""SIGTERM and Ctrl-C while a run goes on: noted at once, acted on after the step.

Decides what a second signal does; saving and the exit code are left to the trainer.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any


class Interruption(AbstractContextManager["Interruption"]):
    """Inside, the first SIGINT or SIGTERM is kept in `received`. A second Ctrl-C raises KeyboardInterrupt.

    Only the main thread can take signals; in another one nothing is ever received.

    Args:
        insistent: whether a second Ctrl-C acts at once. Not with ranks: torchrun hands its own on to all of them.
    """

    def __init__(self, insistent: bool = True) -> None:
        self.received = 0
        self._process = os.getpid()
        self._insistent = insistent
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked to prepare batches: goes on until it is told to end
            return
        if self.received:
            if number == signal.SIGINT and self._insistent:
                raise KeyboardInterrupt
            return
        self.received = number
        again = "; Ctrl-C again stops without" if self._insistent else ""
        os.write(2, f"\nfinishing this step, then saving{again}\n".encode())  # print() may be interrupted by itself
