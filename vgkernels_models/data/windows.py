"""One long video as a source of many clips: windows in time and, where the picture is large, tiles of it.

Decides where windows and tiles lie; frames are kept by `cache`. This is what lets a single clip train a model: vtest
(795 frames of 768 x 576) has 108 tiles of 64 x 64 times 49 windows of 16 frames.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from vgkernels_models.data.cache import FrameCache
from vgkernels_models.data.clips import ClipError
from vgkernels_models.data.cut import draw, take_clip
from vgkernels_models.data.decode import Recording, Shape, short_side
from vgkernels_models.data.optical_flow import scene_cuts
from vgkernels_models.data.source import ClipSpec, DataError, Item, VideoSource

_WORTH_TILING = 4  # a picture whose shorter side holds at least so many tiles is tiled
_MOST_TILES = 9  # along the shorter side: a larger picture is made smaller, or its frames would fill the disk


class ClipWindows(VideoSource):
    """Clips that lie apart in one video. In training each is moved at random in time, within its scene.

    A video is scaled so that its shorter side holds `tiles` tiles. By default it is left as large as it is, up to 9
    tiles, and not tiled at all where there would be fewer than 4. `spec.crop = "random"` moves tiles as well.

    Args:
        path: the video file.
        spec: the clip that is wanted.
        tiles: along the shorter side.
        cache: where frames are kept; $VGKERNELS_CACHE or ~/.cache/vgkernels by default.

    Raises:
        DataError: a file that is broken or too short.
    """

    windows: ClassVar[bool] = True

    def __init__(
        self, path: str | Path, spec: ClipSpec, *, tiles: int | None = None, cache: str | Path | None = None
    ) -> None:
        self.path, self.spec = Path(path), spec
        try:
            fitting = short_side(self.path) // spec.size
        except ClipError as error:
            raise DataError(f"{path}: {error}") from error
        tiles = tiles or (min(fitting, _MOST_TILES) if fitting >= _WORTH_TILING else 1)
        tiles = 1 if spec.crop == "none" else tiles
        shape = Shape(tiles * spec.size, spec.channels, spec.fps, spec.crop == "none")
        stored = FrameCache(self.path, shape, cache).store([Recording(self.path.name, "video", self.path)])[0]
        if isinstance(stored, str):
            raise DataError(f"{path}: {stored}")
        self._stored, self._mapped = stored, stored.frames()
        length, height, width, _ = stored.shape
        if length < spec.span and spec.short in ("skip", "error"):
            raise DataError(f"{path}: too short: {length} frames, {spec.span} needed")
        self._corners = list(itertools.product(_places(height, spec.size), _places(width, spec.size)))
        self._starts = _apart(_scenes(self._mapped), spec.span) or _apart([(0, length)], spec.span) or [(0, 0)]
        self.description = (
            f"{path}: one video of {length} frames of {width} x {height} pixels, {len(self)} clips: "
            f"{len(self._starts)} windows of {spec.frames} frames x {len(self._corners)} tiles of {spec.size} pixels"
            f"{' (the whole picture: put :1 behind the name)' if tiles > 1 else ''}"
        )

    def __len__(self) -> int:
        return len(self._corners) * len(self._starts)

    def clip(self, index: int, generator: np.random.Generator | None) -> Item:
        """The window and tile of this index, in its own place without a generator, else moved."""
        (top, left), (start, slack) = self._corners[index // len(self._starts)], self._starts[index % len(self._starts)]
        if generator is not None:
            start += draw(generator, slack)
            if self.spec.crop == "random":
                top, left = (draw(generator, side - self.spec.size) for side in self._mapped.shape[1:3])
        return Item(take_clip(self._mapped, self.spec, start, top, left))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _mapped=state["_stored"].frames())


def _places(length: int, size: int) -> list[int]:
    """Where squares begin along one side: side by side, and as a whole in the middle."""
    count = length // size
    return [(length - count * size) // 2 + i * size for i in range(count)]


def _scenes(frames: np.ndarray) -> list[tuple[int, int]]:
    """First frame of each scene, and of the next. Every 8th pixel says enough."""
    cuts = scene_cuts(torch.from_numpy(frames[:, ::8, ::8].copy()))
    starts = [0, *(t for t, cut in enumerate(cuts) if cut)]
    return list(zip(starts, [*starts[1:], len(frames)], strict=True))


def _apart(scenes: list[tuple[int, int]], span: int) -> list[tuple[int, int]]:
    """Starts of windows side by side within scenes, and by how much each can be moved before it is the next one."""
    return [
        (start, min(span - 1, end - span - start))
        for first, end in scenes
        for start in range(first, end - span + 1, span)
    ]
