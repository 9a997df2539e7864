"""RUN: the folder of one training, and the record of what it was started with.

Decides where things lie, what may change when a run is resumed, and that nothing is overwritten.

    RUN/config.json       model, preset, configuration, options, ranks, versions, command
        metrics.jsonl     one line a log interval: step, losses, seconds, clips a second
        samples/          step-000500.npz: clips of the same noise at a few moments of the training
        checkpoints/      step-000500/: see checkpoint.py
        scores.json, report.html    of `evaluate`
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import vgkernels
from vgkernels_models.report.page import write_whole
from vgkernels_models.training.checkpoint import CheckpointError, Identity, checkpoints, clean, prove, sync

MAY_CHANGE = ("device", "workers", "compile", "save_every", "log_every", "tensorboard", "wandb", "cache")


@dataclass(frozen=True)
class Record:
    """What decides a run's numbers, and beside it what is good to know later."""

    model: str
    preset: str
    config: Mapping[str, Any]  # the model's Config
    training: Mapping[str, Any]  # seed and the trainer's options
    data: Mapping[str, Any] = field(default_factory=dict)  # how clips are cut from the data
    ranks: int = 1
    source: str = ""  # the data set's own description
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    @property
    def identity(self) -> Identity:
        """What a checkpoint carries of it."""
        return Identity(self.model, self.preset, self.config)

    def first_change(self, now: Record) -> tuple[str, Any, Any] | None:
        """First field that a resume may not change, its value before and now; steps may grow, without decay."""
        before_and_now = [(name, getattr(self, name), getattr(now, name)) for name in ("model", "preset")]
        for part in ("config", "data", "training"):
            before = getattr(self, part)
            before_and_now += [(name, before.get(name, value), value) for name, value in getattr(now, part).items()]
        before_and_now += [("ranks", self.ranks, now.ranks)]
        for name, old, new in before_and_now:
            grown = name == "steps" and new >= old and not self.config.get("decay")
            if name not in MAY_CHANGE and not grown and _plain(old) != _plain(new):
                return name, old, new
        return None


@dataclass(frozen=True)
class RunFolder:
    """The places in a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def begun(self) -> bool:
        """Whether something was learnt here."""
        return bool(checkpoints(self.checkpoints)) or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def write_samples(self, step: int, clips: np.ndarray) -> None:
        """uint8 (N, T, H, W, C) as samples/step-000500.npz, entry "video"."""
        self.samples.mkdir(exist_ok=True)
        target = self.samples / f"step-{step:06d}.npz"
        partial = target.with_name(f".{target.name}.part.npz")
        np.savez_compressed(partial, video=clips)
        partial.replace(target)

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after this step, and one that a stop left half-written."""
        if self.metrics.exists():
            lines = self.metrics.read_text("utf-8", "replace").splitlines()
            kept = [line for line in lines if _step(line) <= step]
            write_whole(self.metrics, "".join(f"{line}\n" for line in kept))
            sync(self.metrics)


def check_run(path: Path, record: Record, resume: bool) -> None:
    """Refuses what `open_run` would.

    Raises:
        ValueError: a run is there and `resume` is not set; it is set and a field differs; the folder is another thing.
    """
    run = RunFolder(path)
    for folder in (path, run.checkpoints, run.samples):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of the run, got a file")
    if run.config.exists():
        if run.begun and not resume:
            raise ValueError(f"{path}: a run is there already: --resume goes on with it, another --out starts anew")
        if run.begun and (change := read_record(path).first_change(record)):
            name, before, now = change
            why = "the decay of the learning rate depends on it" if record.config.get("decay") else "it may only grow"
            hint = f" ({why})" if name == "steps" else ""
            raise ValueError(
                f"{path}: this run has {name.replace('_', '-')} = {before}, got {now}{hint}: --resume can't change it"
            )
    elif path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise ValueError(f"{path}: expected a new or empty folder, or a run; got other files and no config.json")


def open_run(path: Path, record: Record, resume: bool) -> AbstractContextManager[object]:
    """Starts a run, or takes one up: writes its config.json. For the first rank; the others take `RunFolder(path)`.

    Returns:
        The hold on the folder, for as long as the run is trained; it also ends with the process.

    Raises:
        ValueError: as `check_run`, or another process trains there.
    """
    check_run(path, record, resume)
    run = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    held = hold(path)
    clean(run.checkpoints)
    if run.begun:
        record = replace(record, command=read_record(path).command)
    write_whole(run.config, json.dumps({"schema": 1, **asdict(record)}, indent=1) + "\n")
    return held


def hold(path: Path) -> AbstractContextManager[object]:
    """Keeps all others from training in this folder, until it is left.

    Raises:
        ValueError: another process does.
    """
    try:
        return FileLock(path / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{path}: another process is training there; another --out starts anew") from error
    except NotImplementedError:  # a file system without locks
        return nullcontext()


def read_record(path: Path) -> Record:
    """The record in a run's config.json.

    Raises:
        CheckpointError: no run there, or a config.json that is not ours.
    """
    file = RunFolder(path).config
    try:
        found = json.loads(file.read_text())
        if not all(isinstance(found[part], dict) for part in ("config", "training", "data")):
            raise TypeError("config, training and data have to be objects")
        return Record(**{each.name: found[each.name] for each in fields(Record)})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: no run there (no config.json)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not the configuration of a run ({error!r})") from error


def checkpoint_to_resume(run: RunFolder) -> Path | None:
    """The newest checkpoint, proven whole; None where the run was stopped before the first.

    Raises:
        CheckpointError: it is damaged; the message says which older one is whole, and how to go on from that.
    """
    found = checkpoints(run.checkpoints)
    if not found:
        return None
    try:
        prove(found[-1])
    except CheckpointError as error:
        for older in reversed(found[:-1]):
            try:
                prove(older)
            except CheckpointError:
                continue
            aside = run.path / f"damaged-{found[-1].name}"
            raise CheckpointError(
                f"{error}; {older.name} is whole: `mv {found[-1]} {aside}`, then --resume goes on from it"
            ) from error
        raise CheckpointError(f"{error}; no older checkpoint is whole") from error
    return found[-1]


def versions() -> dict[str, str]:
    """Of all that the numbers of a run may depend on."""
    return {
        "vgkernels": vgkernels.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{sys.platform} {platform.machine()}",
    }


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
