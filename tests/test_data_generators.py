"""Generators draw by the rules of the specifications, know what they drew, and depend on (seed, index) alone."""

import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest

from vgkernels_models.data import digits
from vgkernels_models.data.batches import Batches
from vgkernels_models.data.moving_digits import moving_digits
from vgkernels_models.data.scenes import scenes
from vgkernels_models.data.shape_motion import shape_motion
from vgkernels_models.data.source import GENERATORS, ClipSpec, DataError, open_source
from vgkernels_models.data.sprites import stamp


def edges(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """First and last row (axis 0) or column (1) that a mask (H, W) covers."""
    covered = np.flatnonzero(mask.any(1 - axis))
    return int(covered[0]), int(covered[-1])


def test_shape_motion_has_the_constants_measured_in_the_authors_files() -> None:
    videos = shape_motion(64, seed=3)
    assert videos.video.shape == (64, 32, 64, 64, 3)
    assert videos.label is not None
    for video, mask, label in zip(videos.video, videos.truth["mask"][:, 0], videos.label, strict=True):
        axis = label  # class 0 moves along the rows, 1 along the columns
        assert edges(mask[0], axis)[1] == 61
        assert edges(mask[-1], axis)[0] == 1
        assert len({frame.sum() for frame in mask}) == 1
        assert (video[~mask] == 0).all()
        assert len(np.unique(video[mask], axis=0)) == 1


def test_shape_motion_draws_all_that_the_rules_allow_equally_often() -> None:
    videos = shape_motion(400, frames=2, seed=1)
    areas = videos.truth["mask"][:, 0, 0].sum((1, 2))
    counted = {int(area): int((areas == area).sum()) for area in np.unique(areas)}
    assert set(counted) == {47, 79, 111, 151, 64, 100, 144, 196}  # discs as measured, squares s x s
    assert all(25 < count < 80 for count in counted.values())  # 50 expected
    assert videos.label is not None
    assert 160 < videos.label.sum() < 240
    assert 110 < videos.truth["colour"].mean() < 145


def test_the_paths_of_shape_motion_spread_as_in_the_authors_files() -> None:
    videos = shape_motion(200, seed=5)
    along, across = [], []
    for path, label in zip(videos.truth["position"], videos.label, strict=True):
        along.append(np.ptp(path[:, 1 - label]))
        across.append(np.ptp(path[:, label]))
    assert min(along) >= 47
    assert max(along) <= 53
    assert 11 < np.median(across) < 19  # 15 in the files


def test_shape_motion_at_another_size_keeps_its_proportions() -> None:
    videos = shape_motion(50, size=32)
    areas = set(videos.truth["mask"][:, 0, 0].sum((1, 2)).tolist())
    assert areas <= {stamp(round_, side).sum() for round_ in (True, False) for side in (4, 5, 6, 7)}
    assert edges(videos.truth["mask"][videos.label == 0][0, 0, 0], 0)[1] == 30


def test_digits_move_by_a_tenth_and_bounce_at_the_border() -> None:
    videos = moving_digits(40, frames=60)
    assert videos.video.shape == (40, 60, 64, 64, 1)
    path = videos.truth["position"]  # (n, T, 2, 2)
    assert path.min() == 0
    assert path.max() == 36  # 64 - 28
    steps = np.linalg.norm(np.diff(path, axis=1), axis=-1)
    assert np.median(steps) == pytest.approx(3.6, abs=0.5)
    assert steps.max() <= 3.6 + 2**0.5
    acceleration = np.abs(np.diff(path, n=2, axis=1))  # of int(x): at most 1 along a straight line
    inner = (path[:, 1:-1] > 4).all(-1) & (path[:, 1:-1] < 32).all(-1)
    assert acceleration[inner].max() <= 1


def test_digits_overlap_by_their_maximum_and_come_from_the_file(tmp_path: Path) -> None:
    images = np.array([200, 90], np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes()))
    videos = moving_digits(20, digits=file)
    assert set(np.unique(videos.video)) == {0, 90, 200}
    for video, path in zip(videos.video, videos.truth["position"].astype(int), strict=True):
        for frame, ((x, y), (u, v)) in zip(video, path, strict=True):
            both = frame[max(y, v) : min(y, v) + 28, max(x, u) : min(x, u) + 28]
            assert (both == frame.max()).all()
    source = open_source(f"moving-digits:{file}", ClipSpec(channels=1))
    assert str(file) in source.description
    for name, data in (("short", file.read_bytes()[:50]), ("png", b"\x89PNG" + b"0" * 40)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: (expected|not readable)"):
            digits.read_idx_images(tmp_path / name)
    with pytest.raises(DataError, match="expected 2 x 28 x 28 bytes, got 1000"):
        (tmp_path / "cut").write_bytes(gzip.decompress(file.read_bytes())[:1016])
        digits.read_idx_images(tmp_path / "cut")


def test_digits_are_drawn_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    found = digits.find_digits.__wrapped__()
    assert found.name == "drawn strokes"
    assert np.array_equal(found.images, digits.drawn_digits().images)
    means = np.stack([found.images[found.values == value].mean(0).ravel() for value in range(10)])
    nearest = [np.square(means - image.ravel()).sum(1).argmin() for image in found.images]
    assert np.mean(nearest == found.values) > 0.8  # readable: no two digits look alike


@pytest.mark.parametrize("shift", [False, True])
def test_scenes_are_their_background_outside_the_mask(shift: bool) -> None:
    videos = scenes(20, seed=2, shift=shift)
    for video, mask, background in zip(
        videos.video, videos.truth["mask"][:, 0], videos.truth["background"], strict=True
    ):
        behind = np.broadcast_to(background, video.shape)
        assert np.array_equal(video[~mask], behind[~mask])
        assert (video[mask] != behind[mask]).any()
        assert len(np.unique(video[mask], axis=0)) in (1, 2)  # one or two sprites of one colour each
        assert 47 <= mask[0].sum() <= 2 * 196
        assert not (mask[0] & mask[-1]).all()  # it moves
        if shift:
            down = [np.array_equal(a[1:], b[:-1]) or np.array_equal(a[:-1], b[1:]) for a, b in pairs(background)]
            right = [
                np.array_equal(a[:, 1:], b[:, :-1]) or np.array_equal(a[:, :-1], b[:, 1:]) for a, b in pairs(background)
            ]
            assert all(down) or all(right)  # by one pixel a frame
            assert not np.array_equal(background[0], background[-1])


def pairs(frames: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(itertools.pairwise(frames))


def test_a_video_depends_on_seed_and_index_alone() -> None:
    for draw in (shape_motion, moving_digits, scenes):
        several, fewer, others = draw(5, size=32, seed=7), draw(3, size=32, seed=7), draw(5, size=32, seed=8)
        assert np.array_equal(several.video[:3], fewer.video)
        assert not np.array_equal(several.video, others.video)
        assert not np.array_equal(several.video[1], others.video[0])
        assert all((a != b).any() for a, b in itertools.combinations(several.video, 2))


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("channels", [1, 3])
def test_generators_are_sources_of_what_the_model_wants(name: str, channels: int) -> None:
    source = open_source(name, ClipSpec(channels=channels, frames=6, size=32, stride=3))
    batch = Batches(source, 4).batch(0)
    assert batch.video.shape == (4, channels, 6, 32, 32)
    assert batch.video.min() >= -1
    assert batch.video.max() <= 1
    assert (batch.label is not None) == bool(source.classes)
    if "mask" in batch.truth:
        assert batch.truth["mask"].shape == (4, 1, 6, 32, 32)
    if name == "shape-motion":
        colour = batch.truth["colour"][:, :, None, None, None]
        assert ((batch.video == colour) | (batch.video == -1)).all()
        assert ((batch.video == colour) | ~batch.truth["mask"]).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_grey_is_the_same_video_without_its_colours(name: str) -> None:
    coloured, plain = (
        open_source(name, ClipSpec(channels=c)).clip(0, np.random.default_rng(3)).video.astype(int) for c in (3, 1)
    )
    assert np.abs(coloured @ [0.299, 0.587, 0.114] - plain[..., 0]).max() <= 1.5  # rounded once more in gradients


def test_a_clip_takes_every_stride_th_frame_and_longer_ones_are_drawn_longer() -> None:
    source = open_source("shape-motion", ClipSpec(frames=16, stride=2))
    item = source.clip(0, np.random.default_rng(1))
    whole = open_source("shape-motion", ClipSpec(frames=31)).clip(0, np.random.default_rng(1))
    assert np.array_equal(item.video, whole.video[::2])
    long = open_source("shape-motion", ClipSpec(frames=48)).clip(0, np.random.default_rng(1))
    axis = 1 - int(long.label or 0)
    assert np.ptp(long.truth["position"][:, axis]) >= 47  # from border to border


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("shape-motion", ClipSpec(size=8), "size to be at least 16, got 8"),
        ("scenes", ClipSpec(fps=10), "choose by stride"),
        ("scenes:5", ClipSpec(), "got scenes:5"),
        ("moving-digits:/nowhere", ClipSpec(), "/nowhere: not readable"),
        ("shape-moton", ClipSpec(), "perhaps you meant shape-motion"),
        ("", ClipSpec(), "no such file or folder as ''"),
    ],
)
def test_what_can_not_be_drawn_is_said(name: str, spec: ClipSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(name, spec)


def test_a_spec_refuses_what_no_clip_can_be() -> None:
    for wrong in ({"channels": 2}, {"frames": 0}, {"stride": 0}, {"size": -1}, {"fps": 0.0}, {"crop": "left"}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} to be .* got"):
            ClipSpec(**wrong)  # type: ignore[arg-type]
