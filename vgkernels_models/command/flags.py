"""Dataclasses as flags: their help is the comment beside each field, their defaults those of preset or run.

Decides which flags a command has; what they do is left to the commands.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vgkernels_models.data.source import ClipSpec, Crop, Short, VideoSource, open_source
from vgkernels_models.model import ModelConfig, VideoModel
from vgkernels_models.training.run_folder import Record, RunFolder, read_record
from vgkernels_models.training.trainer import TrainingOptions

PROGRAM = "python -m vgkernels_models"
_CONFIG = (tyro.conf.FlagCreatePairsOff,)


@dataclass
class DataFlags:
    """How clips are cut from the data."""

    fps: float | None = None  # first take frames at this rate, by their time stamps; as they are stored by default
    crop: Crop = "center"  # "random" moves the square; "none" squeezes the whole frame into it
    short: Short = "skip"  # a video with too few frames is left out, looped, held at its last frame, or an error
    split: str | None = None  # train, test, ... of a data set that has splits
    layout: str | None = None  # of a data set, where the one that is found is wrong
    cache: Path | None = None  # folder of decoded frames: $VGKERNELS_CACHE or ~/.cache/vgkernels by default

    def open(self, config: ModelConfig) -> VideoSource:
        """The source that a model of this configuration learns from.

        Raises:
            DataError: it cannot be used.
        """
        spec = ClipSpec(
            config.channels, config.frames, config.size, config.stride, fps=self.fps, crop=self.crop, short=self.short
        )
        return open_source(config.data, spec, split=self.split, layout=self.layout, cache=self.cache)

    def to_json(self) -> dict[str, Any]:
        """What a run's record keeps."""
        return {**asdict(self), "cache": None if self.cache is None else str(self.cache)}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> DataFlags:
        """The inverse of `to_json`."""
        known = {name: value for name, value in kept.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "cache": known.get("cache") and Path(known["cache"])})


@dataclass
class TrainFlags:
    """All that `train MODEL` takes."""

    preset: str
    out: Path
    resume: bool
    config: ModelConfig
    data: DataFlags
    training: TrainingOptions


def train_flags(name: str, cls: type[VideoModel], arguments: Sequence[str]) -> TrainFlags:
    """The flags of `train`. Defaults are the preset's, or with --resume those of the run, so that --out is enough.

    Raises:
        ValueError: no such preset.
        CheckpointError: --resume, and a config.json that can't be read.
        SystemExit: 2 with the reason for flags that don't fit, 0 after --help.
    """
    peek = argparse.ArgumentParser(f"{PROGRAM} train {name}", add_help=False, allow_abbrev=False)
    peek.add_argument("--preset", default="paper")
    peek.add_argument("--out", type=Path)
    peek.add_argument("--resume", action="store_true")
    seen, _ = peek.parse_known_args(arguments)
    out = seen.out or Path("runs") / f"{name}-{seen.preset}"
    preset, config, data, training = seen.preset, cls.Config.preset(seen.preset), DataFlags(), TrainingOptions()
    if seen.resume and RunFolder(out).config.exists() and (record := read_record(out)).model == name:
        preset, config, data, training = record.preset, *_of_record(record, cls)

    def described(kind: Any, default: Any, text: str) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default)

    def flat(kind: Any, default: Any) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(name="")], dataclasses.field(default_factory=lambda: default)

    presets = Literal[tuple(cls.Config.PRESETS)]  # type: ignore[valid-type]
    columns = {
        "preset": described(
            presets, preset, "sizes and rates: the paper's, or for less time; flags change single ones"
        ),
        "out": described(Path, out, "RUN, the folder of all that is written"),
        "resume": described(bool, False, "go on with the run in --out; its settings are the defaults then"),
        "config": flat(cls.Config, config),
        "training": flat(TrainingOptions, training),
        "data": flat(DataFlags, data),
    }
    flags = make_dataclass("Train", [(column, kind, default) for column, (kind, default) in columns.items()])
    about = f"Trains {name}. Defaults are those of --preset {preset}."
    found: Any = tyro.cli(
        flags, prog=f"{PROGRAM} train {name}", description=about, args=list(arguments), config=_CONFIG
    )
    return TrainFlags(*(getattr(found, field.name) for field in dataclasses.fields(TrainFlags)))


def parse(flags: Any, command: str, arguments: Sequence[str]) -> Any:
    """The flags of a command that is no `train`: a dataclass, filled.

    Raises:
        SystemExit: 2 with the reason for flags that don't fit, 0 after --help.
    """
    about = flags.__doc__
    return tyro.cli(flags, prog=f"{PROGRAM} {command}", description=about, args=list(arguments), config=_CONFIG)


def _of_record(record: Record, cls: type[VideoModel]) -> tuple[ModelConfig, DataFlags, TrainingOptions]:
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in record.config.items()}
    known = {name: value for name, value in record.training.items() if name in TrainingOptions.__dataclass_fields__}
    return cls.Config.preset("paper", **config), DataFlags.from_json({**record.data}), TrainingOptions(**known)


def sources_of(run: Path, config: ModelConfig, **changes: Any) -> VideoSource:
    """The data that a run (or one of its checkpoints) was trained on, or with changed `DataFlags` a variant of it.

    Raises:
        CheckpointError: the run has no record.
        DataError: the data can't be used.
    """
    folder = run if RunFolder(run).config.exists() else run.parent.parent
    data = DataFlags.from_json({**read_record(folder).data})
    return dataclasses.replace(data, **{name: value for name, value in changes.items() if value is not None}).open(
        config
    )
