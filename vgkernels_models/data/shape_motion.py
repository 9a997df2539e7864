"""MoCoGAN's shape motion: one square or disc of one colour on black, moving up or to the left along a curve.

Decides the rules, reconstructed from the 8,000 clips that the authors published (Tulyakov et al., CVPR 2018; the paper
says "left to right and top to bottom", the clips go the other way).

At 64 pixels: side s out of 8, 10, 12, 14; the colour uniform in RGB; the top left corner on a quartic Bezier curve
from (a, 62 - s) to (a, 1) in class 0 and from (62 - s, a) to (1, a) in class 1, with a and the three inner control
points uniform in the box from 1 to 62 - s; rounded to whole pixels. Other sizes scale s and the margins 1 and 62.
"""

from __future__ import annotations

import numpy as np

from vgkernels_models.data.generated import Genre, Videos, draw_videos, random_colours
from vgkernels_models.data.source import Item
from vgkernels_models.data.sprites import bezier, paint, stamp

CLASSES = ("up", "left")
FRAMES = 32  # of the published clips; the paper trains on every second one


def shape_motion(n: int, size: int = 64, frames: int = FRAMES, seed: int = 0) -> Videos:
    """n videos of shape motion; the one of index i is a function of (seed, i).

    Returns:
        Videos: video (n, T, H, W, 3) uint8; label (n,), an index into `CLASSES`; truth "mask" (n, 1, T, H, W) bool,
        "colour" (n, 3) uint8, "position" (n, T, 2) float32, pixels (x, y) of the top left corner.

    Raises:
        ValueError: n or frames < 1, size < 16.

    >>> shape_motion(2, size=32).video.shape
    (2, 32, 32, 32, 3)
    """
    return draw_videos(_draw, n, size, frames, seed)


def _draw(random: np.random.Generator, size: int, channels: int, moments: np.ndarray, length: int) -> Item:
    side = round((8, 10, 12, 14)[random.integers(4)] * size / 64)
    shape = stamp(bool(random.integers(2)), side)
    label = int(random.integers(2))
    low, high = max(1, round(size / 64)), round(62 * size / 64) - side
    colour = random_colours(random, channels)
    controls = random.uniform(low, high, (5, 2))  # (x, y)
    moving = 1 - label  # the axis of the motion: y for class 0
    controls[4, label] = controls[0, label]
    controls[0, moving], controls[4, moving] = high, low
    path = np.rint(bezier(controls, length)[moments]).astype(int)  # (T, 2)
    video = np.zeros((len(moments), size, size, channels), np.uint8)
    mask = np.zeros(video.shape[:3], bool)
    paint(video, mask, shape, colour, path)
    return Item(video, label, {"mask": mask[None], "colour": colour, "position": path.astype(np.float32)})


GENRE = Genre("shape-motion", "one coloured shape on black, as in MoCoGAN", _draw, FRAMES, CLASSES)
