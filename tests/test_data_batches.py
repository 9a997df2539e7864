"""Batches are a function of (seed, rank, world, step): with workers, after a resume, on any rank."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vgkernels_models.data.batch import Batch
from vgkernels_models.data.batches import Batches
from vgkernels_models.data.clips import ClipError, find_clip
from vgkernels_models.data.source import ClipSpec, Item, VideoSource, open_source


class Numbered(VideoSource):
    """Clip i is of level i; the second pixel is random."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def clip(self, index: int, generator: np.random.Generator | None) -> Item:
        video = np.full((2, 4, 4, 3), index, np.uint8)
        video[:, 0, 1] = 0 if generator is None else generator.integers(256)
        return Item(video, index % 2, {"index": np.array(index)})


def indices(batch: Batch) -> list[int]:
    return batch.truth["index"].tolist()


def equal(a: Batch, b: Batch) -> bool:
    labels = [torch.empty(0) if batch.label is None else batch.label for batch in (a, b)]
    return torch.equal(a.video, b.video) and torch.equal(*labels)


def needs_carphone() -> None:
    try:
        find_clip("carphone")
    except ClipError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of 7 videos of 10 random frames in two classes."""
    random = np.random.default_rng(0)
    for i in range(7):
        path = tmp_path / "videos" / "ab"[i % 2] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random.integers(256, size=(10, 20, 24, 3), dtype=np.uint8))
    return tmp_path / "videos"


def test_a_batch_has_the_video_scaled_and_channels_first() -> None:
    batch = Batches(Numbered(5), 5).batch(0)
    assert batch.video.shape == (5, 3, 2, 4, 4)
    assert batch.video.dtype == torch.float32
    assert batch.video.is_contiguous()
    expected = torch.tensor(indices(batch), dtype=torch.uint8) / 127.5 - 1
    assert torch.equal(batch.video[:, 2, 1, 3, 3], expected)
    assert batch.label is not None
    assert batch.label.tolist() == [index % 2 for index in indices(batch)]
    assert batch.label.dtype == torch.int64


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_go_through_every_epoch(world: int) -> None:
    ranks = [Batches(Numbered(30), 5, seed=1, rank=rank, world=world) for rank in range(world)]
    drawn = [indices(batches.batch(step)) for step in range(60 // (5 * world)) for batches in ranks]
    flat = list(itertools.chain.from_iterable(drawn))
    assert sorted(flat[:30]) == sorted(flat[30:]) == list(range(30))
    assert flat[:30] != flat[30:]  # another order
    assert flat[:30] != sorted(flat[:30])
    assert all(len(set(batch)) == 5 for batch in drawn)


def test_an_endless_source_never_repeats_and_ranks_differ() -> None:
    source = open_source("shape-motion", ClipSpec(size=16, frames=2))
    batches = [Batches(source, 4, rank=rank, world=2).batch(step) for step in range(3) for rank in (0, 1)]
    clips = torch.cat([batch.video for batch in batches]).flatten(1)
    assert len(clips.unique(dim=0)) == 24


def test_batches_are_smaller_than_an_epoch_or_larger() -> None:
    batch = Batches(Numbered(3), 10).batch(4)
    assert sorted(set(indices(batch))) == [0, 1, 2]
    assert len(batch.video[:, :, :, 0, 1].flatten(1).unique(dim=0)) > 5  # the same clips at other random places


@pytest.mark.parametrize("name", ["folder", "shape-motion", "carphone"])
def test_workers_and_resuming_change_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    if name == "carphone":
        needs_carphone()
    spec = ClipSpec(size=16, frames=4, crop="random")
    source = open_source(folder if name == "folder" else name, spec, cache=tmp_path / "cache")
    batches = Batches(source, 4, seed=5)
    straight = list(itertools.islice(batches.starting_at(0), 6))
    with_workers = list(itertools.islice(batches.starting_at(0, workers=2), 6))
    reopened = open_source(folder if name == "folder" else name, spec, cache=tmp_path / "cache")
    resumed = list(itertools.islice(Batches(reopened, 4, seed=5).starting_at(3), 3))
    assert all(map(equal, straight, with_workers))
    assert all(map(equal, straight[3:], resumed))
    assert not equal(straight[0], Batches(source, 4, seed=6).batch(0))
    assert equal(straight[2], Batches(pickle.loads(pickle.dumps(source)), 4, seed=5).batch(2))


def test_no_global_generator_is_touched(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches = Batches(open_source(folder, ClipSpec(size=16, frames=4), cache=tmp_path / "cache"), 2)
    next(batches.starting_at(0, workers=1))
    batches.batch(1)
    batches.reals(3)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_reals_are_fixed_and_their_halves_share_nothing() -> None:
    reals = Batches(Numbered(30), 4, seed=1).reals(30)
    assert sorted(indices(reals)) == list(range(30))
    assert equal(reals, Batches(Numbered(30), 8, seed=2, rank=1, world=2).reals(30))
    assert indices(reals) != indices(Batches(Numbered(30), 4).reals(30, seed=1))
    more = Batches(Numbered(3), 4).reals(7)
    assert sorted(indices(more)[:3]) == sorted(indices(more)[3:6]) == [0, 1, 2]
    assert len(more.video.flatten(1).unique(dim=0)) == 7


def test_reals_of_a_generator_are_not_in_the_training() -> None:
    batches = Batches(open_source("shape-motion", ClipSpec(size=16, frames=2)), 16)
    reals = batches.reals(16)
    both = torch.cat([reals.video, batches.batch(0).video]).flatten(1)
    assert len(both.unique(dim=0)) == 32
    assert equal(reals[:4], batches.reals(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"source": Numbered(0)}, "empty"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(**{"source": Numbered(3), "batch_size": 1, **arguments})
