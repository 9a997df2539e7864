"""Frechet distance between features of two sets of clips, and the Frechet video distance with a user's network.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2)

Decides the numerics (fp64, streaming, eigenvalues of symmetric matrices only: a general matrix root is wrong or complex
on nearly singular ones) and the protocol; the network comes from the user.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vgkernels_models.metrics.network import LabelledNetwork, Network, clip_shape
from vgkernels_models.metrics.score import Score

_USUAL_CLIPS = 2048  # of each kind, StyleGAN-V's protocol


@dataclass
class FeatureStatistics:
    """Count, mean and scatter of features, in fp64, gathered batch by batch and over ranks."""

    count: int
    mean: Tensor  # (D,)
    scatter: Tensor  # (D, D): sum over samples of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Of (N, D) features, N at least 1."""
        if features.ndim != 2 or not len(features):
            raise ValueError(
                f"FeatureStatistics: expected features of shape (N, D), N at least 1, got {tuple(features.shape)}"
            )
        mean = features.double().mean(0)
        centred = features.double() - mean
        return cls(len(features), mean, centred.T @ centred)

    def merged(self, other: FeatureStatistics) -> FeatureStatistics:
        """Of both sets together (Chan et al. 1979): no difference of large numbers."""
        count, step = self.count + other.count, other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        return FeatureStatistics(
            count, self.mean + step * (other.count / count), self.scatter + other.scatter + between
        )

    def over_ranks(self) -> FeatureStatistics:
        """Of all ranks together, in the order of ranks; this one's where there is only one."""
        if not dist.is_initialized():
            return self
        mine = torch.cat([self.mean.new_tensor([self.count]), self.mean, self.scatter.flatten()])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        dim = len(self.mean)
        parts = [FeatureStatistics(int(v[0]), v[1 : dim + 1], v[dim + 1 :].view(dim, dim)) for v in everyone]
        total = parts[0]
        for part in parts[1:]:
            total = total.merged(part)
        return total

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by N - 1."""
        return self.scatter / max(1, self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Frechet distance between the Gaussians of these means and covariances, as FID and FVD print it.

    Raises:
        ValueError: features of two sizes, or that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"frechet_distance: expected features of one size, got {len(a.mean)} and {len(b.mean)}")
    if not all(each.isfinite().all() for each in (a.mean, b.mean, a.scatter, b.scatter)):
        raise ValueError("frechet_distance: expected finite features, got NaN or Inf")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return ((a.mean - b.mean).square().sum() + traces - 2 * cross).clamp(min=0).item()


class FVD:
    """The Frechet video distance under a user's feature network.

    Args:
        features: the path of a TorchScript file that is called as StyleGAN-V calls its `i3d_torchscript.pt`, with uint8
            (B, 3, T, H, W) and rescale, resize, return_features = True; or any callable from uint8 (B, C, T, H, W)
            to (B, D). The file's sha256 stands in the protocol.
        batch_size: clips that go through the network at once.

    Example: `FVD("i3d_torchscript.pt")(fakes, reals, data="UCF-101 train")`.
    """

    def __init__(self, features: Network, *, batch_size: int = 16) -> None:
        self.network = LabelledNetwork(features, batch_size=batch_size, rescale=True, resize=True, return_features=True)

    def statistics(self, video: Tensor) -> FeatureStatistics:
        """Of (N, C, T, H, W) clips in [-1, 1]."""
        clip_shape(video, "video")
        batches = (FeatureStatistics.of(self.network(clips)) for clips in video.split(256))
        total = next(batches)
        for batch in batches:
            total = total.merged(batch)
        return total

    def __call__(self, fakes: Tensor, reals: Tensor, other_reals: Tensor | None = None, *, data: str) -> Score:
        """The distance of fakes to reals; beside it that of other reals, the floor of as few clips.

        Raises:
            ValueError: clips of two shapes, or features that are not finite.
        """
        if fakes.shape[1:] != reals.shape[1:]:
            raise ValueError(
                f"FVD: expected fakes and reals of one (C, T, H, W), got {tuple(fakes.shape)} and {tuple(reals.shape)}"
            )
        real, fake = self.statistics(reals), self.statistics(fakes)
        if (fewest := min(real.count, fake.count)) < max(_USUAL_CLIPS, len(real.mean)):
            warnings.warn(
                f"FVD: {fewest} clips against features of {len(real.mean)}: biased upwards, usual are {_USUAL_CLIPS} "
                "of each; compare only scores of equal counts",
                stacklevel=2,
            )
        floor = {} if other_reals is None else {
            "real against real": frechet_distance(self.statistics(other_reals), real)
        }  # fmt: skip
        protocol = (
            f"FVD[{self.network.label}, {fake.count} vs {real.count}, {clip_shape(reals, 'reals')} as uint8, {data}]"
        )
        return Score("FVD", frechet_distance(fake, real), protocol, baselines=floor)
