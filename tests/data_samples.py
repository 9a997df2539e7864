"""Videos, images, arrays and zips that the tests of data write themselves: frame t is of one grey level, 10 + 8 t.

So a decoded frame says which one it is, through any codec and at any size.
"""

import zipfile
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

for needed in ("PIL", "av", "rich"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'vgkernels[models]'")

from PIL import Image  # noqa: E402

from vgkernels_models.data.source import ClipSpec  # noqa: E402

SPEC = ClipSpec(frames=4, size=16)


def frames(count: int, height: int = 24, width: int = 32, first: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8; frame t is grey, of level 10 + 8 (first + t)."""
    levels = 10 + 8 * (first + np.arange(count)) % 240
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def moments(video: np.ndarray) -> list[int]:
    """Which frame each of (T, H, W, C) is."""
    return [round((float(frame.mean()) - 10) / 8) for frame in video]


def write_video(
    path: Path, count: int = 12, height: int = 24, width: int = 32, rate: int = 25, times: list[int] | None = None
) -> Path:
    """A file of the format that its name says; `times` are of each frame, in 1 / rate seconds."""
    import av

    codec, pixels = {
        ".mp4": ("libx264", "yuv420p"),
        ".mov": ("libx264", "yuv420p"),
        ".mkv": ("libx264", "yuv420p"),
        ".avi": ("mpeg4", "yuv420p"),
        ".webm": ("libvpx", "yuv420p"),
        ".gif": ("gif", "gray"),
    }[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for t, image in enumerate(frames(count, height, width)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (times[t] if times else t), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, count: int = 6, suffix: str = ".png", first: int = 0) -> Path:
    """A folder of images called 1.png, 2.png, ..., 10.png: in the order of names, 10 comes before 2."""
    folder.mkdir(parents=True)
    for t, image in enumerate(frames(count, first=first)):
        Image.fromarray(image).save(folder / f"{t + 1}{suffix}")
    return folder


def write_strip(path: Path, count: int = 6, side: int = 16, vertical: bool = False) -> Path:
    """One image with its frames side by side, or one above the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(frames(count, side, side)), 0 if vertical else 1)).save(path)
    return path


def write_zip(path: Path, videos: dict[str, int]) -> Path:
    """Folders of frames: name -> how many."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, count in videos.items():
            for t, image in enumerate(frames(count)):
                archive.writestr(f"{name}/{t + 1}.png", png(image))
    return path


def png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
