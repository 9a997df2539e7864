"""Videos that are drawn on the fly: an endless source of clips with everything known about them.

Decides which frames of a drawn video make a clip, and what all generators have in common; what is drawn is left to
`shape_motion`, `moving_digits` and `scenes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from vgkernels_models.data.cut import draw
from vgkernels_models.data.decode import grey
from vgkernels_models.data.source import ClipSpec, DataError, Item, VideoSource

SMALLEST = 16  # pixels: below, sprites are hardly a pixel wide


class Artist(Protocol):
    """Draws one video of `length` frames, and returns those at `moments`."""

    def __call__(self, random: np.random.Generator, size: int, channels: int, moments: np.ndarray, length: int) -> Item:
        """`moments`: (T,) int, 0 <= moments < length. The video depends on the other arguments, not on the moments."""


@dataclass(frozen=True)
class Genre:
    """What one generator draws."""

    name: str
    about: str
    artist: Artist
    frames: int  # of one video
    classes: tuple[str, ...] = ()


class Videos(NamedTuple):
    """n drawn videos, as arrays."""

    video: np.ndarray  # (n, T, H, W, C) uint8
    label: np.ndarray | None  # (n,) int64
    truth: dict[str, np.ndarray]  # by name, each (n, ...)


class GeneratedVideos(VideoSource):
    """Clips of videos that nobody saw before. The clip depends on the random generator alone.

    A clip begins at a random frame. Where it wants more frames than a video has, the video is drawn longer: the same
    paths, more slowly.

    Raises:
        DataError: frames smaller than 16 pixels, or a rate: what is drawn has no seconds.
    """

    endless: ClassVar[bool] = True

    def __init__(self, genre: Genre, spec: ClipSpec) -> None:
        if spec.size < SMALLEST:
            raise DataError(f"{genre.name}: expected size to be at least {SMALLEST}, got {spec.size}")
        if spec.fps is not None:
            raise DataError(f"{genre.name}: no seconds in what is drawn: choose by stride, not by fps")
        self.genre, self.spec, self.classes = genre, spec, genre.classes
        self.length = max(genre.frames, spec.span)  # of a video
        named = f", {len(self.classes)} classes ({', '.join(self.classes)})" if self.classes else ""
        self.description = f"{genre.name}: {genre.about}, drawn on the fly, {self.length} frames a video{named}"

    def __len__(self) -> int:
        return 1 << 31

    def clip(self, index: int, generator: np.random.Generator | None) -> Item:
        """A new clip; without a generator, the one that is seeded by the index."""
        random, spec = generator or np.random.default_rng(index), self.spec
        moments = draw(random, self.length - spec.span) + np.arange(spec.frames) * spec.stride
        return self.genre.artist(random, spec.size, spec.channels, moments, self.length)


def draw_videos(artist: Artist, n: int, size: int, frames: int, seed: int, channels: int = 3) -> Videos:
    """n whole videos; the one of index i is a function of (seed, i)."""
    if n < 1 or frames < 1 or size < SMALLEST:
        raise ValueError(f"expected n and frames >= 1 and size >= {SMALLEST}, got {n}, {frames} and {size}")
    items = [artist(np.random.default_rng([seed, i]), size, channels, np.arange(frames), frames) for i in range(n)]
    labels = None if items[0].label is None else np.array([item.label for item in items])
    truth = {name: np.stack([item.truth[name] for item in items]) for name in items[0].truth}
    return Videos(np.stack([item.video for item in items]), labels, truth)


def random_colours(random: np.random.Generator, channels: int, *shape: int) -> np.ndarray:
    """(..., C) uint8, uniform in RGB; for C = 1 their grey."""
    colours = random.integers(256, size=(*shape, 3), dtype=np.uint8)
    return colours if channels == 3 else grey(colours)


def open_generator(name: str, argument: str, spec: ClipSpec) -> GeneratedVideos:
    """The generator that `--data` names, with what stands behind the colon.

    Raises:
        DataError: no generator of this name, or an argument where none is taken.
    """
    from vgkernels_models.data import moving_digits, scenes, shape_motion

    if name == "moving-digits":
        return GeneratedVideos(moving_digits.genre(argument or None), spec)
    genres = {genre.name: genre for genre in (shape_motion.GENRE, scenes.GENRE, scenes.SHIFTED)}
    if argument or name not in genres:
        raise DataError(f"data: expected one of {', '.join(genres)} or moving-digits[:FILE], got {name}:{argument}")
    return GeneratedVideos(genres[name], spec)
