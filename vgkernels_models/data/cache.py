"""Keeps decoded frames as uint8 on disk, so that a video is decoded once and then mapped into memory.

Decides keys, file names and when a stored recording is out of date; how frames are decoded is left to `decode`.

A data set has a folder of its own under $VGKERNELS_CACHE (~/.cache/vgkernels by default), another for each way of
decoding. In it a recording is one file, PLACE-VERSION.TxHxWxC.u8 (or PLACE-VERSION.broken, the reason in it): PLACE is
a hash of the path, VERSION of size and modification time. Files appear under their names only when complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vgkernels_models.data.clips import ClipError
from vgkernels_models.data.decode import Recording, Shape, close_files, frames_of
from vgkernels_models.data.source import DataError

_FORMAT = 1  # of the stored frames; another number leaves all older folders unread
Key = tuple[str, str]  # hashes of a recording's place and of its version
_QUIET_SECONDS = 2.0  # decoding that takes longer shows its progress


@dataclass(frozen=True)
class Stored:
    """Frames of one recording on disk."""

    path: Path
    shape: tuple[int, int, int, int]  # T, H, W, C

    def frames(self) -> np.ndarray:
        """(T, H, W, C) uint8, mapped: read when touched."""
        return np.asarray(np.memmap(self.path, np.uint8, "r", shape=self.shape))


def cache_root(cache: str | Path | None = None) -> Path:
    """Where decoded frames are kept: the argument, $VGKERNELS_CACHE or ~/.cache/vgkernels."""
    return Path(cache or os.environ.get("VGKERNELS_CACHE") or Path.home() / ".cache" / "vgkernels")


class FrameCache:
    """The folder of one data set, decoded in one way.

    Args:
        root: of the data set: its folder or file.
        shape: what frames are made into.
        cache: where folders of data sets are made; see `cache_root`.

    Raises:
        DataError: the folder can't be made.
    """

    def __init__(self, root: Path, shape: Shape, cache: str | Path | None = None) -> None:
        self.root, self.shape = root.absolute(), shape
        self.folder = cache_root(cache) / f"{root.absolute().name[:40]}-{_hash(f'{self.root} {shape} {_FORMAT}')}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def store(self, recordings: Sequence[Recording]) -> list[Stored | str]:
        """Frames of each recording, decoded where they are not there yet; or the reason why there are none."""
        keys = [_key(recording) for recording in recordings]
        with self._alone():
            stored = self._stored(keys)
            missing = {key: recording for key, recording in zip(keys, recordings, strict=True) if key not in stored}
            stored.update(zip(missing, self._decode_all(missing), strict=True))
        return [stored[key] for key in keys]

    def note_skipped(self, skipped: Sequence[tuple[str, str]]) -> Path:
        """Writes skipped.json, a list of {"path", "reason"}, and returns where it is."""
        listed = [{"path": name, "reason": reason} for name, reason in skipped]
        temporary, path = self.folder / ".new-skipped", self.folder / "skipped.json"
        try:
            with self._alone():
                temporary.write_text(json.dumps(listed, indent=1))
                temporary.replace(path)
        except OSError as error:
            raise self._unusable(error) from error
        return path

    def _stored(self, keys: Sequence[Key]) -> dict[Key, Stored | str]:
        """What is in the folder. Removes what a killed run left, and older versions of the files that are asked for."""
        wanted, places = set(keys), {place for place, _ in keys}
        stored: dict[Key, Stored | str] = {}
        for entry in os.scandir(self.folder):
            place, _, rest = entry.name.partition("-")
            version, _, kind = rest.partition(".")
            key, path = (place, version), Path(entry.path)
            if entry.name.startswith(".new-") or (place in places and key not in wanted):
                path.unlink(missing_ok=True)
            elif key in wanted and kind == "broken":
                stored[key] = path.read_text(errors="replace")
            elif key in wanted and kind.endswith(".u8"):
                t, h, w, c = map(int, kind.removesuffix(".u8").split("x"))
                if entry.stat().st_size == t * h * w * c:
                    stored[key] = Stored(path, (t, h, w, c))
        return stored

    def _decode_all(self, missing: dict[Key, Recording]) -> list[Stored | str]:
        from rich.console import Console  # optional dependency: here, so that the package imports without it
        from rich.progress import Progress

        threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        begun, done = time.monotonic(), []
        progress = Progress(console=Console(stderr=True), transient=True)
        task = progress.add_task(f"decoding {self.root.name}, once", total=len(missing))
        with ThreadPoolExecutor(threads) as pool:
            try:
                for result in pool.map(self._decode, missing, missing.values()):
                    done.append(result)
                    progress.update(task, completed=len(done))
                    if time.monotonic() - begun > _QUIET_SECONDS:
                        progress.start()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                if progress.live.is_started:  # or it would print an empty line
                    progress.stop()
                close_files()
        return done

    def _decode(self, key: Key, recording: Recording) -> Stored | str:
        name, temporary = "-".join(key), self.folder / f".new-{'-'.join(key)}"
        count, size = 0, (0, 0, 0)
        try:
            with temporary.open("wb") as file:
                for frame in frames_of(recording, self.shape):
                    file.write(frame.tobytes())
                    count, size = count + 1, frame.shape
            if not count:
                raise ClipError("no frames in it")
            temporary.rename(self.folder / f"{name}.{count}x{size[0]}x{size[1]}x{size[2]}.u8")
        except ClipError as error:
            temporary.write_text(str(error), errors="replace")
            temporary.rename(self.folder / f"{name}.broken")
            return str(error)
        except OSError as error:  # of writing: what reading raises has become a ClipError
            raise self._unusable(error) from error
        return Stored(self.folder / f"{name}.{count}x{size[0]}x{size[1]}x{size[2]}.u8", (count, *size))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time decodes; the others, ranks of one run, find the frames when it is done."""
        try:
            import fcntl
        except ImportError:  # Windows: two processes may decode the same file, with the same result
            yield
            return
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _unusable(self, error: OSError) -> DataError:
        return DataError(f"{self.folder}: can't keep frames there ({error.strerror}): set VGKERNELS_CACHE")


def _key(recording: Recording) -> Key:
    """Place and version of a recording; a file that is not there has a version too, that of its absence."""
    members = recording.members if recording.kind == "frames" else ("",)
    version = [f"{recording.members}"]
    for member in members:
        with contextlib.suppress(OSError):
            status = (recording.path / member).stat()
            version.append(f"{member} {status.st_size} {status.st_mtime_ns}")
    place = (
        f"{recording.kind} {recording.path.absolute()} {recording.part} {recording.time_first} {recording.members[:1]}"
    )
    return _hash(place), _hash(" ".join(version))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:20]
