"""Warps every frame of a clip from the one before it: scores, the panels' clips, and the kernels' time.

Decides what is compared with what, and how; showing it is left to `report.py`, the command line to `__main__.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from vgkernels import flow_warp, flow_warp_blend
from vgkernels_models.data.clips import Clip
from vgkernels_models.data.optical_flow import estimate_flow, moves, occlusion_mask
from vgkernels_models.metrics.psnr import psnr
from vgkernels_models.report.encode import ClipEncoder
from vgkernels_models.report.flow_wheel import flow_to_color

METHODS = ("copy", "warp", "blend", "oracle")
PANELS = (
    "previous",
    "flow",
    "occlusion",
    "warped",
    "blend",
    "true",
    "error of copying",
    "error of warping",
    "oracle composite",
)

Progress: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]  # wraps a sequence and shows how far it is


@dataclass
class Pair:
    """A frame, the one before it, and what is known between them."""

    previous: Tensor  # (1, 3, H, W) float32 in [0, 1]
    current: Tensor  # (1, 3, H, W)
    flow: Tensor  # (1, 2, H, W): current(p) ~ previous(p + flow(p))
    occlusion: Tensor  # (1, 1, H, W): 1 where the previous frame does not show it
    cut: bool  # a new scene starts with the current frame


@dataclass
class FrameScore:
    """What was measured on one frame."""

    frame: int
    cut: bool
    moving: bool  # has motion and is no cut: counts in the means
    occluded_share: float
    psnr: dict[str, float]  # method -> dB, infinite where the images are equal


@dataclass
class KernelTime:
    """Median milliseconds a frame of an op and of the grid_sample path, and how far apart their results are."""

    op: str
    ours_ms: float
    grid_sample_ms: float
    max_difference: float


class WrongResult(RuntimeError):
    """The op and the grid_sample path disagree: nothing may be reported."""


def grid_sample_warp(image: Tensor, flow: Tensor) -> Tensor:
    """The usual way to warp: base grid + flow, normalised to [-1, 1], then `F.grid_sample`."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")  # (H, W)
    grid_x = 2 * (x + flow[:, 0]) / (width - 1) - 1  # (B, H, W)
    grid_y = 2 * (y + flow[:, 1]) / (height - 1) - 1  # (B, H, W)
    grid = torch.stack([grid_x, grid_y], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def grid_sample_blend(image: Tensor, flow: Tensor, mask: Tensor, new: Tensor) -> Tensor:
    """The usual composite after the usual warp."""
    return (1 - mask) * grid_sample_warp(image, flow) + mask * new


def pairs_with_flow(clip: Clip, cuts: Sequence[bool], progress: Progress) -> list[Pair]:
    """Flow, both ways, and occlusion between each frame and the one before."""
    images = [(frame.permute(2, 0, 1)[None].float() / 255).contiguous() for frame in clip.frames]  # (1, 3, H, W)
    pairs = []
    for t in progress(range(1, len(images)), "flow and occlusion"):
        flow = estimate_flow(clip.frames[t], clip.frames[t - 1])
        reverse_flow = estimate_flow(clip.frames[t - 1], clip.frames[t])
        pairs.append(Pair(images[t - 1], images[t], flow, occlusion_mask(flow, reverse_flow), cuts[t]))
    return pairs


def full_colour_flow(pairs: Sequence[Pair]) -> float:
    """The flow length, in pixels, that gets the wheel's full colour: 99 % of the clip's pixels stay within it."""
    sampled = [pair.flow[..., ::4, ::4].square().sum(1).sqrt().flatten() for pair in pairs if not pair.cut]
    if not sampled:
        return 0.0
    lengths = torch.cat(sampled)
    return lengths.kthvalue(max(1, round(0.99 * len(lengths)))).values.item()


def warp_and_score(
    pairs: Sequence[Pair], rate: float, max_flow: float, progress: Progress
) -> tuple[list[FrameScore], dict[str, bytes]]:
    """Warps and scores every frame, and encodes each panel's clip as it goes."""
    # drawn panels need every pixel's colour, which H.264 halves; photographs were halved already
    encoders = {name: ClipEncoder(rate, min_width=320 if name in ("flow", "occlusion") else 0) for name in PANELS}
    scores = []
    for t, pair in progress(list(enumerate(pairs, start=1)), "warp, score, encode"):
        warped = flow_warp(pair.previous, pair.flow)
        blend = flow_warp_blend(pair.previous, pair.flow, pair.occlusion, pair.previous)
        oracle = flow_warp_blend(pair.previous, pair.flow, pair.occlusion, pair.current)
        predictions = dict(zip(METHODS, (pair.previous, warped, blend, oracle), strict=True))
        scores.append(
            FrameScore(
                frame=t,
                cut=pair.cut,
                moving=moves(pair.flow) and not pair.cut,
                occluded_share=pair.occlusion.mean().item(),
                psnr={name: psnr(image, pair.current).item() for name, image in predictions.items()},
            )
        )
        pictures = (
            pair.previous,
            flow_to_color(pair.flow, max_flow),
            _tint(pair.current, pair.occlusion),
            warped,
            blend,
            pair.current,
            _error(pair.previous, pair.current),
            _error(warped, pair.current),
            oracle,
        )
        for name, picture in zip(PANELS, pictures, strict=True):
            encoders[name].add(picture[0])
    return scores, {name: encoder.finish() for name, encoder in encoders.items()}


def summarise(scores: Sequence[FrameScore]) -> dict[str, Any]:
    """Means over the frames with motion, and the share of them on which each method beats copying; NaN if none has."""
    moving = [score for score in scores if score.moving]
    return {
        "frames_with_motion": len(moving),
        "scene_cuts": [score.frame for score in scores if score.cut],
        "mean_occluded_share": _mean([score.occluded_share for score in scores if not score.cut]),
        "mean_psnr": {name: _mean([score.psnr[name] for score in moving]) for name in METHODS},
        "beats_copy_share": {
            name: _mean([float(score.psnr[name] > score.psnr["copy"]) for score in moving]) for name in METHODS[1:]
        },
    }


def time_kernels(pairs: Sequence[Pair], progress: Progress, budget_s: float = 10.0) -> list[KernelTime]:
    """Times ours and the grid_sample path on the same frames, alternating, on one thread, after comparing results.

    Raises:
        WrongResult: they differ by more than a thousandth of the intensity range.
    """
    warp_inputs = [(pair.previous, pair.flow) for pair in pairs]
    blend_inputs = [(pair.previous, pair.flow, pair.occlusion, pair.previous) for pair in pairs]
    contests: list[tuple[str, Any, Any, Sequence[tuple[Tensor, ...]]]] = [
        ("flow_warp", flow_warp, grid_sample_warp, warp_inputs),
        ("flow_warp_blend", flow_warp_blend, grid_sample_blend, blend_inputs),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_time(op, ours, peer, inputs, budget_s / 2) for op, ours, peer, inputs in progress(contests, "timing")]
    finally:
        torch.set_num_threads(threads)


def _time(op: str, ours: Any, peer: Any, inputs: Sequence[tuple[Tensor, ...]], budget_s: float) -> KernelTime:
    difference = max((ours(*each) - peer(*each)).abs().max().item() for each in inputs)  # warms both up, too
    if not difference <= 1e-3:
        raise WrongResult(f"{op} and the grid_sample path differ by {difference:.3g}, 0.001 is allowed: please report")
    times: dict[Any, list[float]] = {ours: [], peer: []}
    end = time.perf_counter() + budget_s
    for repeat in range(7):
        for t, each in enumerate(inputs):
            for function in (ours, peer) if (t + repeat) % 2 else (peer, ours):
                start = time.perf_counter()
                function(*each)
                times[function].append((time.perf_counter() - start) * 1e3)
            if time.perf_counter() > end:
                break
    return KernelTime(op, statistics.median(times[ours]), statistics.median(times[peer]), difference)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _error(image: Tensor, true: Tensor) -> Tensor:
    """(1, 3, H, W) absolute error, four times brighter."""
    return ((image - true).abs() * 4).clamp(max=1)


def _tint(image: Tensor, mask: Tensor) -> Tensor:
    """(1, 3, H, W): the image in dim grey, orange where the mask is 1."""
    grey = 0.55 * image.mean(1, keepdim=True).expand_as(image)
    orange = torch.tensor([1.0, 0.6, 0.1]).view(1, 3, 1, 1)
    return torch.lerp(grey, orange.expand_as(image), 0.85 * mask)
