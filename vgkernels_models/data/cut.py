"""Takes a clip out of the frames of a video.

Decides what start, stride, crop and a video that is too short mean; which start and crop is left to the sources.
"""

from __future__ import annotations

import numpy as np

from vgkernels_models.data.source import ClipSpec


def draw(generator: np.random.Generator | None, most: int) -> int:
    """A whole number from 0 to `most`, both included; the middle one without a generator."""
    return most // 2 if generator is None else int(generator.integers(most + 1))


def take_clip(frames: np.ndarray, spec: ClipSpec, start: int, top: int, left: int) -> np.ndarray:
    """(T, size, size, C) out of (N, H, W, C), without a copy where there are enough frames.

    Behind the last frame the video begins again (`spec.short` = "loop") or stands still.
    """
    square = frames[:, top : top + spec.size, left : left + spec.size]
    if start + spec.span <= len(frames):
        return square[start : start + spec.span : spec.stride]
    moments = start + np.arange(spec.frames) * spec.stride
    return square[moments % len(frames) if spec.short == "loop" else moments.clip(max=len(frames) - 1)]
