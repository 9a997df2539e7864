"""A data set of videos as a source of clips, whatever its layout.

Decides which videos are used, and says what was found and what was left out and why; layouts are found by `layouts`,
frames are kept by `cache`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vgkernels_models.data.cache import FrameCache, Stored
from vgkernels_models.data.cut import draw, take_clip
from vgkernels_models.data.decode import Recording, Shape
from vgkernels_models.data.layouts import Found, find_recordings, natural
from vgkernels_models.data.source import ClipSpec, DataError, Item, VideoSource

_MOST_MAPPED = 8192  # videos mapped at once: Linux allows 65,530 maps in a process
_WORDS = {
    "files": "video files",
    "frames": "folders of frames",
    "strips": "image strips",
    "arrays": "arrays, clips first",
    "arrays-time-first": "arrays, time first",
    "zip": "a zip of frames",
    "list": "a list of videos",
    "ucf101": "UCF-101",
    "kth": "KTH",
}


class VideoFolder(VideoSource):
    """The videos of a folder, zip, array or list; one clip of each in an epoch.

    Every video is decoded once, when the source is opened, and kept small (see `cache`): workers only read memory.
    Videos that are broken, or too short for `spec.short`, are left out and written down in skipped.json.

    Args:
        root: the folder or file.
        spec: the clip that is wanted.
        split: "train", "test", ... where there are splits; "train" by default, "all" for the whole.
            UCF-101 has "train01" ... "test03".
        layout: one of `layouts.LAYOUTS`; found by itself by default.
        cache: where frames are kept; $VGKERNELS_CACHE or ~/.cache/vgkernels by default.

    Raises:
        DataError: no videos, no such layout or split, or no video that can be used.
    """

    def __init__(
        self,
        root: str | Path,
        spec: ClipSpec,
        *,
        split: str | None = None,
        layout: str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        root = Path(root)
        found = find_recordings(root, layout, split)
        self.spec = spec
        self.classes = tuple(sorted({video.label for video in found.recordings if video.label}, key=natural))
        recordings, split = _of_split(root, found, split)
        frames = FrameCache(root, Shape(spec.size, spec.channels, spec.fps, spec.crop == "none"), cache)
        self.videos: list[Stored] = []
        self.labels: list[int | None] = []
        self.skipped: list[tuple[str, str]] = list(found.problems)  # name and reason
        for recording, stored in zip(recordings, frames.store(recordings), strict=True):
            if reason := stored if isinstance(stored, str) else self._too_short(recording, stored):
                self.skipped.append((recording.name, reason))
            elif isinstance(stored, Stored):
                self.videos.append(stored)
                self.labels.append(self.classes.index(recording.label) if recording.label else None)
        noted = frames.note_skipped(self.skipped)
        if not self.videos:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            raise DataError(f"{root}: none of its {len(self.skipped)} videos can be used: {reasons} (all in {noted})")
        self.description = self._describe(root, found.layout, split, noted)
        self._mapped: dict[int, np.ndarray] = {}  # of the videos that this process has touched

    def __len__(self) -> int:
        return len(self.videos)

    def clip(self, index: int, generator: np.random.Generator | None) -> Item:
        """A clip of the video of this index."""
        frames, spec = self._frames(index), self.spec
        start = draw(generator, max(0, len(frames) - spec.span))
        moved = generator if spec.crop == "random" else None
        top, left = (draw(moved, side - spec.size) for side in frames.shape[1:3])
        return Item(take_clip(frames, spec, start, top, left), self.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # a worker maps its own

    def _frames(self, index: int) -> np.ndarray:
        if index not in self._mapped:
            if len(self._mapped) >= _MOST_MAPPED:
                self._mapped.clear()
            self._mapped[index] = self.videos[index].frames()
        return self._mapped[index]

    def _too_short(self, recording: Recording, stored: Stored) -> str:
        """The reason for which a video is left out, if it is.

        Raises:
            DataError: it is, and `spec.short` is "error".
        """
        if stored.shape[0] >= self.spec.span or self.spec.short in ("loop", "hold"):
            return ""
        reason = (
            f"{stored.shape[0]} frames, {self.spec.span} needed for {self.spec.frames} with stride {self.spec.stride}"
        )
        if self.spec.short == "error":
            raise DataError(f"{recording.name}: too short: {reason}")
        return f"too short: {reason}"

    def _describe(self, root: Path, layout: str, split: str, noted: Path) -> str:
        shown = ", ".join(self.classes[:4]) + (", ..." if len(self.classes) > 4 else "")
        parts = [
            f"{root}: {_WORDS[layout]}",
            f"{len(self)} {'video' if len(self) == 1 else 'videos'}",
            f"{len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'} ({shown})" if self.classes else "",
            f"split {split}" if split else "",
            f"{len(self.skipped)} left out, reasons in {noted}" if self.skipped else "",
        ]
        return ", ".join(part for part in parts if part)


def _of_split(root: Path, found: Found, split: str | None) -> tuple[list[Recording], str]:
    """The videos of the wanted split, and its name ("" where there are none)."""
    there = sorted({video.split for video in found.recordings if video.split})
    wanted = split or ("train" if "train" in there else "all")
    if wanted == "all":
        return found.recordings, "all" if there else ""
    chosen = [video for video in found.recordings if video.split == wanted]
    if not chosen:
        raise DataError(f"{root}: no split {wanted!r}, expected {', '.join([*there, 'all'])}")
    return chosen, wanted
