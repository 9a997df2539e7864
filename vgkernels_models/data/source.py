"""What a source of clips is, and how one is opened by the name or path that `--data` takes.

Decides what is asked of every source (`VideoSource`) and of every clip (`ClipSpec`); where clips come from is left to
the sources, their order and their way into tensors to `batches`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np

Crop = Literal["center", "random", "none"]
Short = Literal["skip", "loop", "hold", "error"]
GENERATORS = ("shape-motion", "moving-digits", "scenes", "scenes-shift")


class DataError(ValueError):
    """A data set that cannot be used; the message is one line that names it and the reason."""


@dataclass(frozen=True)
class ClipSpec:
    """The clip that a model wants.

    A video is scaled so that its shorter side is `size`, and cropped to a square. Frames come from a random start.

    Raises:
        ValueError: a field out of its range.
    """

    channels: int = 3  # 3 for colour, 1 for grey (ITU-R 601)
    frames: int = 16  # T
    size: int = 64  # H = W, pixels
    stride: int = 1  # every so many-th frame
    fps: float | None = None  # first take frames at this rate, by their time stamps; None takes them as they are stored
    crop: Crop = "center"  # "random" moves the square; "none" squeezes the whole frame into it
    short: Short = "skip"  # a video with too few frames is left out, looped, held at its last frame, or an error

    def __post_init__(self) -> None:
        for name in ("frames", "size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} to be at least 1, got {getattr(self, name)}")
        if self.channels not in (1, 3):
            raise ValueError(f"expected channels to be 1 (grey) or 3 (colour), got {self.channels}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"expected fps to be above 0 and at most 1000, got {self.fps}")
        for name, choices in (("crop", get_args(Crop)), ("short", get_args(Short))):
            if getattr(self, name) not in choices:
                raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @property
    def span(self) -> int:
        """Frames of a video that one clip stretches over."""
        return (self.frames - 1) * self.stride + 1


@dataclass
class Item:
    """One clip. In `truth`, what is uint8 is a colour (its last axis has C entries) and is scaled as the video is."""

    video: np.ndarray  # (T, H, W, C) uint8
    label: int | None = None  # an index into the source's `classes`
    truth: dict[str, np.ndarray] = field(default_factory=dict)  # what a generator knows: "mask", "position", ...


class VideoSource:
    """Clips by index. A clip depends on the index and the generator only: never on global state or earlier calls."""

    classes: tuple[str, ...] = ()  # names of the labels
    description: str = ""  # one line: what was found, in which layout, how many clips, how many skipped
    endless: ClassVar[bool] = False  # every index is a new clip, drawn from the generator alone
    windows: ClassVar[bool] = False  # clips of one video, that lie apart as long as no generator moves them

    def __len__(self) -> int:
        """Clips of an epoch."""
        raise NotImplementedError

    def clip(self, index: int, generator: np.random.Generator | None) -> Item:
        """The clip of this index; the generator draws start frame and crop, None takes the middle."""
        raise NotImplementedError


def located(name_or_path: str) -> str:
    """What `--data` takes, so that it means the same in every working directory: paths become absolute."""
    if Path(name_or_path).exists():
        return str(Path(name_or_path).absolute())
    file, _, tiles = name_or_path.rpartition(":")
    if Path(file).is_file():
        return f"{Path(file).absolute()}:{tiles}"
    name, _, file = name_or_path.partition(":")
    return f"{name}:{Path(file).absolute()}" if Path(file).is_file() else name_or_path


def open_source(
    name_or_path: str | Path,
    spec: ClipSpec,
    *,
    split: str | None = None,
    layout: str | None = None,
    cache: str | Path | None = None,
) -> VideoSource:
    """Opens a generator, an installed clip, a video file, or a data set of videos.

    Args:
        name_or_path: `shape-motion`, `moving-digits` (`moving-digits:FILE` takes MNIST's idx file for the digits),
            `scenes`, `scenes-shift`; an installed clip (`carphone`, `bikes`, ...) or a video file, with `:K` behind it
            for K tiles along its shorter side; a folder, zip, npy, npz or list of videos (see `layouts`).
        spec: the clip that is wanted.
        split: "train", "test", ... of a data set that has splits ("train" by default), "all" for the whole.
            A generator has none: its clips never repeat.
        layout: one of `layouts.LAYOUTS`, where the one that is found is wrong.
        cache: where decoded frames are kept: $VGKERNELS_CACHE or ~/.cache/vgkernels by default.

    Raises:
        DataError: nothing of this name, nothing usable in it, or no such split or layout.
    """
    from vgkernels_models.data import generated, installed, layouts, video_folder, windows

    name, _, argument = str(name_or_path).partition(":")
    if name in GENERATORS and not Path(name_or_path).exists():
        return generated.open_generator(name, argument, spec)
    clip, tiles = installed.clip_and_tiles(str(name_or_path))
    if clip is not None:
        return windows.ClipWindows(clip, spec, tiles=tiles, cache=cache)
    path = Path(name_or_path)
    if not str(name_or_path) or not path.exists():
        known = [*GENERATORS, *installed.CLIPS]
        close = difflib.get_close_matches(str(name_or_path), known, n=1)
        hint = f"; perhaps you meant {close[0]}" if close else f", nor one of {', '.join(known)}"
        raise DataError(f"data: no such file or folder as {str(name_or_path)!r}{hint}")
    if path.is_file() and layouts.is_video(path):
        return windows.ClipWindows(path, spec, cache=cache)
    return video_folder.VideoFolder(path, spec, split=split, layout=layout, cache=cache)
