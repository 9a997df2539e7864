"""Reads the frames of one recording, whatever it is stored as, one at a time and already small.

Decides what counts as broken (`ClipError`, with the reason) and how pixels are scaled; where recordings are found is
left to `layouts`, where frames are kept to `cache`. Runs once a recording, before any worker is started.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import lzma
import math
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vgkernels_models.data.clips import ClipError, stated_end

MAX_PIXELS = 1 << 26  # of a frame or a strip, refused before it is decoded: 8192 x 8192
MAX_BYTES = 1 << 33  # of what is unpacked into memory at once: Moving MNIST's test set has 0.8e9
_OPENING = threading.Lock()
BROKEN = (  # what decoders raise on a broken file
    *(OSError, ValueError, SyntaxError, EOFError, RuntimeError, MemoryError, tokenize.TokenError, struct.error),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Recording:
    """One video of a data set: where its frames are, and what the layout says about it."""

    name: str  # as it is shown to people
    kind: Literal["video", "frames", "strip", "array", "zip"]
    path: Path  # the file; of "frames" the folder
    members: tuple[str, ...] = ()  # "frames", "zip": names of the images, in order
    part: int | None = None  # "array": the place along the clips' axis
    time_first: bool = False  # "array": (T, N, ...)
    label: str = ""  # the class
    split: str = ""


@dataclass(frozen=True)
class Shape:
    """What frames are made into before they are kept."""

    side: int  # pixels of the shorter side
    channels: int = 3
    fps: float | None = None
    squeeze: bool = False  # (side, side), whatever the aspect


def frames_of(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
    """The frames of a recording: (H, W, C) uint8, all of one size.

    Raises:
        ClipError: broken, cut off, too large, or not what its layout says; the message is the reason alone.
    """
    import av

    read: Any = {"video": _video, "frames": _images, "strip": _strip, "array": _array, "zip": _zipped}[recording.kind]
    try:
        if shape.fps is not None and recording.kind != "video":
            raise ClipError("no time stamps in this layout: choose by stride, not by fps")
        if recording.kind != "frames" and not recording.path.stat().st_size:
            raise ClipError("an empty file")
        for frame in read(recording, shape):
            yield frame if shape.channels == 3 else grey(frame)
    except ClipError:
        raise
    except (*BROKEN, av.error.FFmpegError) as error:
        raise ClipError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return f"not readable ({getattr(error, 'strerror', None) or str(error) or type(error).__name__})"


def grey(frame: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 as (..., 1), by ITU-R 601 in the integers that Pillow takes."""
    red, green, blue = (frame[..., i].astype(np.uint32) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[..., None]


def _video(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
    times: list[float] = []

    def decoded(container: Any, stream: Any) -> Iterator[tuple[float | None, np.ndarray]]:
        width = height = 0
        for frame in container.decode(stream):
            _refuse_large(frame.width, frame.height)
            width, height = (width, height) if width else _scaled(frame.width, frame.height, shape)
            how = "AREA" if min(frame.width, frame.height) > shape.side else "BILINEAR"
            image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=how)
            if frame.time is not None:
                times.append(frame.time)
            yield frame.time, np.rot90(image, frame.rotation // 90)  # the rotation that a phone writes

    with _opened(recording.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads can deadlock when decoding stops early (PyAV#1849, #1861)
        frames = decoded(container, stream)
        yield from (image for _, image in frames) if shape.fps is None else _at_rate(frames, shape.fps)
        gap = max((later - earlier for earlier, later in itertools.pairwise(times)), default=math.inf)
        if times and stated_end(container) - times[-1] > 3 * gap:
            raise ClipError(f"breaks off after {len(times)} frames")


def short_side(path: Path) -> int:
    """Pixels of a video's shorter side, by its header.

    Raises:
        ClipError: not a readable video.
    """
    import av

    try:
        with _opened(path) as container:
            return min(container.streams.video[0].codec_context.width, container.streams.video[0].codec_context.height)
    except (*BROKEN, av.error.FFmpegError) as error:
        raise error if isinstance(error, ClipError) else ClipError(_reason(error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A container with a video stream whose frames are not too large."""
    import av  # optional dependency: here, so that the package imports without it

    with av.open(io.BytesIO(_unpacked(path)) if path.suffix == ".gz" else str(path)) as container:
        if not container.streams.video:
            raise ClipError("no video stream in this file")
        context = container.streams.video[0].codec_context
        if context is None:
            raise ClipError("a video stream of an unknown codec")
        _refuse_large(context.width, context.height)
        yield container


def _at_rate(frames: Iterable[tuple[float | None, np.ndarray]], fps: float) -> Iterator[np.ndarray]:
    """What is on the screen 0, 1/fps, 2/fps, ... seconds after the first frame, until the last one's time is up."""
    start, shown, last, gap, count = 0.0, None, 0.0, 0.0, 0
    for time, image in frames:
        if time is None:
            raise ClipError("a frame without a time stamp: choose by stride, not by fps")
        if shown is None:
            start = time
        gap, last = time - start - last, time - start
        while shown is not None and count / fps < last - 1e-4:
            yield shown
            count += 1
        shown = image
    while shown is not None and (not count or count / fps < last + gap - 1e-4):
        yield shown
        count += 1


def _images(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
    return _one_size(((member, recording.path / member) for member in recording.members), shape)


def _zipped(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
    archive = _archive(recording.path, recording.path.stat().st_mtime_ns)
    return _one_size(((member, io.BytesIO(archive.read(member))) for member in recording.members), shape)


def _one_size(files: Iterable[tuple[str, Any]], shape: Shape) -> Iterator[np.ndarray]:
    first = None
    for name, file in files:
        image = open_image(file)
        first = first or image.size
        if image.size != first:
            raise ClipError(
                f"{name} has {image.width} x {image.height} pixels, the first frame {first[0]} x {first[1]}"
            )
        yield _resized(np.asarray(image.convert("RGB")), shape)


def _strip(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
    image = np.asarray(open_image(recording.path).convert("RGB"))  # (H, W, 3)
    side, along = min(image.shape[:2]), int(image.shape[1] > image.shape[0])
    for t in range(image.shape[along] // side):
        yield _resized(image.take(range(t * side, (t + 1) * side), along), shape)


def _array(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
    with _OPENING:  # or every thread would load the same npz
        array = open_array(recording.path, recording.path.stat().st_mtime_ns)
    if recording.part is not None:
        array = array[:, recording.part] if recording.time_first else array[recording.part]
    _refuse_large(array.shape[2], array.shape[1])
    for frame in array:  # (H, W[, C])
        frame = frame if frame.ndim == 3 else frame[..., None]
        frame = frame * np.uint8(255) if frame.dtype == np.bool_ else frame
        yield _resized(np.broadcast_to(frame[..., :3], (*frame.shape[:2], 3)), shape)


def open_image(file: Any) -> Any:
    """A Pillow image whose header is read and allowed, and whose pixels are not read yet."""
    from PIL import Image  # optional dependency: here, so that the package imports without it

    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ClipError(str(error)) from error
    _refuse_large(*image.size)
    if image.mode[0] in "IF":
        raise ClipError(f"expected an image of 8 bits a channel, got mode {image.mode}")
    return image


def _resized(frame: np.ndarray, shape: Shape) -> np.ndarray:
    from PIL import Image

    size = _scaled(frame.shape[1], frame.shape[0], shape)
    if size == (frame.shape[1], frame.shape[0]):
        return frame
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BILINEAR))


def _scaled(width: int, height: int, shape: Shape) -> tuple[int, int]:
    if shape.squeeze:
        return shape.side, shape.side
    scale = shape.side / min(width, height)
    return max(shape.side, round(width * scale)), max(shape.side, round(height * scale))


def _refuse_large(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ClipError(f"expected frames of 1 to {MAX_PIXELS} pixels, got {width} x {height}")


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ClipError(f"expected at most {MAX_BYTES} bytes after unpacking")
    return data


@lru_cache(maxsize=2)
def _archive(path: Path, mtime: int) -> zipfile.ZipFile:
    """An open zip; its list of members may take seconds to read, so it is kept."""
    return zipfile.ZipFile(path)


@lru_cache(maxsize=2)
def open_array(path: Path, mtime: int) -> np.ndarray:
    """The array of an npy (mapped) or npz (loaded) file.

    Raises:
        ClipError: an npz that holds several arrays, none of them named "video" or "videos", or too large a one.
    """
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
    named = [name for name in sizes if name in ("video", "videos")] or list(sizes)
    if len(named) != 1:
        raise ClipError(f'expected one array, or one named "video" or "videos", got {", ".join(sizes) or "none"}')
    if sizes[named[0]] > MAX_BYTES:
        raise ClipError(f"expected at most {MAX_BYTES} bytes after unpacking, got {sizes[named[0]]}: save it as npy")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[named[0]]


def close_files() -> None:
    """Forgets archives and arrays that are kept open from one recording to the next."""
    _archive.cache_clear()
    open_array.cache_clear()
