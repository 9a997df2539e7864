"""Sliced Wasserstein distance of clips, of single frames and of the changes from frame to frame.

Decides projections, views and the baselines that a score is read against; the distance itself is
`vgkernels.sliced_wasserstein`, the gate's place in a report is left to the report.

    SWD = sqrt( mean over directions theta of W_2^2(<theta, x>, <theta, y>) ),   |theta| = 1

A direction has length 1, so that one step of brightness over the whole clip costs as much at any size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vgkernels import random_projections, sliced_wasserstein
from vgkernels_models.metrics.network import clip_shape
from vgkernels_models.metrics.score import Score

_DIRECTIONS_AT_ONCE, _CLIPS_AT_ONCE = 64, 64  # bounds memory: a direction of 3x16x64x64 is 0.8 MB


def clips(video: Tensor) -> Tensor:
    """(B, C, T, H, W) as (B, D): whole clips."""
    return video.flatten(1)


def middle_frames(video: Tensor) -> Tensor:
    """(B, C, T, H, W) as (B, D): one frame of each clip, so that the samples are independent."""
    return video[:, :, video.shape[2] // 2].flatten(1)


def changes(video: Tensor) -> Tensor:
    """(B, C, T, H, W) as (B, D): x_(t+1) - x_t, which no still or mean picture has."""
    return video.diff(dim=2).flatten(1)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {"clips": clips, "frames": middle_frames, "changes": changes}


def constant_baselines(reals: Tensor) -> dict[str, Tensor]:
    """What a model that shows the same clip every time could show at best: (1, C, T, H, W) each.

    "mean video" is the mean real clip, "black" is -1 everywhere, "best still" is the mean over clips and time. W_2^2 to
    a single point is a mean square, so that no other constant clip is nearer than the first, no other still frame than
    the last.
    """
    mean = reals.mean(0, keepdim=True)
    return {
        "mean video": mean,
        "black": torch.full_like(mean, -1.0),
        "best still": mean.mean(2, keepdim=True).expand_as(mean),
    }


def swd(x: Tensor, y: Tensor, *, view: str = "clips", n_projections: int = 512, seed: int = 0) -> float:
    """The distance between two sets of clips, each (N, C, T, H, W), under fixed directions.

    Raises:
        ValueError: an unknown view, or clips of two shapes.
    """
    return swd_to_all(x, {"": y}, view=view, n_projections=n_projections, seed=seed)[""]


def swd_to_all(
    x: Tensor, others: dict[str, Tensor], *, view: str = "clips", n_projections: int = 512, seed: int = 0
) -> dict[str, float]:
    """The distance from x to each of the others: every set is projected once. A set of one clip stands for N copies."""
    if view not in VIEWS:
        raise ValueError(f"swd: expected view to be one of {', '.join(VIEWS)}, got {view!r}")
    for name, other in others.items():
        if x.shape[1:] != other.shape[1:]:
            raise ValueError(f"swd: expected clips of one shape, got {tuple(x.shape)} and {tuple(other.shape)} {name}")
    squares = dict.fromkeys(others, 0.0)
    sets = [x, *others.values()]
    for projected in _projections(sets, VIEWS[view], n_projections, seed):
        every = torch.eye(projected[0].shape[1], device=x.device)  # what is projected already is only sorted
        for name, values in zip(others, projected[1:], strict=True):
            square = sliced_wasserstein(projected[0], values.expand_as(projected[0]) if len(values) == 1 else values,
                                        projections=every)  # fmt: skip
            squares[name] += square.item() * len(every) / n_projections
    return {name: math.sqrt(square) for name, square in squares.items()}


def swd_scores(
    fakes: Tensor, reals: Tensor, other_reals: Tensor, *, data: str, n_projections: int = 512, seed: int = 0
) -> list[Score]:
    """One score a view. Its baselines: the floor, which is other reals against the reals, and the constant clips.

    The gate of clips and of changes is half of the best constant baseline: a model that learned nothing misses it.

    Args:
        fakes, reals, other_reals: (N, C, T, H, W) in [-1, 1], N the same; no real clip is in both sets.
        data: the name of the data, for the protocol.
        n_projections: directions, L.
        seed: of the directions.

    Raises:
        ValueError: sets of different shapes, or clips of a single frame.
    """
    if not fakes.shape == reals.shape == other_reals.shape or reals.ndim != 5 or reals.shape[2] < 2:
        raise ValueError(
            "swd_scores: expected fakes, reals and other_reals of one shape (N, C, T, H, W) with T at least 2, got "
            f"{tuple(fakes.shape)}, {tuple(reals.shape)} and {tuple(other_reals.shape)}"
        )
    constants = constant_baselines(reals)
    sets = {"value": fakes, "real against real": other_reals, **constants}
    scores = []
    for view in VIEWS:
        distances = swd_to_all(reals, sets, view=view, n_projections=n_projections, seed=seed)
        value = distances.pop("value")
        if distances["real against real"] == 0 and reals.std() > 0:
            warnings.warn("swd_scores: reals and other_reals are the same clips: the floor means nothing", stacklevel=2)
        protocol = (
            f"SWD[{view}, W2, root, {n_projections} Gaussian directions of seed {seed}, {len(fakes)} vs {len(reals)}, "
            f"{clip_shape(reals, 'reals')} in [-1, 1], {data}]"
        )
        gate = None if view == "frames" else min(distances[name] for name in constants) / 2
        scores.append(Score(f"SWD of {view}", value, protocol, baselines=distances, at_most=gate))
    return scores


def _projections(
    sets: Sequence[Tensor], view: Callable[[Tensor], Tensor], n_projections: int, seed: int
) -> Iterator[list[Tensor]]:
    """Some directions at a time: each set's (N, L') values on them. The directions are the CPU's on any device."""
    generator = torch.Generator().manual_seed(seed)
    dim = view(sets[0][:1]).shape[1]
    for first in range(0, n_projections, _DIRECTIONS_AT_ONCE):
        count = min(_DIRECTIONS_AT_ONCE, n_projections - first)
        directions = random_projections(count, dim, generator=generator).to(sets[0].device).T  # (D, L')
        yield [torch.cat([view(part.float()) @ directions for part in each.split(_CLIPS_AT_ONCE)]) for each in sets]
