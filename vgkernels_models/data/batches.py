"""From clips to batches: which clip comes when, on which rank, and how uint8 becomes a tensor.

Decides order and randomness, as a function of (seed, rank, world, step) alone, so that to resume needs no state; what a
clip is stays with the sources.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vgkernels_models.data.batch import Batch
from vgkernels_models.data.source import Item, VideoSource

_ORDER, _CLIP, _REAL_ORDER, _REAL = range(4)  # what a stream of random numbers is for: no two uses share one


class Batches:
    """Batches of one rank. Ranks of one world take different clips; together they go through every epoch.

    Args:
        source: where clips come from.
        batch_size: clips of a batch, on this rank.
        seed: of the order of clips, and of start frames and crops.
        rank: of this process, 0 <= rank < world.
        world: how many processes there are.

    Raises:
        ValueError: an empty source, or an argument out of its range.
    """

    def __init__(self, source: VideoSource, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"expected batch_size to be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"expected seed to be at least 0, got {seed}")
        if not 0 <= rank < world:
            raise ValueError(f"expected 0 <= rank < world, got rank {rank} of {world}")
        if not len(source):
            raise ValueError("expected a source with clips, got an empty one")
        self.source, self.batch_size, self.seed, self.rank, self.world = source, batch_size, seed, rank, world
        self._orders: dict[int, np.ndarray] = {}  # epoch -> order of the clips, of the last two epochs

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same whenever and in whichever process it is asked for."""
        first = (step * self.world + self.rank) * self.batch_size
        places = (self._place(number) for number in range(first, first + self.batch_size))
        return collate(self.source.clip(index, _random(self.seed, _CLIP, epoch, index)) for epoch, index in places)

    def starting_at(self, step: int, workers: int = 0) -> Iterator[Batch]:
        """The batches from this step on, without end; with `workers`, processes prepare them ahead of time."""
        if not workers:
            return map(self.batch, itertools.count(step))
        own = torch.Generator()  # a DataLoader draws from it: the global one, which training draws from, is left alone
        steps: Any = itertools.count(step)
        return iter(DataLoader(_Steps(self), batch_size=None, sampler=steps, num_workers=workers, generator=own))

    def reals(self, n: int, seed: int = 0) -> Batch:
        """n fixed clips for scores and pictures, the same for every rank and every seed of the training.

        A generator's are no clips of the training. Of a data set, none comes twice before each came once, so that the
        halves of `reals(2 * n)` share nothing where there is enough; windows of one video do not overlap then.
        """
        length = n if self.source.endless else len(self.source)
        items = []
        for lap in range(-(-n // length)):
            order = np.arange(n) if self.source.endless else _random(seed, _REAL_ORDER, lap).permutation(length)
            apart = self.source.windows and lap == 0
            for index in map(int, order[: n - lap * length]):
                items.append(self.source.clip(index, None if apart else _random(seed, _REAL, lap, index)))
        return collate(items)

    def _place(self, number: int) -> tuple[int, int]:
        """Epoch and index of the clip of this number, counted over all steps and ranks."""
        if self.source.endless:
            return 0, number
        epoch, place = divmod(number, len(self.source))
        if epoch not in self._orders:
            order = _random(self.seed, _ORDER, epoch).permutation(len(self.source))
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return epoch, int(self._orders[epoch][place])


def _random(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def collate(items: Iterable[Item]) -> Batch:
    """Clips of one size as a batch: video in [-1, 1], labels where every clip has one, truth by name."""
    items = list(items)
    labels = [item.label for item in items if item.label is not None]
    return Batch(
        _channels_first([item.video for item in items]),
        torch.tensor(labels) if len(labels) == len(items) else None,
        {name: _truth([item.truth[name] for item in items]) for name in items[0].truth},
    )


def _truth(values: list[np.ndarray]) -> Tensor:
    return _channels_first(values) if values[0].dtype == np.uint8 else torch.from_numpy(np.stack(values))


def _channels_first(values: list[np.ndarray]) -> Tensor:
    """B arrays (..., C) uint8 as (B, C, ...) in [-1, 1]. Turned as bytes, which is 2.5x faster than as floats."""
    turned = np.empty((len(values), values[0].shape[-1], *values[0].shape[:-1]), np.uint8)  # (B, C, ...)
    for clip, value in zip(turned, values, strict=True):
        clip[:] = np.moveaxis(value, -1, 0)
    return torch.from_numpy(turned).to(torch.float32).div_(127.5).sub_(1)


class _Steps(Dataset[Batch]):
    """Batches by step, for a DataLoader; nothing is decoded and no file is open before a worker asks for it."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch:
        return self.batches.batch(step)
