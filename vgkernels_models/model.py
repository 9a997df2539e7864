"""What every video model has: a configuration with presets, the paper's update rule, a sampler.

Decides the border between a model and what serves all models: training/ calls `training_step`, `sample` and `panels`
and knows no model's name; a model calls `Step` and knows nothing of devices, ranks or files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vgkernels_models.data.batch import Batch

C = TypeVar("C", bound="ModelConfig")
_AT_ONCE = 64  # clips that `sample` generates together


@dataclass
class ModelConfig:
    """The fields that every model has. A model adds the paper's; the defaults are the paper's values.

    The comment of a field is the help of its flag, and names the paper's symbol.
    """

    data: str = "shape-motion"  # what is learnt: a folder of videos, an installed clip or a generator
    channels: int = 3  # C: 3 for colour, 1 for grey
    frames: int = 16  # T, frames of a clip
    size: int = 64  # H = W, pixels
    stride: int = 1  # a clip takes every so many-th frame
    batch_size: int = 32  # B, clips of a step
    steps: int = 100_000  # updates until the end
    decay: float = 0.0  # last share of the steps, in which the learning rate falls linearly to 0; 0 for none

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}  # name -> what differs from the defaults
    LEAST: ClassVar[Mapping[str, int]] = dict.fromkeys(  # name -> the least that is allowed; 0 for all others
        ("frames", "size", "stride", "batch_size", "steps"), 1
    )

    def __post_init__(self) -> None:
        """Refuses numbers that no model can do with: below `LEAST`, or not finite."""
        for name, value in vars(self).items():
            least = self.LEAST.get(name, 0)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not least <= number < math.inf:
                    finite = "" if math.isfinite(number) else " and finite"
                    raise ValueError(f"expected {name} to be at least {least}{finite}, got {value}")
        if self.decay > 1:
            raise ValueError(f"expected decay to be a share of the steps from 0 to 1, got {self.decay}")

    @classmethod
    def preset(cls: type[C], name: str, **changes: Any) -> C:
        """The configuration of this name ("paper", "small" or "tiny"), with some fields changed.

        Raises:
            ValueError: no such preset or field.
        """
        if name not in cls.PRESETS:
            raise ValueError(f"expected preset to be one of {', '.join(cls.PRESETS)}, got {name!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"expected fields of {cls.__qualname__} ({', '.join(sorted(known))}), got {unknown[0]!r}")
        return cls(**{**cls.PRESETS[name], **changes})


class Step(Protocol):
    """One update, as the trainer hands it to `training_step`."""

    number: int  # 0, 1, ...: how many updates came before

    def descend(self, losses: Mapping[str, Tensor]) -> None:
        """One step of each named optimizer down its loss.

        The gradients of all losses are taken first, at the present weights; then they are averaged over ranks and
        clipped, and every optimizer steps. What is called one after the other is updated one after the other.
        """

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Makes floating-point tensors (running statistics) equal to their mean over ranks, in place."""


class Panel(NamedTuple):
    """A picture that the report shows for this model: rows and columns of clips."""

    title: str
    note: str  # what to look for
    clips: Tensor  # (R, K, C, T, H, W) in [-1, 1]
    rows: tuple[str, ...] = ()  # names of the R rows
    columns: tuple[str, ...] = ()  # names of the K columns


class VideoModel(nn.Module):
    """A generative model of clips. Subclasses have `Config`, `optimizers`, `training_step` and `generate`."""

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    config: ModelConfig

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name: an optimizer of a part of the parameters. No parameter is in two."""
        raise NotImplementedError

    def training_step(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The paper's update rule: losses, and `step.descend` in the paper's order. Returns scalars to be logged."""
        raise NotImplementedError

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        """What `sample` returns, for at most 64 clips; `generator` is on the CPU, so that a seed means one clip."""
        raise NotImplementedError

    def condition(self, batch: Batch) -> Tensor | None:
        """What `sample` can't do without, taken from real clips: labels, first frames; None where noise is enough."""
        return None

    def panels(self, batch: Batch, generator: torch.Generator) -> list[Panel]:
        """Pictures that show what is special to this model; `batch` holds real clips."""
        return []

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
        length: int | None = None,
    ) -> Tensor:
        """Generates clips, in evaluation mode.

        Args:
            n: how many clips.
            seed: gives the same clips again, on any device up to rounding; not read where there is a `generator`.
            generator: a CPU generator that noise is drawn from.
            condition: (n, ...), what each clip is conditioned on: classes, frames; as the model's docstring says.
            length: frames of a clip, where the model leaves that free; as many as it was trained on by default.

        Returns:
            (n, C, T, H, W) floating point in [-1, 1], on the model's device.

        Raises:
            ValueError: n or length < 1, or a condition or length that this model can't follow.
        """
        if n < 1:
            raise ValueError(f"sample: expected n to be at least 1, got {n}")
        if length is not None and length < 1:
            raise ValueError(f"sample: expected length to be at least 1, got {length}")
        if condition is not None and len(condition) != n:
            raise ValueError(f"sample: expected condition to have n = {n} rows, got {tuple(condition.shape)}")
        generator = generator or torch.Generator().manual_seed(seed)
        was_training = self.training
        self.eval()
        try:
            parts = [
                self.generate(
                    min(_AT_ONCE, n - first),
                    generator,
                    None if condition is None else condition[first : first + _AT_ONCE].to(self.device),
                    length,
                )
                for first in range(0, n, _AT_ONCE)
            ]
        finally:
            self.train(was_training)
        return torch.cat(parts).clamp(-1, 1)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def fixed_length(self, length: int | None) -> None:
        """For models that can't choose: refuses any `length` but their own."""
        if length not in (None, self.config.frames):
            raise ValueError(
                f"{type(self).__name__} was trained on clips of {self.config.frames} frames and makes no others, "
                f"got length = {length}"
            )
