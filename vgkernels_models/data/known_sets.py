"""Data sets that say more than their folders do: UCF-101 with its split lists, KTH by persons, and list files.

Decides classes and splits of these; how their files are found and read is left to `layouts` and `decode`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vgkernels_models.data.decode import Recording
from vgkernels_models.data.layouts import IMAGES, Found, is_video, natural
from vgkernels_models.data.source import DataError

_UCF = re.compile(r"v_(\w+)_g\d\d_c\d\d")
_KTH = re.compile(r"person(\d\d)_(\w+?)_d\d")
_KTH_TRAINING = range(1, 21)  # persons 1 ... 20, as in SVG
_COLUMNS = {
    **dict.fromkeys(("path", "file", "filename", "video", "clip"), "path"),
    **dict.fromkeys(("class", "label", "action"), "label"),
    **dict.fromkeys(("split", "subset"), "split"),
}  # head of a column in a list -> what it holds


def by_name(root: Path, found: Found, layout: str | None, split: str | None) -> Found:
    """The same videos with the classes and splits of UCF-101 or KTH, where all names are of this data set's form.

    Raises:
        DataError: the layout was asked for, and a name does not fit.
    """
    names = [PurePosixPath(recording.name).name for recording in found.recordings]
    for known, pattern in (("ucf101", _UCF), ("kth", _KTH)):
        matches = [pattern.match(name) for name in names]
        if not names or layout not in (None, known):
            continue
        if not all(matches):
            if layout is None:
                continue
            raise DataError(f"{root}: expected names like {pattern.pattern}, got {names[matches.index(None)]!r}")
        splits = _kth_splits(names) if known == "kth" else _ucf_splits(root, names, split)
        videos = [
            replace(recording, label=match[pattern.groups], split=of)
            for recording, match, of in zip(found.recordings, matches, splits, strict=True)
            if match
        ]
        return Found(known, videos, found.problems)
    return found


def _kth_splits(names: list[str]) -> Iterator[str]:
    for name in names:
        yield "train" if int(name[len("person") :][:2]) in _KTH_TRAINING else "test"


def _ucf_splits(root: Path, names: list[str], split: str | None) -> list[str]:
    """Of each video by the lists 01, or those of the number behind the wanted split (`train02`); "" without lists."""
    number = re.sub(r"\D", "", split or "")
    lists = [folder / "ucfTrainTestlist" for folder in (root, root.parent) if (folder / "ucfTrainTestlist").is_dir()]
    split_of: dict[str, str] = {}
    for which in ("train", "test") if lists else ():
        file = lists[0] / f"{which}list{int(number or 1):02d}.txt"
        for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
            if line.strip():
                split_of[PurePosixPath(line.split()[0]).name] = which + number
    return [split_of.get(name, "") for name in names]


def listed(path: Path) -> Found:
    """The videos of a list: rows of path, class and split, the last two as far as there are any.

    A csv may have a head line that names the columns. Paths start at the list's folder. A row names a video file, a
    folder of images or an image strip.

    Raises:
        DataError: not a text file, or a head line without a column of paths.
    """
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a list of videos as text, not readable ({error})") from error
    delimiter = next((mark for mark in ("\t", ",") if any(mark in line for line in lines)), " ")
    rows = [[line.strip()] if (path.parent / line.strip()).exists() else _cells(line, delimiter) for line in lines]
    columns = ["path", "label", "split"]
    head = [cell.lower() for cell in rows[0]] if rows else []
    if set(head) & set(_COLUMNS):
        columns = [_COLUMNS.get(name, "") for name in head]
        rows = rows[1:]
        if "path" not in columns:
            raise DataError(f"{path}: expected a column called path, file or video, got {', '.join(head)}")
    found = Found("list", [])
    for row in rows:
        of = dict(zip(columns, row, strict=False))
        recording = _of_row(path.parent / of.get("path", ""), of.get("path", ""))
        if isinstance(recording, str):
            found.problems.append((of.get("path", ""), recording))
        else:
            found.recordings.append(replace(recording, label=of.get("label", ""), split=of.get("split", "")))
    return found


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _of_row(path: Path, name: str) -> Recording | str:
    """The video that a row names, or why there is none."""
    if path.is_dir():
        images = [file.name for file in path.iterdir() if file.suffix.lower() in IMAGES]
        return Recording(name, "frames", path, tuple(sorted(images, key=natural))) if images else "no images in it"
    if not path.is_file():
        return "no such file"
    if is_video(path):
        return Recording(name, "video", path)
    if path.suffix.lower() in IMAGES:
        return Recording(name, "strip", path)
    return "neither a video file, nor a folder of images, nor an image strip"
