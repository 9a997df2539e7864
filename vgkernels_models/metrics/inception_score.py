"""Inception score of clips by a user's classifier, in the protocol of TGAN (arXiv 1611.06624).

    IS = exp( mean over clips of sum_k p_k(x) (log(p_k(x) + 1e-7) - log(mean p_k + 1e-7)) )

Decides formula, runs and protocol; the classifier (TGAN's is a C3D tuned on UCF-101) comes from the user.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from torch import Tensor

from vgkernels_models.metrics.network import LabelledNetwork, Network, clip_shape
from vgkernels_models.metrics.score import Score

_INSIDE_LOG = 1e-7


def inception_score_of(probabilities: Tensor) -> float:
    """The score of (N, K) class probabilities: 1 if they are all alike, K if they are sure and even over classes.

    Raises:
        ValueError: not (N, K), or rows that are no probabilities.
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise ValueError(f"inception_score_of: expected probabilities (N, K), got {tuple(probabilities.shape)}")
    p = probabilities.double()
    if (p < 0).any() or not ((p.sum(1) - 1).abs() < 1e-3).all():
        raise ValueError("inception_score_of: expected rows of probabilities with sum 1 (logits: outputs='logits')")
    return (p * ((p + _INSIDE_LOG).log() - (p.mean(0) + _INSIDE_LOG).log())).sum(1).mean().exp().item()


def inception_score(
    sample: Callable[[int, int], Tensor],
    classifier: Network,
    *,
    outputs: str = "logits",
    clips: int = 10_000,
    runs: int = 4,
    batch_size: int = 48,
) -> Score:
    """The mean over runs of the score of so many new clips, and its standard deviation over runs.

    Args:
        sample: (how many, seed) to clips (n, C, T, H, W) in [-1, 1]: `lambda n, seed: model.sample(n, seed=seed)`.
        classifier: TorchScript file, or callable from uint8 (B, C, T, H, W) to (B, K).
        outputs: what it returns, "logits" or "probabilities".
        clips: of one run; TGAN takes 9,984.
        runs: of seeds 0, 1, ...

    Raises:
        ValueError: no clips or runs, another `outputs`, no probabilities.
    """
    if outputs not in ("logits", "probabilities") or clips < 1 or runs < 1:
        raise ValueError(
            "inception_score: expected outputs of 'logits' or 'probabilities' and at least 1 clip and run, "
            f"got {outputs!r}, {clips} and {runs}"
        )
    network = LabelledNetwork(classifier, batch_size=batch_size)
    scores, shape = [], ""
    for seed in range(runs):
        video = sample(clips, seed)
        shape = clip_shape(video, "the samples")
        rows = network(video).double()
        scores.append(inception_score_of(rows.softmax(1) if outputs == "logits" else rows))
    return Score(
        "inception score",
        statistics.fmean(scores),
        f"IS[{network.label}, {outputs}, {clips} clips a run, {runs} runs, {shape} as uint8, 1e-7 inside the logs]",
        better="higher",
        spread=statistics.pstdev(scores),
    )
