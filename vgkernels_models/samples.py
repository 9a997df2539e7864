"""Generated clips as files: a looping grid (mp4, gif), a strip of frames a clip (png), or the numbers (npz).

Decides how clips become bytes and pictures; which clips is left to the caller.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FORMATS = (".mp4", ".gif", ".png", ".npz")
_WIDTH = 512  # pixels of a grid at least: small clips are enlarged by a whole factor
_GAP = 2  # pixels between clips


def to_bytes(video: Tensor) -> np.ndarray:
    """(N, C, T, H, W) in [-1, 1] as uint8 (N, T, H, W, C); the inverse of what data sets do."""
    pixels = ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()


def check_format(path: Path) -> None:
    """Refuses what `write_samples` can't write, before the work.

    Raises:
        ValueError: another ending, or no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(FORMATS)}, got {path.suffix or 'no ending'}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no such folder as {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file's name, got a folder")


def write_samples(path: Path, video: Tensor, fps: float = 10.0) -> None:
    """Writes clips in the format that the name ends in; the file is whole or not there.

    Args:
        path: .mp4 or .gif (a grid of all clips), .png (one row a clip, its frames from left to right), or .npz (entry
            "video": uint8 (N, T, H, W, C)).
        video: (N, C, T, H, W) in [-1, 1], C = 1 or 3.
        fps: frames a second of mp4 and gif.

    Raises:
        ValueError: another ending, no such folder, or fps out of (0, 1000].
    """
    check_format(path)
    if not 0 < fps <= 1000:
        raise ValueError(f"expected fps to be above 0 and at most 1000, got {fps}")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        _WRITERS[path.suffix.lower()](partial, to_bytes(video), fps)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def grid(clips: np.ndarray) -> np.ndarray:
    """uint8 (N, T, H, W, C) as one clip (T, H', W', 3): nearly square, in the order in which one reads."""
    n, frames, height, width, channels = clips.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((frames, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), np.uint8)
    for index, clip in enumerate(clips):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[:, top : top + height, left : left + width] = clip
    return _colour(sheet)


def strip(clips: np.ndarray) -> np.ndarray:
    """uint8 (N, T, H, W, C) as one picture (N H, T W, 3): a row is a clip."""
    n, frames, height, width, channels = clips.shape
    return _colour(clips.transpose(0, 2, 1, 3, 4).reshape(n * height, frames * width, channels))


def _write_mp4(path: Path, clips: np.ndarray, fps: float) -> None:
    from vgkernels_models.report.encode import ClipEncoder

    encoder = ClipEncoder(fps, min_width=_WIDTH)
    for frame in grid(clips):
        encoder.add(torch.from_numpy(frame).permute(2, 0, 1))
    path.write_bytes(encoder.finish())


def _write_gif(path: Path, clips: np.ndarray, fps: float) -> None:
    from PIL import Image

    sheet = grid(clips)
    scale = max(1, -(-_WIDTH // sheet.shape[2]))
    frames = [Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1)) for frame in sheet]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def _write_png(path: Path, clips: np.ndarray, fps: float) -> None:
    from PIL import Image

    Image.fromarray(strip(clips)).save(path)


def _write_npz(path: Path, clips: np.ndarray, fps: float) -> None:
    np.savez_compressed(path, video=clips)


def _colour(pixels: np.ndarray) -> np.ndarray:
    """Grey as three equal channels."""
    return pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1)


_WRITERS: dict[str, Callable[[Path, np.ndarray, float], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".png": _write_png,
    ".npz": _write_npz,
}
