"""What a data set hands to a model: clips, their classes, and what a generator knows beside the pixels.

Decides layout and range; where clips come from is left to the data sets, what is learnt from them to the models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """B clips of one size; every tensor's first axis is the clip."""

    video: Tensor  # (B, C, T, H, W) floating point in [-1, 1]: uint8 / 127.5 - 1
    label: Tensor | None = None  # (B,) int64, an index into the data set's `classes`
    truth: dict[str, Tensor] = field(default_factory=dict)  # of a generator, by name: "mask", "background", ...

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, part: slice) -> Batch:
        """A part of the clips."""
        label = None if self.label is None else self.label[part]
        return Batch(self.video[part], label, {name: value[part] for name, value in self.truth.items()})

    def to(self, device: torch.device | str) -> Batch:
        """The same clips on another device."""
        label = None if self.label is None else self.label.to(device)
        return Batch(self.video.to(device), label, {name: value.to(device) for name, value in self.truth.items()})
