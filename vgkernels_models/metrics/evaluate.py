"""The scores that every model gets.

Decides which they are and on which samples; each score's protocol is in its own file, showing them left to report/.
"""

from __future__ import annotations

from torch import Tensor

from vgkernels_models.data.batch import Batch
from vgkernels_models.metrics.acd import colour_scores
from vgkernels_models.metrics.frechet import FVD
from vgkernels_models.metrics.network import Network
from vgkernels_models.metrics.score import Score
from vgkernels_models.metrics.swd import swd_scores
from vgkernels_models.model import VideoModel

CLIPS = 1024  # N of each kind: what the gates are stated for


def evaluate(
    model: VideoModel,
    reals: Batch,
    other_reals: Batch,
    *,
    seed: int = 0,
    data: str | None = None,
    condition: Tensor | None = None,
    features: Network | None = None,
) -> list[Score]:
    """Samples as many clips as there are reals, and scores them.

    Sliced Wasserstein distances of clips, frames and changes, with floor, baselines and gates; the content distance on
    shape motion in colour; with a feature network the Frechet video distance.

    Args:
        model: what is judged.
        reals: N clips, `CLIPS` of them for the gates.
        other_reals: N others, for the floor.
        seed: of the samples; the directions of the distances are those of seed 0 always.
        data: the name of the reals, for the protocols; that of the model's training by default.
        condition: what the samples are conditioned on, where the model needs that.
        features: TorchScript file or callable for `FVD`.

    Raises:
        ValueError: reals and other_reals of different shapes, or not what the model makes.
    """
    data = data or model.config.data
    fakes = model.sample(len(reals), seed=seed, condition=condition).float()
    real, other = (batch.video.to(fakes.device).float() for batch in (reals, other_reals))
    scores = swd_scores(fakes, real, other, data=data)
    if data.split(":")[0] == "shape-motion" and fakes.shape[1] == 3:
        scores += colour_scores(fakes, real, data=data)
    if features is not None:
        scores.append(FVD(features)(fakes, real, other, data=data))
    return scores
