"""Optical flow between two frames, and where it cannot be trusted: occlusions and scene cuts.

Decides the estimator (OpenCV's DIS) and the criteria; warping itself is left to `vgkernels.flow_warp`.
"""

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vgkernels import flow_warp

SMALLEST_SIDE = 12  # pixels: smaller images are refused by DIS


def estimate_flow(target: Tensor, source: Tensor) -> Tensor:
    """Dense Inverse Search flow (Kroeger et al. 2016) with target(p) ~ source(p + flow(p)).

    With the current frame as target and the previous one as source this is the backward flow `flow_warp` takes.

    Args:
        target: (H, W, 3) uint8, RGB, on the CPU.
        source: (H, W, 3) uint8, RGB, on the CPU.

    Returns:
        (1, 2, H, W) float32 in pixels, channel 0 = x, 1 = y.
    """
    import cv2  # optional dependency: here, so that the package imports without it

    estimator: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)  # full resolution: +1 dB after warping carphone, 13 instead of 5 ms a pair
    gray = [cv2.cvtColor(image.numpy(), cv2.COLOR_RGB2GRAY) for image in (target, source)]
    flow = estimator.calc(gray[0], gray[1], None)  # (H, W, 2)
    return torch.from_numpy(flow).permute(2, 0, 1)[None].contiguous()  # (1, 2, H, W)


def occlusion_mask(flow: Tensor, reverse_flow: Tensor) -> Tensor:
    """1 where a pixel has no counterpart in the source, by forward-backward consistency (Sundaram et al. 2010, eq. 5).

    With f = flow(p) and b = reverse_flow(p + f), p is occluded when |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5,
    or when p + f leaves the frame.

    Args:
        flow: (B, 2, H, W), from target to source.
        reverse_flow: (B, 2, H, W), from source to target.

    Returns:
        (B, 1, H, W) of the flow's dtype, 0 or 1.
    """
    returned = flow_warp(reverse_flow, flow)  # (B, 2, H, W): b, the flow of where p came from
    gap = (flow + returned).square().sum(1, keepdim=True)  # (B, 1, H, W)
    length = (flow.square() + returned.square()).sum(1, keepdim=True)  # (B, 1, H, W)
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[:, :1]  # (B, 1, H, W)
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1:]  # (B, 1, H, W)
    left_the_frame = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    return ((gap > 0.01 * length + 0.5) | left_the_frame).to(flow.dtype)


def moves(flow: Tensor) -> bool:
    """Whether the frame has motion: a tenth of its pixels or more move by half a pixel or more."""
    return bool((flow.square().sum(1) >= 0.5**2).float().mean() >= 0.1)


def scene_cuts(frames: Tensor) -> list[bool]:
    """For each of T frames (T, H, W, 3), whether a new scene starts there. Frame 0 is never a cut.

    A cut is a jump in the mean absolute difference to the previous frame: at least 15 of 255, and three times the
    median of the three differences before and after it (repeated frames left out). This is PySceneDetect's adaptive
    rule with the median for the mean. It looks at pixels only, so a frame where the flow fails is not excused by it.
    """
    differences = [(b.float() - a.float()).abs().mean().item() for a, b in itertools.pairwise(frames)]
    return [False] + [_is_jump(differences, t) for t in range(len(differences))]


def _is_jump(differences: Sequence[float], t: int) -> bool:
    around = [*differences[max(0, t - 3) : t], *differences[t + 1 : t + 4]]
    if not around:
        return False  # two frames alone: nothing to compare with
    moving = [difference for difference in around if difference >= 1]
    return differences[t] >= max(15.0, 3 * median(moving) if moving else 0.0)
