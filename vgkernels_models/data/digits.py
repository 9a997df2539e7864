"""Sets of handwritten digits for moving digits.

Decides where digits come from: the user's MNIST file, the 1,797 small ones that scikit-learn carries, else drawn
strokes; how they move is left to `moving_digits`. Nothing is downloaded; of scikit-learn only the file is read.
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vgkernels_models.data.source import DataError

_HANDS = 40  # how often each drawn digit is written
_STROKES: dict[int, list[list[tuple[float, float]]]] = {
    0: [[(0.5, 0), (0.15, 0.25), (0.15, 0.75), (0.5, 1), (0.85, 0.75), (0.85, 0.25), (0.5, 0)]],
    1: [[(0.25, 0.25), (0.55, 0), (0.55, 1)]],
    2: [[(0.15, 0.2), (0.5, 0), (0.85, 0.25), (0.15, 1), (0.9, 1)]],
    3: [[(0.15, 0.05), (0.8, 0.1), (0.45, 0.45), (0.85, 0.7), (0.5, 1), (0.1, 0.9)]],
    4: [[(0.6, 0), (0.1, 0.65), (0.9, 0.65)], [(0.7, 0.35), (0.7, 1)]],
    5: [[(0.85, 0), (0.25, 0), (0.2, 0.45), (0.7, 0.45), (0.85, 0.75), (0.5, 1), (0.1, 0.9)]],
    6: [[(0.75, 0), (0.25, 0.45), (0.15, 0.8), (0.5, 1), (0.85, 0.75), (0.5, 0.5), (0.2, 0.7)]],
    7: [[(0.1, 0), (0.9, 0), (0.4, 1)]],
    8: [
        [(0.5, 0.45), (0.2, 0.2), (0.5, 0), (0.8, 0.2), (0.5, 0.45), (0.15, 0.75), (0.5, 1), (0.85, 0.75), (0.5, 0.45)]
    ],
    9: [[(0.8, 0.3), (0.5, 0.5), (0.2, 0.25), (0.5, 0), (0.8, 0.3), (0.65, 1)]],
}  # digit -> lines of points (x, y), y downwards


@dataclass(frozen=True, eq=False)
class DigitSet:
    """N pictures of digits, white on black."""

    name: str
    images: np.ndarray  # (N, H, W) uint8
    values: np.ndarray | None = None  # (N,) int64, 0 ... 9, where known


@lru_cache(maxsize=4)
def find_digits(path: str | Path | None = None) -> DigitSet:
    """The digits of an idx file; without one those of scikit-learn, or drawn ones where it is not installed.

    Raises:
        DataError: no such file, or not an idx file of images.
    """
    if path is not None:
        return DigitSet(str(path), read_idx_images(path))
    return _of_scikit_learn() or drawn_digits()


def read_idx_images(path: str | Path) -> np.ndarray:
    """Images (N, H, W) uint8 of an idx file as MNIST and Fashion-MNIST have them, gzipped or not.

    Raises:
        DataError: no such file, or not an idx file of images.
    """
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            head = file.read(16)
            if len(head) < 16 or head[:4] != b"\0\0\x08\x03":
                raise DataError(f"{path}: expected an idx file of images (train-images-idx3-ubyte), got {head[:4]!r}")
            n, height, width = struct.unpack(">3I", head[4:])
            if not 0 < n * height * width < 1 << 32:
                raise DataError(f"{path}: expected N x H x W images, got {n} x {height} x {width}")
            data = file.read(n * height * width + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable ({error})") from error
    if len(data) != n * height * width:
        got = "more" if len(data) > n * height * width else len(data)
        raise DataError(f"{path}: expected {n} x {height} x {width} bytes, got {got}")
    return np.frombuffer(data, np.uint8).reshape(n, height, width)


def drawn_digits() -> DigitSet:
    """Ten digits, each written 40 times as lines of varying slant, width and proportion; the same ones every time."""
    random, side = np.random.default_rng(0), 28
    y, x = np.mgrid[:side, :side] + 0.5
    images = np.zeros((10 * _HANDS, side, side), np.uint8)
    for i in range(len(images)):
        slant, thick = random.uniform(-0.25, 0.25), random.uniform(1.1, 1.9)
        scale, centre = random.uniform((10, 16), (15, 20)), side / 2 + random.uniform(-1, 1, 2)
        distance = np.full((side, side), np.inf)
        for line in _STROKES[i % 10]:
            points = np.array(line) - 0.5 + random.normal(0, 0.03, (len(line), 2))
            points[:, 0] -= slant * points[:, 1]
            points = points * scale + centre
            for (ax, ay), (bx, by) in itertools.pairwise(points):
                along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / max((bx - ax) ** 2 + (by - ay) ** 2, 1e-9)
                along = along.clip(0, 1)
                distance = np.minimum(distance, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
        images[i] = (255 * (thick + 0.5 - distance).clip(0, 1)).astype(np.uint8)
    return DigitSet("drawn strokes", images, np.arange(10 * _HANDS) % 10)


def _of_scikit_learn() -> DigitSet | None:
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",")  # (1797, 65): 8 x 8 values up to 16, and the digit
            images = (rows[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
            return DigitSet("scikit-learn's", images, rows[:, 64].astype(np.int64))
    return None
