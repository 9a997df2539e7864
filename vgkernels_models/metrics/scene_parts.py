"""How well a model splits a scene into a still background and a moving foreground (VGAN's two streams).

Decides what counts as moving and as background, from the clips alone, so that a model without a mask gets the same
measure; the model's mask and background are handed in by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgkernels_models.metrics.network import clip_shape
from vgkernels_models.metrics.score import Score

_MOVING = 0.1  # tau: temporal standard deviation, of a range of 2, above which a pixel moves


def temporal_deviation(video: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B, H, W): standard deviation over time, of the channel where it is largest."""
    clip_shape(video, "video")
    return video.float().std(2, correction=0).amax(1)


def mask_motion_iou(mask: Tensor, video: Tensor, tau: float = _MOVING) -> float:
    """Overlap of the mask with the sample's own moving pixels: intersection over union, mean over clips.

    Args:
        mask: (B, 1, T, H, W) in [0, 1]; a pixel belongs to the foreground if the mask is above 0.5 at any time.
        video: (B, C, T, H, W) in [-1, 1]; a pixel moves if its temporal standard deviation is above tau.

    A clip in which nothing moves under an empty mask counts as 0.

    Raises:
        ValueError: shapes that don't fit.
    """
    if mask.ndim != 5 or mask.shape[1] != 1 or mask.shape[2:] != video.shape[2:] or len(mask) != len(video):
        raise ValueError(
            f"mask_motion_iou: expected a mask (B, 1, T, H, W) for video {tuple(video.shape)}, got {tuple(mask.shape)}"
        )
    foreground = (mask > 0.5).any(2).squeeze(1)  # (B, H, W)
    moving = temporal_deviation(video) > tau
    both, either = ((each).flatten(1).sum(1) for each in (foreground & moving, foreground | moving))
    return (both / either.clamp(min=1)).double().mean().item()


def background_flicker(video: Tensor, background: Tensor | None = None) -> float:
    """Temporal standard deviation of background pixels, mean over pixels and clips; 0 for a still background.

    Args:
        video: (B, C, T, H, W) in [-1, 1].
        background: (B, H, W) bool, where it is known. None: the stillest half of each clip's pixels, which is the same
            measure for any model as long as what moves sweeps less than half of the frame.

    Raises:
        ValueError: a background of another shape, or a clip without any.
    """
    deviation = temporal_deviation(video).flatten(1)  # (B, H W)
    if background is None:
        return deviation.sort(1).values[:, : max(1, deviation.shape[1] // 2)].mean().item()
    if background.shape != (len(video), *video.shape[3:]) or not background.flatten(1).any(1).all():
        raise ValueError(
            f"background_flicker: expected background pixels in each clip, of shape (B, H, W) = "
            f"{(len(video), *video.shape[3:])}, got {tuple(background.shape)}"
        )
    inside = background.flatten(1).float()
    return ((deviation * inside).sum(1) / inside.sum(1)).mean().item()


def background_correlation(background: Tensor, video: Tensor) -> float:
    """Correlation of (B, C, H, W) backgrounds with the temporal median of their clips, mean over clips."""
    median = video.float().median(2).values
    if background.shape != median.shape:
        raise ValueError(
            f"background_correlation: expected background of shape {tuple(median.shape)}, got {tuple(background.shape)}"
        )
    still, typical = (each.float().flatten(1) for each in (background, median))
    still, typical = still - still.mean(1, keepdim=True), typical - typical.mean(1, keepdim=True)
    return torch.cosine_similarity(still, typical).mean().item()


def two_stream_scores(video: Tensor, mask: Tensor, one_stream_video: Tensor | None = None, *, data: str) -> list[Score]:
    """The gates of VGAN's two-stream generator on scenes.

    Args:
        video, mask: (B, C, T, H, W) in [-1, 1] and (B, 1, T, H, W) in [0, 1], of the two-stream model.
        one_stream_video: samples of the one-stream model: its flicker is to be halved.
        data: the name of the data, for the protocol.
    """
    rest = f"{len(video)} clips, {clip_shape(video, 'video')} in [-1, 1], {data}"
    flicker = {} if one_stream_video is None else {"one stream": background_flicker(one_stream_video)}
    return [
        Score(
            "mask IoU",
            mask_motion_iou(mask, video),
            f"IoU[mask > 0.5 at any time, with temporal deviation > {_MOVING}, {rest}]",
            better="higher",
            at_least=0.3,
        ),
        Score(
            "background flicker",
            background_flicker(video),
            f"flicker[temporal deviation of the stillest half of the pixels, {rest}]",
            baselines=flicker,
            at_most=flicker["one stream"] / 2 if flicker else None,
        ),
        Score("mean mask", mask.mean().item(), f"mean[mask, {rest}]", better="", at_least=0.02, at_most=0.6),
    ]
