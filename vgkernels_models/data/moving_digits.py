"""Moving digits: two handwritten digits that bounce within the frame (Srivastava et al. 2015, as TGAN trained on).

Decides how they move; which digits there are is left to `digits`.

At 64 pixels a digit is 28 x 28. In unit coordinates it starts anywhere, in any direction, goes 0.1 a frame, and is
reflected at the border, where it is first set on it. Digits overlap by their maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path

import numpy as np

from vgkernels_models.data.digits import DigitSet, find_digits
from vgkernels_models.data.generated import Genre, Videos, draw_videos
from vgkernels_models.data.source import Item

FRAMES = 20  # of the standard test set
_SPEED = 0.1  # of the free way, a frame


def moving_digits(
    n: int, size: int = 64, frames: int = FRAMES, seed: int = 0, digits: str | Path | None = None
) -> Videos:
    """n videos of two moving digits; the one of index i is a function of (seed, i) and of the set of digits.

    Args:
        n: how many videos.
        size: H = W, pixels.
        frames: T.
        seed: gives the same videos again.
        digits: MNIST's idx file of images, gzipped or not; see `find_digits` for what is taken by default.

    Returns:
        Videos: video (n, T, H, W, 1) uint8; no labels; truth "position" (n, T, 2, 2) float32, pixels (x, y) of the top
        left corner of both digits, and "digits" (n, 2), their values, where they are known.

    Raises:
        ValueError: n or frames < 1, size < 16, or a file that is not MNIST's.
    """
    return draw_videos(_Artist(find_digits(digits)), n, size, frames, seed, channels=1)


def genre(digits: str | Path | None = None) -> Genre:
    """What `--data moving-digits` draws."""
    found = find_digits(digits)
    return Genre("moving-digits", f"two bouncing digits ({found.name})", _Artist(found), FRAMES)


@dataclass(frozen=True)
class _Artist:
    """Draws with one set of digits."""

    digits: DigitSet

    def __call__(self, random: np.random.Generator, size: int, channels: int, moments: np.ndarray, length: int) -> Item:
        side = round(28 * size / 64)
        frames = np.zeros((len(moments), size, size), np.uint8)
        chosen = random.integers(len(self.digits.images), size=2)
        paths = np.stack([(_path(random, length) * (size - side)).astype(int)[moments] for _ in chosen], 1)  # (T, 2, 2)
        for number, digit in enumerate(chosen):
            image = _resized(self.digits.images[digit], side)
            for frame, (x, y) in zip(frames, paths[:, number].tolist(), strict=True):
                seen = frame[y : y + side, x : x + side]
                np.maximum(seen, image, out=seen)
        truth = {"position": paths.astype(np.float32)}
        if self.digits.values is not None:
            truth["digits"] = self.digits.values[chosen]
        return Item(np.repeat(frames[..., None], channels, -1), None, truth)


def _path(random: np.random.Generator, length: int) -> np.ndarray:
    """(length, 2): (x, y) in [0, 1] after each step."""
    place, angle = random.uniform(size=2).tolist(), random.uniform(0, 2 * pi)
    speed = [_SPEED * cos(angle), _SPEED * sin(angle)]
    path = np.empty((length, 2))
    for t in range(length):
        for axis in (0, 1):
            place[axis] += speed[axis]
            if not 0 < place[axis] < 1:
                place[axis] = 0.0 if place[axis] <= 0 else 1.0
                speed[axis] = -speed[axis]
        path[t] = place
    return path


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image  # optional dependency: here, so that the package imports without it

    if image.shape == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
