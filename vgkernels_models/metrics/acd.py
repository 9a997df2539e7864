"""Average content distance (MoCoGAN, arXiv 1707.04993): how much the content of a clip changes from frame to frame.

Decides what the content of a frame is: the mean colour of its object (ACD-C), or a user's embedding (ACD-I), and what
happens to frames that show no object, which would otherwise make an empty clip perfect.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vgkernels_models.metrics.network import LabelledNetwork, Network, clip_shape
from vgkernels_models.metrics.score import Score

_OBJECT = 0.1  # of [0, 1]: a pixel of the object has a channel above it
_LARGEST_OBJECT = 0.5  # of the frame: what covers more is no object on a dark ground
_ENOUGH_FRAMES = 0.95  # share of the frames that must show one


class ContentDistance(NamedTuple):
    """ACD-C of a set of clips."""

    distance: float  # mean over clips with at least two usable frames; NaN where there is none
    frames_with_object: float  # share of all frames


def colour_distance(video: Tensor) -> ContentDistance:
    """ACD-C: mean L2 distance, on the 0 to 255 scale, between the mean object colours of two frames of a clip.

    The object are the pixels with a channel above 0.1 of [0, 1]; a frame of which none, or more than half, are such has
    no object and is left out.

    Args:
        video: (B, C, T, H, W) in [-1, 1], objects on black.
    """
    clip_shape(video, "video")
    pixels = (video.double() + 1) / 2
    seen = (pixels.amax(1, keepdim=True) > _OBJECT).double()  # (B, 1, T, H, W)
    count = seen.sum((1, 3, 4))  # (B, T)
    usable = (count > 0) & (count <= _LARGEST_OBJECT * video[0, 0, 0].numel())
    colours = 255 * (pixels * seen).sum((3, 4)) / count.clamp(min=1)[:, None]  # (B, C, T)
    clips = [_mean_distance(colour[:, use].T) for colour, use in zip(colours, usable, strict=True) if use.sum() > 1]
    distance = torch.stack(clips).mean().item() if clips else float("nan")
    return ContentDistance(distance, usable.double().mean().item())


def colour_scores(fakes: Tensor, reals: Tensor, *, data: str) -> list[Score]:
    """ACD-C with that of real clips beside it, and the share of frames with an object, gated at 95 %."""
    fake, real = colour_distance(fakes), colour_distance(reals)
    rest = f"{len(fakes)} clips, {clip_shape(fakes, 'fakes')}, {data}"
    baseline = "real clips"
    return [
        Score(
            "ACD-C",
            fake.distance,
            f"ACD-C[mean object colour, 0-255, objects above {_OBJECT}, frames without one left out, {rest}]",
            baselines={baseline: real.distance},
        ),
        Score(
            "frames with an object",
            fake.frames_with_object,
            f"share[1 pixel to {_LARGEST_OBJECT:.0%} of the frame above {_OBJECT}, {rest}]",
            better="higher",
            baselines={baseline: real.frames_with_object},
            at_least=_ENOUGH_FRAMES,
        ),
    ]


def identity_score(fakes: Tensor, embedder: Network, reals: Tensor | None = None, *, data: str) -> Score:
    """ACD-I: mean L2 distance between the embeddings of two frames of a clip (faces: OpenFace in the paper).

    Args:
        fakes, reals: (B, C, T, H, W) in [-1, 1].
        embedder: TorchScript file, or callable, from uint8 frames (B, C, 1, H, W) to (B, D).
        data: the name of the data, for the protocol.
    """
    network = LabelledNetwork(embedder, batch_size=64)

    def distance(video: Tensor) -> float:
        clip_shape(video, "video")
        frames = video.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (B T, C, 1, H, W)
        embedded = network(frames).double().view(len(video), video.shape[2], -1)  # (B, T, D)
        return torch.stack([_mean_distance(clip) for clip in embedded]).mean().item()

    if fakes.ndim != 5 or fakes.shape[2] < 2:
        raise ValueError(f"identity_score: expected fakes (B, C, T, H, W) with T at least 2, got {tuple(fakes.shape)}")
    baselines = {} if reals is None else {"real clips": distance(reals)}
    protocol = f"ACD-I[{network.label}, {len(fakes)} clips, {clip_shape(fakes, 'fakes')} as uint8, {data}]"
    return Score("ACD-I", distance(fakes), protocol, baselines=baselines)


def _mean_distance(content: Tensor) -> Tensor:
    """Mean L2 distance between two different rows of (T, D), T at least 2."""
    return torch.pdist(content).mean()
