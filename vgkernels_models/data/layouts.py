"""Finds the videos of a data set: which layout it has, and for each video its frames, class and split.

Decides from names and image sizes alone; nothing is decoded here, and the special rules of UCF-101, KTH and list files
are left to `known_sets`.

| layout | a video is | class |
|---|---|---|
| `files` | a file: mp4 avi webm mkv mov m4v mpg gif | the folder it is in, where there are several |
| `frames` | a folder of png or jpg, in natural order | the folder above, where there are several |
| `strips` | an image with its frames side by side or one above the other | the folder it is in |
| `arrays`, `arrays-time-first` | uint8 npy or npz: (N, T, H, W[, C]) or (T, H, W[, C]); (T, N, H, W[, C]) | - |
| `zip` | a folder of images inside a zip | the folder above |
| `list` | a row of a txt or csv: path, class, split | as listed |
| `ucf101`, `kth` | a file (or folder of frames), by the names of these data sets | in its name |

A folder called train, test or val is a split.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from vgkernels_models.data.clips import ClipError
from vgkernels_models.data.decode import BROKEN, MAX_BYTES, Recording, open_array, open_image
from vgkernels_models.data.source import DataError

LAYOUTS = ("files", "frames", "strips", "arrays", "arrays-time-first", "zip", "list", "ucf101", "kth")
VIDEOS = {".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".gif"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
ARRAYS = {".npy", ".npz"}
LISTS = {".txt", ".csv", ".lst"}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}  # name of a folder -> split
_LONG = 3  # an image at least so many times as long as wide, and a whole number of times, is a strip


@dataclass
class Found:
    """The videos of a data set."""

    layout: str
    recordings: list[Recording]
    problems: list[tuple[str, str]] = field(default_factory=list)  # name and reason of what can't be a video
    note: str = ""  # what else should be said of it


def is_video(path: Path) -> bool:
    """By its name; a packed video, as Debian has them, counts."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in VIDEOS


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame 10 behind frame 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def find_recordings(root: Path, layout: str | None = None, split: str | None = None) -> Found:
    """The videos of a folder or file, in a layout that is found by itself or given.

    Raises:
        DataError: no such layout, or no videos in this layout.
    """
    from vgkernels_models.data import known_sets

    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "list" or (layout is None and root.suffix.lower() in LISTS and root.is_file()):
        found = known_sets.listed(root)
    else:
        files, problems = _walk(root)
        by_name = layout in ("ucf101", "kth")
        found = _of_files(root, files, None if by_name else layout)
        found.problems[:0] = problems
        if layout is None or by_name:
            found = known_sets.by_name(root, found, layout, split)
    if not found.recordings:
        looked_for = (
            f"in the layout {layout!r}" if layout else "(video files, images, npy, npz, zip, or a list of them)"
        )
        reasons = "".join(f"; {name}: {reason}" for name, reason in found.problems[:3])
        raise DataError(f"{root}: no videos found {looked_for}{reasons}")
    found.recordings = _with_classes([_with_split(recording) for recording in found.recordings])
    return found


