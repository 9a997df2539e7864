"""Frames are decoded once, again when the file changes, and never taken from a file that is damaged; hostile files are
refused by name, one by one."""

import os
import pickle
import resource
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_samples import SPEC, frames, moments, png, write_frames, write_strip, write_video, write_zip
from PIL import Image

from vgkernels_models.data import cache as cache_module
from vgkernels_models.data.decode import Recording, Shape, frames_of
from vgkernels_models.data.source import ClipSpec, DataError, VideoSource, open_source
from vgkernels_models.data.video_folder import VideoFolder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGKERNELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings that were decoded."""
    names: list[str] = []

    def noting(recording: Recording, shape: Shape) -> Iterator[np.ndarray]:
        names.append(recording.name)
        return frames_of(recording, shape)

    monkeypatch.setattr(cache_module, "frames_of", noting)
    return names


def skipped(source: VideoSource) -> dict[str, str]:
    assert isinstance(source, VideoFolder)
    return dict(source.skipped)


def test_frames_are_decoded_once(root: Path, decoded: list[str]) -> None:
    write_video(root / "a.mp4")
    write_frames(root / "b")
    (root / "broken.mp4").write_bytes(b"no video")
    first = open_source(root, SPEC)
    assert sorted(decoded) == ["a.mp4", "broken.mp4"]
    second = open_source(root, ClipSpec(frames=6, size=16, stride=2))
    assert len(decoded) == 2
    assert np.array_equal(first.clip(0, None).video[0], open_source(root, SPEC).clip(0, None).video[0])
    assert skipped(first) == skipped(second)
    open_source(root, ClipSpec(frames=4, size=20))  # another size is another decode
    assert len(decoded) == 4


@pytest.mark.parametrize("kind", ["file", "frames", "strip", "array", "zip"])
def test_a_changed_file_is_decoded_again(root: Path, cache: Path, decoded: list[str], kind: str) -> None:
    path = {
        "file": root / "a.mp4",
        "frames": root / "a" / "2.png",
        "strip": root / "a.png",
        "array": root / "a.npy",
        "zip": root / "a.zip",
    }[kind]
    if kind == "file":
        write_video(path)
    elif kind == "frames":
        write_frames(path.parent)
    elif kind == "strip":
        write_strip(path)
    elif kind == "array":
        np.save(path, frames(8)[None])
    else:
        write_zip(path, {"v": 6})
    open_source(root, SPEC)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    open_source(root, SPEC)
    open_source(root, SPEC)
    assert len(decoded) == 2
    assert len(list(cache.glob("*/*.u8"))) == 1  # the older frames are gone


def test_what_is_damaged_or_half_written_is_not_read(root: Path, cache: Path, decoded: list[str]) -> None:
    write_video(root / "a.mp4")
    before = open_source(root, SPEC).clip(0, None).video.copy()
    (stored,) = cache.glob("*/*.u8")
    stored.write_bytes(stored.read_bytes()[:-1])
    (stored.parent / ".new-killed").write_bytes(b"0" * 10)
    (stored.parent / "foreign.file").write_bytes(b"0" * 10)
    assert np.array_equal(open_source(root, SPEC).clip(0, None).video, before)
    assert len(decoded) == 2
    assert sorted(path.name for path in stored.parent.iterdir()) == sorted(
        [stored.name, "foreign.file", "lock", "skipped.json"]
    )


def test_processes_that_start_together_decode_once(root: Path, decoded: list[str]) -> None:
    for i in range(6):
        write_video(root / f"{i}.mp4")
    sources: list[VideoSource] = []
    threads = [threading.Thread(target=lambda: sources.append(open_source(root, SPEC))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 6
    assert [len(source) for source in sources] == [6, 6, 6]


def test_a_cache_that_can_not_be_written_is_no_broken_video(root: Path, cache: Path) -> None:
    write_video(root / "a.mp4", count=40)
    (root / "file").touch()
    with pytest.raises(DataError, match=r"can't keep frames there \(Not a directory\): set VGKERNELS_CACHE"):
        open_source(root, SPEC, cache=root / "file" / "below")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"can't keep frames there \(File too large\)"):
            open_source(root, SPEC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(open_source(root, SPEC)) == 1  # nothing half-written was left


def test_a_source_travels_to_a_worker_without_its_frames(root: Path) -> None:
    np.save(root / "a.npy", frames(60, 64, 64)[None])
    source = open_source(root, ClipSpec(frames=4, size=64))
    clip = source.clip(0, np.random.default_rng(0))
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent).clip(0, np.random.default_rng(0)).video, clip.video)


def test_links_are_followed_but_not_in_circles(root: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "elsewhere" / "a.mp4")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (tmp_path / "elsewhere" / "up").symlink_to(root)
    (root / "gone.mp4").symlink_to(root / "nowhere.mp4")
    os.mkfifo(root / "pipe.mp4")  # to open it would wait for ever
    source = open_source(root, SPEC)
    assert len(source) == 1
    reasons = skipped(source)
    assert reasons.pop("loop") == reasons.pop("linked/up") == "a link to a folder that was read already"
    assert reasons == dict.fromkeys(("gone.mp4", "pipe.mp4"), "neither a file nor a folder, or a link to nowhere")


def test_hostile_zips(root: Path) -> None:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for t, image in enumerate(frames(5)):
            archive.writestr(f"good/{t}.png", png(image))
            for folder in ("../up", "/outside", "a/../../up", "\\\\server"):
                archive.writestr(f"{folder}/{t}.png", png(image))
            archive.writestr(f"bomb/{t}.png", png_of_size(30000, 30000))
            archive.writestr(f"cut/{t}.png", png(image)[:60])
            archive.writestr(f"locked/{t}.png", png(image))
    data = (root / "a.zip").read_bytes()
    (root / "a.zip").write_bytes(encrypted(data, b"locked/"))
    source = open_source(root / "a.zip", SPEC)
    assert len(source) == 1
    assert moments(source.clip(0, None).video) == [0, 1, 2, 3]
    reasons = skipped(source)
    for name in ("../up/0.png", "/outside/0.png", "a/../../up/0.png"):
        assert reasons[f"a.zip/{name}"] == "a path that leads out of the archive"
    assert reasons["a.zip/locked/0.png"] == "encrypted"
    assert "pixels" in reasons["bomb"]
    assert reasons["cut"].startswith("not readable (")
    (root / "b.zip").write_bytes(data[:-30])
    with pytest.raises(DataError, match=r"no videos found .*b\.zip: not readable"):
        open_source(root / "b.zip", SPEC)


def png_of_size(width: int, height: int) -> bytes:
    """A png whose header promises this many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10) + b"IDAT"


