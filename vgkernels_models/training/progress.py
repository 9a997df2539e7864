"""What a run tells while it goes on: a bar or plain lines, metrics.jsonl, TensorBoard, wandb, and memory at the end.

Decides what is shown and how often; what is measured is left to the trainer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import IO, Any

import torch

from vgkernels_models.training.run_folder import RunFolder

_LINES, _SILENCE = 20, 60.0  # about so many plain lines in a run, but no more than so many seconds without one
LOGGERS = ("tensorboard", "wandb")


def check_loggers(**wanted: bool) -> None:
    """Says before the work what is missing for `tensorboard` or `wandb`.

    Raises:
        ValueError: one is wanted and not installed.
    """
    for name, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(name) is None:
            raise ValueError(f"--{name}: {name} is not installed: pip install 'vgkernels[{name}]'")


class Journal(AbstractContextManager["Journal"]):
    """metrics.jsonl, and the loggers that were asked for. A line holds what it is given and nothing that is averaged.

    Args:
        run: metrics.jsonl is appended to, so it has to be cut back to `step` before.
        step: where this process begins.
        settings: what wandb shows as the run's configuration.
        tensorboard: write events to RUN/tensorboard.
        wandb: log there.
    """

    def __init__(
        self, run: RunFolder, step: int, settings: Mapping[str, Any], tensorboard: bool = False, wandb: bool = False
    ) -> None:
        self._file: IO[str] = run.metrics.open("a")
        self._tensorboard: Any = None
        self._wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
        if wandb:
            same = hashlib.sha1(str(run.path.resolve()).encode()).hexdigest()[:12]  # so that a resumed run is one run
            self._wandb = importlib.import_module("wandb").init(
                project="vgkernels", name=run.path.name, id=same, resume="allow", dir=run.path, config={**settings}
            )

    def log(self, step: int, losses: Mapping[str, float], seconds: float, rate: float) -> None:
        """One line: step, losses, seconds since this process began, clips a second."""
        line = {"step": step, "losses": {**losses}, "seconds": round(seconds, 3), "clips_per_second": round(rate, 3)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._tensorboard:
            for name, value in losses.items():
                self._tensorboard.add_scalar(f"loss/{name}", value, step)
        if self._wandb:
            self._wandb.log({**losses, "clips/s": rate}, step=step)

    def sync(self) -> None:
        """Waits until the lines are on disk: a checkpoint's lines must not be lost where it is kept."""
        os.fsync(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


class Progress(AbstractContextManager["Progress"]):
    """A bar with rate and time left on a terminal; elsewhere about twenty lines, or one a minute.

    Args:
        first: the step that this process begins at.
        steps: the last one.
        clips: of one step, on all ranks.
        shown: False prints nothing (ranks other than the first).
    """

    def __init__(self, first: int, steps: int, clips: int, shown: bool = True) -> None:
        self._first, self._steps, self._clips, self._shown = first, steps, clips, shown
        self._began = time.perf_counter()
        self._mark = (first, self._began)  # step and time of the last line
        self._bar: Any = None
        self._interval = max(1, (steps - first) // _LINES)
        self._line = (-1, self._began)  # number and time of the last plain line

    def __enter__(self) -> Progress:
        if self._shown and sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[losses]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._steps, completed=self._first, losses="")
        return self

    @property
    def seconds(self) -> float:
        """Since this process began."""
        return time.perf_counter() - self._began

    def advance(self, step: int) -> None:
        """After every step."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, losses: Mapping[str, float]) -> float:
        """After a step whose losses are known; returns clips a second since the last call."""
        now = time.perf_counter()
        rate = (step - self._mark[0]) * self._clips / max(now - self._mark[1], 1e-9)
        self._mark = step, now
        text = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
        text += f"  {rate:.1f} clips/s"
        if self._bar:
            self._bar.update(self._task, completed=step, losses=text)
        elif self._shown and self._is_due(step, now):
            left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
            print(f"step {step}/{self._steps}  {text}  {_duration(left)} left", flush=True)
        return rate

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _is_due(self, step: int, now: float) -> bool:
        number, time_of_last = self._line
        due = step == self._steps or step // self._interval > number or now - time_of_last >= _SILENCE
        if due:
            self._line = step // self._interval, now
        return due


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has held: of the CPU, and on CUDA of the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    if device.type == "cuda":
        text = f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on {device}, {text} on the CPU"
    return text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