def _walk(root: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """All files in natural order. Links to folders are followed, each folder is read once; hidden ones are left out."""
    if root.is_file():
        return [root], []
    files, problems, seen, waiting = [], [], set(), [root]
    while waiting:
        folder = waiting.pop()
        name = str(folder.relative_to(root))
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                problems.append((name, "a link to a folder that was read already"))
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in os.scandir(folder):
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    files.append(Path(entry.path))
                elif Path(entry.name).suffix.lower() in VIDEOS | IMAGES | ARRAYS:
                    problems.append((str(Path(name, entry.name)), "neither a file nor a folder, or a link to nowhere"))
        except OSError as error:
            problems.append((name, f"not readable ({error.strerror})"))
    return sorted(files, key=lambda file: natural(file.relative_to(root).as_posix())), problems


def _of_files(root: Path, files: Sequence[Path], layout: str | None) -> Found:
    """The videos among the files, in the given layout or in the first that there are files for."""
    videos = [file for file in files if is_video(file)]
    arrays = [file for file in files if file.suffix.lower() in ARRAYS]
    images = [file for file in files if file.suffix.lower() in IMAGES]
    zips = [file for file in files if file.suffix.lower() == ".zip"]
    if layout == "files" or (layout is None and videos):
        return Found("files", [Recording(_name(root, file), "video", file) for file in videos])
    if layout in ("arrays", "arrays-time-first") or (layout is None and arrays):
        return _of_arrays(root, arrays, layout)
    if layout == "zip" or (layout is None and zips and not images):
        return _of_zips(root, zips)
    if layout == "strips" or (layout is None and _are_strips(images)):
        return Found("strips", [Recording(_name(root, file), "strip", file) for file in images])
    folders: dict[Path, list[str]] = {}
    for file in images:
        folders.setdefault(file.parent, []).append(file.name)
    found = [Recording(_name(root, folder), "frames", folder, tuple(names)) for folder, names in folders.items()]
    return Found("frames", found)


def _name(root: Path, path: Path) -> str:
    return root.name if path == root else path.relative_to(root).as_posix()


def _are_strips(images: Sequence[Path]) -> bool:
    """Whether most of a few images, spread over all, are so much longer than wide that they must be strips."""
    votes = []
    for image in images[:: max(1, len(images) // 8)]:
        with contextlib.suppress(*BROKEN):
            short, long = sorted(open_image(image).size)
            votes.append(long % short == 0 and long >= _LONG * short)
    return 2 * sum(votes) > len(votes)


def _of_arrays(root: Path, files: Sequence[Path], layout: str | None) -> Found:
    found = Found(layout or "arrays", [])
    for file in files:
        name = _name(root, file)
        try:
            array = open_array(file, file.stat().st_mtime_ns)
            parts, time_first = _parts(array, layout)
        except BROKEN as error:
            found.problems.append((name, f"not readable ({error})" if not isinstance(error, ClipError) else str(error)))
            continue
        if time_first and layout is None:
            found.layout = "arrays-time-first"
        if parts is None:
            found.recordings.append(Recording(name, "array", file))
        else:
            at = (Recording(f"{name}[{i}]", "array", file, part=i, time_first=time_first) for i in range(parts))
            found.recordings.extend(at)
    return found


def _parts(array: np.ndarray, layout: str | None) -> tuple[int | None, bool]:
    """How many clips an array holds (None: it is one clip), and whether their time comes first."""
    shape, colours = array.shape, array.shape[-1:] in ((1,), (3,))
    expected = "(T, N, H, W[, C])" if layout == "arrays-time-first" else "(N, T, H, W[, C]) or (T, H, W[, C])"
    if array.dtype not in (np.uint8, np.bool_):
        raise ClipError(f"expected uint8 (0 ... 255) or bool, got {array.dtype}")
    if layout != "arrays-time-first" and (len(shape) == 3 or (len(shape) == 4 and colours)):
        return None, False
    if 0 in shape or not (len(shape) == 4 or (len(shape) == 5 and colours)):
        raise ClipError(f"expected shape {expected} with C = 1 or 3, got {shape}")
    time_first = shape[0] < 1000 <= shape[1] if layout is None else layout == "arrays-time-first"  # as Moving MNIST's
    return shape[int(time_first)], time_first


def _of_zips(root: Path, files: Sequence[Path]) -> Found:
    found = Found("zip", [])
    for file in files:
        folders: dict[str, list[str]] = {}
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except BROKEN as error:
            found.problems.append((_name(root, file), f"not readable ({error})"))
            continue
        for member in members:
            path = PurePosixPath(member.filename)
            if path.suffix.lower() not in IMAGES or path.parts[0] == "__MACOSX":
                continue
            if reason := _refused(member):
                found.problems.append((f"{_name(root, file)}/{member.filename}", reason))
            else:
                folders.setdefault(str(path.parent), []).append(member.filename)
        for folder, names in folders.items():
            found.recordings.append(Recording(folder, "zip", file, tuple(sorted(names, key=natural))))
    found.recordings.sort(key=lambda recording: natural(recording.name))
    return found


def _refused(member: zipfile.ZipInfo) -> str:
    """Why a member of a zip is not read, if it is not. Nothing is ever unpacked to disk."""
    if member.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.filename):
        return "a path that leads out of the archive"
    if member.flag_bits & 1:
        return "encrypted"
    return f"{member.file_size} bytes after unpacking" if member.file_size > MAX_BYTES else ""


def _with_split(recording: Recording) -> Recording:
    named = [SPLITS[part.lower()] for part in PurePosixPath(recording.name).parent.parts if part.lower() in SPLITS]
    return replace(recording, split=named[0]) if named and not recording.split else recording


def _with_classes(recordings: list[Recording]) -> list[Recording]:
    """Takes the folders that videos are in for classes, unless the layout named some, or no folder has two videos."""
    names = [PurePosixPath(recording.name).parent.name for recording in recordings]
    named = any(recording.label for recording in recordings)
    folders = {name for name in names if name and name.lower() not in SPLITS}
    if named or not 1 < len(folders) < len(recordings) or folders != set(names):
        return recordings
    return [replace(recording, label=name) for recording, name in zip(recordings, names, strict=True)]
