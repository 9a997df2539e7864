"""Every layout is found by itself, from files that the test writes: which videos, which frames in which order, which
classes and splits, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_samples import SPEC, frames, moments, png, write_frames, write_strip, write_video, write_zip

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


def first_frames(source: VideoSource) -> list[list[int]]:
    """The first frames of each video, whichever window of it the clip is."""
    assert isinstance(source, VideoFolder)
    return [moments(video.frames()) for video in source.videos]


def test_video_files_in_class_folders(root: Path) -> None:
    for i, (name, size) in enumerate([("run/a.mp4", 24), ("run/b.avi", 40), ("walk/c.webm", 24), ("walk/d.mkv", 20)]):
        write_video(root / name, count=8 + i, height=size, width=2 * size, rate=10 + 5 * i)
    write_video(root / "walk" / "e.gif", count=7)
    (root / "walk" / "notes.pdf").write_text("")
    source = open_source(root, SPEC)
    assert source.classes == ("run", "walk")
    assert [source.clip(i, None).label for i in range(len(source))] == [0, 0, 1, 1, 1]
    assert first_frames(source) == [list(range(n)) for n in (8, 9, 10, 11, 7)]
    assert source.clip(0, None).video.shape == (4, 16, 16, 3)
    assert "video files, 5 videos, 2 classes (run, walk)" in source.description
    assert "left out" not in source.description


def test_video_files_without_classes(root: Path) -> None:
    for name in ("b.mp4", "a10.mp4", "a9.mp4"):
        write_video(root / name, count=int(name[1:-4] or 5))
    source = open_source(root, SPEC)
    assert source.classes == ()
    assert source.clip(0, None).label is None
    assert [len(video) for video in first_frames(source)] == [9, 10, 5]


def test_one_video_a_folder_is_no_class(root: Path) -> None:
    for name in ("one", "two"):
        write_video(root / name / "clip.mp4")
    assert open_source(root, SPEC).classes == ()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_folders_of_frames_in_natural_order(root: Path, suffix: str) -> None:
    for i, video in enumerate(("jump/01", "jump/02", "sit/01")):
        write_frames(root / video, count=11 + i, suffix=suffix)
    source = open_source(root, SPEC)
    assert "folders of frames" in source.description
    assert source.classes == ("jump", "sit")
    assert first_frames(source) == [list(range(n)) for n in (11, 12, 13)]


@pytest.mark.parametrize("width", [16, 32])
def test_square_frames_and_wide_ones_are_no_strips(root: Path, width: int) -> None:
    (root / "v").mkdir()
    for t, image in enumerate(frames(5, 16, width)):
        (root / "v" / f"{t}.png").write_bytes(png(image))
    assert first_frames(open_source(root, SPEC)) == [list(range(5))]


@pytest.mark.parametrize("vertical", [False, True])
def test_image_strips_are_one_clip_each(root: Path, vertical: bool) -> None:
    for name in ("0/a.png", "0/b.png", "1/a.png"):
        write_strip(root / name, vertical=vertical)
    source = open_source(root, SPEC)
    assert "image strips, 3 videos, 2 classes (0, 1)" in source.description
    assert first_frames(source) == [list(range(6))] * 3


def test_a_strip_keeps_left_and_right(root: Path) -> None:
    image = np.zeros((16, 16 * 5, 3), np.uint8)
    image[:, 2::16] = 255  # column 2 of each frame
    from PIL import Image

    Image.fromarray(image).save(root / "a.png")
    video = open_source(root, SPEC).clip(0, None).video
    assert (video[:, :, 2] == 255).all()
    assert video.sum() == 4 * 16 * 3 * 255


def test_the_layout_can_be_given(root: Path) -> None:
    write_strip(root / "1.png"), write_strip(root / "2.png")
    source = open_source(root, ClipSpec(frames=2, size=16), layout="frames")
    assert "folders of frames, 1 video" in source.description
    with pytest.raises(DataError, match=r"layout: expected one of files, .*, got 'strip'"):
        open_source(root, SPEC, layout="strip")
    with pytest.raises(DataError, match="no videos found in the layout 'files'"):
        open_source(root, SPEC, layout="files")


@pytest.mark.parametrize(
    ("shape", "videos", "length"),
    [
        ((3, 6, 16, 16), 3, 6),
        ((3, 6, 16, 16, 3), 3, 6),
        ((6, 16, 16, 3), 1, 6),
        ((6, 16, 16), 1, 6),
        ((5, 1000, 8, 8), 1000, 5),  # time first, as Moving MNIST's test set
        ((5, 1000, 8, 8, 1), 1000, 5),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays(root: Path, shape: tuple[int, ...], videos: int, length: int, suffix: str) -> None:
    time_axis = 0 if len(shape) == 3 or shape == (6, 16, 16, 3) or shape[1] == 1000 else 1
    levels = 10 + 8 * np.arange(length)
    array = np.zeros(shape, np.uint8) + levels.reshape([-1 if axis == time_axis else 1 for axis in range(len(shape))])
    array = array.astype(np.uint8)
    np.save(root / "x.npy", array) if suffix == "npy" else np.savez_compressed(root / "x.npz", video=array)
    source = open_source(root / f"x.{suffix}", ClipSpec(frames=4, size=8))
    assert len(source) == videos
    assert first_frames(source)[-1] == list(range(length))
    assert ("time first" in source.description) == (videos == 1000)


def test_time_first_can_be_said(root: Path) -> None:
    np.save(root / "x.npy", np.ones((5, 7, 16, 16), bool))
    assert (open_source(root, SPEC).clip(0, None).video == 255).all()
    assert len(open_source(root, SPEC)) == 5
    assert len(open_source(root, SPEC, layout="arrays-time-first")) == 7


def test_arrays_of_floats_are_refused_not_guessed(root: Path) -> None:
    np.save(root / "x.npy", np.zeros((5, 7, 16, 16), np.float32))
    np.save(root / "y.npy", np.zeros((5, 7), np.uint8))
    np.savez(root / "z.npz", a=np.zeros((5, 7, 16, 16), np.uint8), b=np.zeros(3))
    with pytest.raises(DataError) as error:
        open_source(root, SPEC)
    assert "x.npy: expected uint8 (0 ... 255) or bool, got float32" in str(error.value)
    assert "y.npy: expected shape (N, T, H, W[, C])" in str(error.value)
    assert 'z.npz: expected one array, or one named "video" or "videos", got a, b' in str(error.value)


def test_a_zip_of_frames(root: Path) -> None:
    path = write_zip(root / "ffs.zip", {"x/one": 11, "x/two": 5, "y/one": 6})
    for data in (path, root):
        source = open_source(data, SPEC)
        assert "a zip of frames, 3 videos, 2 classes (x, y)" in source.description
        assert first_frames(source) == [list(range(n)) for n in (11, 5, 6)]


def test_folders_called_train_and_test_are_splits(root: Path) -> None:
    for name in ("train/up/a", "train/up/b", "train/left/c", "Validation/up/d", "test/down/e", "test/up/f"):
        write_video(root / f"{name}.mp4")
    default = open_source(root, SPEC)
    assert len(default) == 3
    assert "split train" in default.description
    assert default.classes == open_source(root, SPEC, split="test").classes == ("down", "left", "up")
    assert [len(open_source(root, SPEC, split=split)) for split in ("test", "val", "all")] == [2, 1, 6]
    with pytest.raises(DataError, match="no split 'dev', expected test, train, val, all"):
        open_source(root, SPEC, split="dev")


def test_ucf101_with_its_lists(root: Path) -> None:
    names = [f"{of}/v_{of}_g0{g}_c01.avi" for of in ("Archery", "Biking") for g in (1, 2, 3)]
    for name in names:
        write_video(root / "UCF-101" / name)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    for number, held in (("01", 1), ("02", 3)):
        test = [name for name in names if f"_g0{held}_" in name]
        (lists / f"testlist{number}.txt").write_text("\r\n".join(test) + "\r\n")
        train = [f"{name} {1 + ('Biking' in name)}" for name in names if name not in test]
        (lists / f"trainlist{number}.txt").write_text("\n".join(train[: None if number == "01" else 3]))
    for data in (root, root / "UCF-101"):
        source = open_source(data, SPEC)
        assert "UCF-101, 4 videos, 2 classes (Archery, Biking), split train" in source.description
        assert len(open_source(data, SPEC, split="test")) == 2
        assert len(open_source(data, SPEC, split="train02")) == 3
        assert len(open_source(data, SPEC, split="all")) == 6
    with pytest.raises(DataError, match="no split 'test03'"):
        open_source(root, SPEC, split="test03")


def test_kth_is_split_by_persons(root: Path) -> None:
    for person in (1, 20, 21, 25):
        write_video(root / "boxing" / f"person{person:02d}_boxing_d1_uncomp.avi")
    source = open_source(root, SPEC)
    assert "KTH, 2 videos, 1 class (boxing), split train" in source.description
    test = open_source(root, SPEC, split="test")
    assert isinstance(test, VideoFolder)
    assert len(test) == 2
    with pytest.raises(DataError, match=r"expected names like v_.*, got 'person01"):
        open_source(root, SPEC, layout="ucf101")


@pytest.mark.parametrize(
    "text",
    [
        "a b.mp4\nc.mp4 slow test\nd 7\n\nnowhere.mp4 3\n",
        "path,class,split\na b.mp4,,\nc.mp4,slow,test\nd,7,\nnowhere.mp4,3,\n",
        "split,video,time\n,a b.mp4,1\ntest,c.mp4,2\n,d,3\n,nowhere.mp4,4\n",
    ],
)
def test_lists(root: Path, text: str) -> None:
    write_video(root / "a b.mp4")
    write_video(root / "c.mp4")
    write_frames(root / "d")
    (root / "set.csv").write_text(text)
    source = open_source(root / "set.csv", SPEC, split="all")
    assert len(source) == 3
    assert "a list of videos" in source.description
    assert isinstance(source, VideoFolder)
    assert source.skipped == [("nowhere.mp4", "no such file")]
    assert source.classes == (() if "time" in text else ("7", "slow"))
    assert len(open_source(root / "set.csv", SPEC, split="test")) == 1


def test_a_list_without_paths_is_refused(root: Path) -> None:
    (root / "k600.csv").write_text("label,youtube_id,time_start\nx,abc,1\n")
    with pytest.raises(DataError, match="expected a column called path, file or video, got label, youtube_id"):
        open_source(root / "k600.csv", SPEC)


def test_one_video_is_cut_into_windows_that_lie_apart(root: Path) -> None:
    path = write_video(root / "long.mp4", count=28)
    source = open_source(path, ClipSpec(frames=4, size=16, stride=2))
    assert len(source) == 4  # 28 frames, 7 each
    starts = [moments(source.clip(i, None).video) for i in range(4)]
    assert starts == [[7 * i, 7 * i + 2, 7 * i + 4, 7 * i + 6] for i in range(4)]
    moved = {moments(source.clip(1, np.random.default_rng(i)).video)[0] for i in range(60)}
    assert moved == set(range(7, 14))
    assert {moments(source.clip(3, np.random.default_rng(i)).video)[0] for i in range(9)} == {21}


def test_a_large_video_is_cut_into_tiles(root: Path) -> None:
    path = write_video(root / "large.mp4", count=8, height=80, width=128)
    tiled = open_source(path, SPEC)
    assert len(tiled) == 5 * 8 * 2
    assert "2 windows of 4 frames x 40 tiles of 16 pixels" in tiled.description
    assert len(open_source(f"{path}:1", SPEC)) == 2
    assert len(open_source(f"{path}:2", SPEC)) == 2 * 3 * 2
    squeezed = open_source(path, ClipSpec(frames=4, size=16, crop="none"))
    assert len(squeezed) == 2
    assert squeezed.clip(0, None).video.shape == (4, 16, 16, 3)


def test_windows_do_not_cross_a_cut(root: Path) -> None:
    import av

    random = np.random.default_rng(0)
    scenes = [np.repeat(random.integers(256, size=(1, 32, 32, 3), dtype=np.uint8), n, 0) for n in (7, 9)]
    with av.open(str(root / "cut.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width = stream.height = 32
        for image in np.concatenate(scenes):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    source = open_source(root / "cut.mp4", SPEC)
    assert len(source) == 1 + 2
    for i, seed in np.ndindex(3, 20):
        clip = source.clip(int(i), np.random.default_rng(seed)).video.astype(int)
        assert np.abs(clip - clip[:1]).max() < 20


@pytest.mark.parametrize(
    ("short", "expected"), [("loop", [0, 2, 0, 2, 0, 2]), ("hold", [0, 2, 3, 3, 3, 3]), ("skip", None), ("error", None)]
)
def test_short_videos(root: Path, short: str, expected: list[int] | None) -> None:
    write_frames(root / "short", count=4)
    write_frames(root / "long", count=11)
    spec = ClipSpec(frames=6, size=16, stride=2, short=short)  # type: ignore[arg-type]
    if short == "error":
        with pytest.raises(DataError, match="short: too short: 4 frames, 11 needed for 6 with stride 2"):
            open_source(root, spec)
        return
    source = open_source(root, spec)
    assert isinstance(source, VideoFolder)
    assert moments(source.clip(0, None).video) == [0, 2, 4, 6, 8, 10]
    assert [moments(source.clip(i, None).video) for i in range(1, len(source))] == ([expected] if expected else [])
    assert [name for name, _ in source.skipped] == ([] if expected else ["short"])


def test_crops_and_grey(root: Path) -> None:
    array = np.zeros((4, 16, 48, 3), np.uint8)
    array[:, :, :16, 0], array[:, :, 16:32, 1], array[:, :, 32:, 2] = 255, 255, 255
    np.save(root / "x.npy", array)
    centre = open_source(root, SPEC).clip(0, np.random.default_rng(0)).video
    assert (centre == (0, 255, 0)).all()
    random = open_source(root, ClipSpec(frames=4, size=16, crop="random"))
    clips = [random.clip(0, np.random.default_rng(i)).video for i in range(40)]
    assert {tuple(clip[0, 0, 0].tolist()) for clip in clips} >= {(255, 0, 0), (0, 255, 0)}
    assert all((clip == clip[:1]).all() for clip in clips)  # one crop for all frames
    whole = open_source(root, ClipSpec(frames=4, size=16, crop="none")).clip(0, None).video
    assert whole[0, 0, 0].argmax() == 0
    assert whole[0, 0, -1].argmax() == 2
    assert (open_source(root, ClipSpec(frames=4, size=16, channels=1)).clip(0, None).video == 150).all()  # 0.587 * 255


def test_a_rate_is_sampled_by_time_stamps(root: Path) -> None:
    write_video(root / "a_even.mp4", count=20, rate=20)
    write_video(root / "b_slow.mp4", count=8, rate=5)
    write_video(root / "c_uneven.mkv", count=10, rate=20, times=[0, 1, 2, 3, 4, 12, 13, 14, 16, 18])
    source = open_source(root, ClipSpec(frames=2, size=16, fps=10))
    assert first_frames(source) == [
        list(range(0, 20, 2)),
        [t // 2 for t in range(16)],
        [0, 2, 4, 4, 4, 4, 5, 7, 8, 9],  # on the screen at 0, 2, 4, ... 18 twentieths
    ]
    write_frames(root / "frames" / "x")
    with pytest.raises(DataError, match="choose by stride, not by fps"):
        open_source(root / "frames", ClipSpec(frames=2, size=16, fps=10))


def test_the_summary_names_what_was_left_out(root: Path, cache: Path) -> None:
    write_video(root / "good.mp4")
    whole = write_video(root / "cut.mp4", count=60).read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    (root / "empty.mp4").touch()
    (root / "text.avi").write_text("not a video")
    write_video(root / "short.webm", count=3)
    source = open_source(root, SPEC)
    assert len(source) == 1
    (noted,) = cache.glob("*/skipped.json")
    assert f"1 video, 4 left out, reasons in {noted}" in source.description
    reasons = {row["path"]: row["reason"] for row in json.loads(noted.read_text())}
    assert reasons["empty.mp4"] == "an empty file"
    assert reasons["short.webm"] == "too short: 3 frames, 4 needed for 4 with stride 1"
    assert reasons["cut.mp4"].startswith("not readable (")
    assert reasons["text.avi"].startswith("not readable (")
    (root / "good.mp4").unlink()
    with pytest.raises(DataError, match=r"none of its 4 videos can be used: cut\.mp4: not readable"):
        open_source(root, SPEC)


def test_an_empty_folder_is_an_error(root: Path) -> None:
    (root / "notes.md").write_text("nothing here")
    with pytest.raises(DataError, match="no videos found"):
        open_source(root, SPEC)


def test_frames_of_one_video_must_have_one_size(root: Path) -> None:
    from PIL import Image

    write_frames(root / "a", count=5)
    write_frames(root / "b", count=5)
    Image.fromarray(frames(1, 8, 8)[0]).save(root / "b" / "3.png")
    source = open_source(root, SPEC)
    assert isinstance(source, VideoFolder)
    assert source.skipped == [("b", "3.png has 8 x 8 pixels, the first frame 32 x 24")]