def encrypted(data: bytes, name: bytes) -> bytes:
    """The zip with the flag of encryption on the members of this folder."""
    changed, at = bytearray(data), data.find(b"PK\x01\x02")
    while at >= 0:
        length, extra, comment = struct.unpack("<3H", data[at + 28 : at + 34])
        if data[at + 46 : at + 46 + length].startswith(name):
            changed[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 46 + length + extra + comment)
    return bytes(changed)


def test_files_that_promise_too_much(root: Path) -> None:
    gif = bytearray(write_video(root / "x.gif").read_bytes())
    gif[6:10] = struct.pack("<2H", 9000, 9000)
    (root / "x.gif").write_bytes(gif)
    write_video(root / "good.mp4")
    assert skipped(open_source(root, SPEC))["x.gif"] == "expected frames of 1 to 67108864 pixels, got 9000 x 9000"
    arrays = root / "arrays"
    arrays.mkdir()
    np.save(arrays / "good.npy", frames(5)[None])
    np.save(arrays / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    with (arrays / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20, 64, 64)}
        )
    with zipfile.ZipFile(arrays / "huge.npz", "w") as archive:
        archive.write(arrays / "huge.npy", "x.npy")
    reasons = skipped(open_source(arrays, SPEC))
    assert set(reasons) == {"objects.npy", "huge.npy", "huge.npz"}
    assert all(reason.startswith("not readable (") for reason in reasons.values())
    images = root / "images" / "v"
    images.mkdir(parents=True)
    for t in range(5):
        Image.fromarray(np.zeros((16, 16), np.uint16)).save(images / f"{t}.png")
    with pytest.raises(DataError, match="v: expected an image of 8 bits a channel, got mode I;16"):
        open_source(root / "images", SPEC)


def test_videos_that_end_without_an_error(root: Path) -> None:
    write_video(root / "good.mp4")
    whole = write_video(root / "cut.mkv", count=80).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    whole = write_video(root / "head.avi").read_bytes()
    (root / "head.avi").write_bytes(whole[: whole.index(b"movi") + 4])
    reasons = skipped(open_source(root, SPEC))
    assert reasons["cut.mkv"].startswith("breaks off after ")
    assert reasons["head.avi"] == "no frames in it"


def test_mutated_files_are_left_out_or_read_but_never_crash(root: Path) -> None:
    random = np.random.default_rng(0)
    write_strip(root / "s.png")
    write_zip(root / "z.zip", {"v": 5})
    np.savez_compressed(root / "n.npz", x=frames(5)[None])
    samples = [
        write_video(root / "v.mp4"),
        write_video(root / "v.gif"),
        write_video(root / "v.mkv"),
        root / "s.png",
        root / "z.zip",
        root / "n.npz",
    ]
    outcomes = []
    for sample in samples:
        data = sample.read_bytes()
        for i in range(12):
            changed = bytearray(data if i % 3 else data[: random.integers(len(data))])
            for _ in range(i % 3 * 4):
                changed[random.integers(min(len(changed), 400 if i % 2 else len(changed)))] = random.integers(256)
            folder = root / f"{sample.name}{i}"
            folder.mkdir()
            (folder / sample.name).write_bytes(changed)
            try:
                outcomes.append(len(open_source(folder, SPEC)))
            except DataError as error:
                assert sample.name in str(error) or "none of its" in str(error)
                outcomes.append(0)
    assert 20 < outcomes.count(0) < 70
