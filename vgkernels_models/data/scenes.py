"""Scenes for VGAN: sprites that move over a still background, with the split into the two known.

Decides the rules (ours: the paper's Flickr videos have no ground truth): the background is a smooth gradient between
four random colours with 3 to 6 random rectangles on it; one or two sprites (disc or square, 8 to 14 pixels at 64) cross
it from one border to the opposite one, straight or along a quartic Bezier curve.
In `scenes-shift` the background moves by one pixel a frame, which the two-stream generator cannot express.
"""

from __future__ import annotations

import numpy as np

from vgkernels_models.data.generated import Genre, Videos, draw_videos, random_colours
from vgkernels_models.data.source import Item
from vgkernels_models.data.sprites import bezier, paint, stamp

FRAMES = 32


def scenes(n: int, size: int = 64, frames: int = FRAMES, seed: int = 0, shift: bool = False) -> Videos:
    """n scenes; the one of index i is a function of (seed, i).

    Returns:
        Videos: video (n, T, H, W, 3) uint8; no labels; truth "mask" (n, 1, T, H, W) bool, where sprites are seen, and
        "background" (n, H, W, 3) uint8, or (n, T, H, W, 3) with `shift`.

    Raises:
        ValueError: n or frames < 1, size < 16.
    """
    return draw_videos(_draw_shifted if shift else _draw, n, size, frames, seed)


def _draw(random: np.random.Generator, size: int, channels: int, moments: np.ndarray, length: int) -> Item:
    background = _background(random, size, size, channels)
    video = np.repeat(background[None], len(moments), 0)  # (T, H, W, C)
    return Item(video, None, {"mask": _sprites(random, video, moments, length), "background": background})


def _draw_shifted(random: np.random.Generator, size: int, channels: int, moments: np.ndarray, length: int) -> Item:
    down, backward = random.integers(2, size=2)
    height, width = size + (length - 1) * down, size + (length - 1) * (1 - down)
    plane = _background(random, height, width, channels)
    moved = length - 1 - moments if backward else moments  # (T,)
    seen = [plane[y : y + size, x : x + size] for y, x in zip(moved * down, moved * (1 - down), strict=True)]
    background = np.stack(seen)  # (T, H, W, C)
    video = background.copy()
    return Item(video, None, {"mask": _sprites(random, video, moments, length), "background": background})


def _background(random: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    corners = random_colours(random, channels, 2, 2).astype(np.float32)
    y, x = np.linspace(0, 1, height, dtype=np.float32), np.linspace(0, 1, width, dtype=np.float32)
    sides = corners[0] + y[:, None, None] * (corners[1] - corners[0])  # (H, 2, C): left and right
    image = sides[:, :1] + x[:, None] * (sides[:, 1:] - sides[:, :1])  # (H, W, C)
    image = np.rint(image).astype(np.uint8)
    short = min(height, width)
    for colour in random_colours(random, channels, int(random.integers(3, 7))):
        h, w = random.integers(short // 8, short // 2, size=2)
        top, left = random.integers(height - h + 1), random.integers(width - w + 1)
        image[top : top + h, left : left + w] = colour
    return image


def _sprites(random: np.random.Generator, video: np.ndarray, moments: np.ndarray, length: int) -> np.ndarray:
    """Draws them into (T, H, W, C) and returns where: (1, T, H, W) bool."""
    size = video.shape[1]
    mask = np.zeros(video.shape[:3], bool)
    for colour in random_colours(random, video.shape[3], int(random.integers(1, 3))):
        shape = stamp(bool(random.integers(2)), round(random.integers(8, 15) * size / 64))
        axis, backward, straight = random.integers(2, size=3)
        controls = random.uniform(0, size - len(shape), (2 if straight else 5, 2))
        controls[[0, -1], axis] = (size - len(shape), 0) if backward else (0, size - len(shape))
        paint(video, mask, shape, colour, np.rint(bezier(controls, length)[moments]).astype(int))
    return mask[None]


GENRE = Genre("scenes", "sprites over a still background", _draw, FRAMES)
SHIFTED = Genre("scenes-shift", "sprites over a background that moves", _draw_shifted, FRAMES)
