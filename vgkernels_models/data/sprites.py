"""What moves in drawn videos: stamps (square, disc) and the paths they follow.

Decides pixels of a stamp and positions along a path; colours, sizes and rules are left to the generators.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np


@lru_cache(maxsize=256)
def stamp(round_: bool, size: int) -> np.ndarray:
    """(size, size) bool: a full square, or a disc as MoCoGAN's shape motion has it.

    For an even size that is a disc of diameter size - 1 with a tip of one pixel on the right and at the bottom; 47, 79,
    111 and 151 pixels for 8, 10, 12 and 14. The paper's files have no odd size; there it is the centred disc.
    """
    if not round_:
        return np.ones((size, size), bool)
    if size % 2:
        offset = np.arange(size) - size // 2
        return offset[:, None] ** 2 + offset**2 <= (size / 2) ** 2
    radius = size // 2
    offset = np.arange(size) - (radius - 1)  # -(radius - 1) ... radius
    y, x = offset[:, None], offset
    inside = (x**2 + y**2 <= radius**2 + 1) & (np.maximum(x, y) < radius)
    return inside | ((x == radius) & (y == 0)) | ((y == radius) & (x == 0))


def bezier(controls: np.ndarray, length: int) -> np.ndarray:
    """(length, 2) points at equal steps of the parameter along the Bezier curve of (degree + 1, 2) control points."""
    return _bernstein(len(controls) - 1, length) @ controls


@lru_cache(maxsize=64)
def _bernstein(degree: int, length: int) -> np.ndarray:
    u = np.linspace(0, 1, length)[:, None]
    k = np.arange(degree + 1)
    return np.array([comb(degree, i) for i in k]) * u**k * (1 - u) ** (degree - k)  # (length, degree + 1)


def paint(video: np.ndarray, mask: np.ndarray, shape: np.ndarray, colour: np.ndarray, path: np.ndarray) -> None:
    """Draws a stamp into (T, H, W, C) and its mask (T, H, W), with its top left corner at (x, y) = path[t]."""
    side = len(shape)
    for frame, covered, (x, y) in zip(video, mask, path.tolist(), strict=True):
        frame[y : y + side, x : x + side][shape] = colour
        covered[y : y + side, x : x + side] |= shape
