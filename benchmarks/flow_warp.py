"""flow_warp and flow_warp_blend beside vid2vid's own path (grid made per call, F.grid_sample) and torch.compile of it.
Only sizes, flows, peers and the least work; how they are checked and timed is the harness's business."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vgkernels
from benchmarks.harness import Case
from benchmarks.measure import Cost
from benchmarks.trial import Compiled

Goals = dict[str, tuple[float, float]]


def flow_field(kind: str, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A seeded flow (B, 2, H, W) in pixels, the same on every device.

    "smooth": three sinusoids of 1 to 3 periods a frame, amplitude 4 px each, so up to 12 px: camera and body motion.
    "rough":  the same plus iid noise of 4 px standard deviation: what no cache and no prefetcher can foresee.
    The fraction of every value is kept 1/32 px away from 0 and 1/2, where the gradient of bilinear sampling and the
    choice of nearest sampling jump: fp32 and fp64 may differ there without either being wrong.
    """
    rng = torch.Generator().manual_seed(seed)
    y = torch.linspace(0, 1, height).view(-1, 1)
    x = torch.linspace(0, 1, width)
    flow = torch.zeros(batch, 2, height, width)
    for plane in flow.view(-1, height, width):
        for _ in range(3):
            periods_x, periods_y = torch.randint(1, 4, (2,), generator=rng).tolist()
            phase = torch.rand((), generator=rng)
            plane += 4 * torch.sin(2 * math.pi * (periods_x * x + periods_y * y + phase))
    if kind == "rough":
        flow += 4 * torch.randn(flow.shape, generator=rng)
    halves = torch.floor(2 * flow)
    return (halves + (2 * flow - halves).clamp(1 / 16, 15 / 16)) / 2


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """(image, flow) or, to blend, (image, flow, mask, new); the flow in fp32 whatever the image is."""
    batch, _, height, width = case.shape
    rng = torch.Generator().manual_seed(1)
    dtype = getattr(torch, case.dtype)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

    def frames() -> Tensor:
        return torch.randn(case.shape, generator=rng).to(device, dtype).contiguous(memory_format=layout)

    image, flow = frames(), flow_field(case.flow, batch, height, width).to(device)
    if case.variant != "blend":
        return image, flow
    return image, flow, torch.rand(batch, 1, height, width, generator=rng).to(device, dtype), frames()


def ours(image: Tensor, flow: Tensor, mask: Tensor | None = None, new: Tensor | None = None, **options: str) -> Tensor:
    if mask is None or new is None:
        return vgkernels.flow_warp(image, flow, **options)
    return vgkernels.flow_warp_blend(image, flow, mask, new, **options)


def eager(
    image: Tensor, flow: Tensor, mask: Tensor | None = None, new: Tensor | None = None, *, mode: str, padding_mode: str
) -> Tensor:
    """vid2vid's `get_grid` and `resample`, then its composite; 16-bit images go through fp32, the only right way."""
    batch, _, height, width = image.shape
    x = torch.linspace(-1.0, 1.0, width, dtype=flow.dtype, device=flow.device).view(1, 1, 1, width)
    y = torch.linspace(-1.0, 1.0, height, dtype=flow.dtype, device=flow.device).view(1, 1, height, 1)
    grid = torch.cat([x.expand(batch, 1, height, width), y.expand(batch, 1, height, width)], 1)
    flow = torch.cat([flow[:, 0:1] / ((width - 1.0) / 2.0), flow[:, 1:2] / ((height - 1.0) / 2.0)], 1)
    grid = (grid + flow).permute(0, 2, 3, 1)
    warped = F.grid_sample(image.to(flow.dtype), grid, mode, padding_mode, align_corners=True).to(image.dtype)
    return warped if mask is None or new is None else (1 - mask) * warped + mask * new


truth = eager  # in fp64, where grid_sample is right: nothing of ours judges ours
PEERS = {"eager": eager, "compile": Compiled(eager)}
BASELINE = "eager"


def cost(case: Case, direction: str) -> Cost:
    """Every tensor crosses memory once (filling with zeros and read-modify-write are not in the least work).

    Forward: image, flow (mask, new) in, out out; 4 taps are 8 flops a value, the composite 3 more.
    Backward: grad_out, image, flow (mask, new) in, a gradient of each out; 4 scattered taps and 4 dot products are
    16 flops a value, the composite 5 more. nearest copies values and adds gradients.
    """
    if direction == "fwd+bwd":
        forward, backward = cost(case, "fwd"), cost(case, "bwd")
        return Cost(forward.bytes + backward.bytes, forward.flops + backward.flops, forward.unit)
    values, blends = math.prod(case.shape), case.variant == "blend"
    size = getattr(torch, case.dtype).itemsize
    image, pixels = values * size, values // case.shape[1]
    given = image + 8 * pixels + (pixels * size + image if blends else 0)  # image, flow, mask, new
    bilinear = case.options["mode"] == "bilinear"
    unit = "float64" if case.dtype == "float64" else "float32"
    if direction == "fwd":
        return Cost(given + image, values * ((8 if bilinear else 0) + (3 if blends else 0)), unit)
    return Cost(2 * given + image, values * ((16 if bilinear else 1) + (5 if blends else 0)), unit)


def tiny(case: Case) -> Case:
    """Odd sizes, few channels: for --check."""
    batch, channels = case.shape[:2]
    return dataclasses.replace(case, shape=(min(batch, 2), min(channels, 19), 23, 37))


def _pair(name: str, shape: tuple[int, ...], goals: Goals | None = None, **more: Any) -> list[Case]:
    """The case under both flows; without `more` it is fp32, contiguous, bilinear, border."""
    options = {"mode": more.pop("mode", "bilinear"), "padding_mode": more.pop("padding_mode", "border")}
    return [Case(name, shape, flow=flow, goals=goals or {}, options=options, **more) for flow in ("smooth", "rough")]


_C64, _C128, _LAST = (1, 64, 256, 512), (1, 128, 256, 512), "channels_last"
_PLAIN: Goals = {"fwd+bwd": (15, 25)}
_BLEND: Goals = {"fwd": (15, 25), "fwd+bwd": (20, 30)}
_NCHW: Goals = {"fwd": (5, 8), "fwd+bwd": (6, 12)}
_NCHW_BLEND: Goals = {"fwd": (7, 10), "fwd+bwd": (8, 14)}
_FRAME: Goals = {"fwd": (4, 8), "fwd+bwd": (3, 5)}

# vid2vid (arXiv 1808.06601) on Cityscapes: frames (C = 3) of 256x512 and 512x1024, feature maps of 64 and 128 channels
# at the coarse scale. Goals: (goal, stretch) against "eager"; everywhere else the goal is to be no slower than a peer.
CASES = [
    *_pair("features C64 256x512 blend", _C64, _BLEND, layout=_LAST, variant="blend"),
    *_pair("features C128 256x512 blend", _C128, _BLEND, layout=_LAST, variant="blend"),
    *_pair("features C64 256x512", _C64, _PLAIN, layout=_LAST),
    *_pair("features C128 256x512", _C128, _PLAIN, layout=_LAST),
    *_pair("features C64 256x512", _C64, _NCHW),
    *_pair("features C64 256x512 blend", _C64, _NCHW_BLEND, variant="blend"),
    *_pair("frame 256x512", (1, 3, 256, 512), _FRAME),
    *_pair("frame 256x512 B2", (2, 3, 256, 512), _FRAME),
    *_pair("frame 512x1024", (1, 3, 512, 1024), _FRAME),
    *_pair("frame 512x1024 B2", (2, 3, 512, 1024), _FRAME),
    *_pair("frame 512x1024 blend", (1, 3, 512, 1024), variant="blend"),
    *_pair("features C64 256x512", _C64, {"fwd": (15, 25)}, layout=_LAST, dtype="bfloat16", directions=("fwd",)),
    *_pair("small C16 32x32", (1, 16, 32, 32)),
    *_pair("small C16 32x32 B16", (16, 16, 32, 32)),
    *_pair("small C3 64x64 B16", (16, 3, 64, 64)),
    *_pair("features C64 256x512 nearest", _C64, mode="nearest"),
    *_pair("features C64 256x512 nearest", _C64, mode="nearest", layout=_LAST),
    *_pair("features C64 256x512 zeros", _C64, padding_mode="zeros"),
    *_pair("features C64 256x512 zeros", _C64, padding_mode="zeros", layout=_LAST),
]

_C64_WIDE = (1, 64, 512, 1024)  # vid2vid's feature maps at the fine scale
CUDA_CASES = [
    *_pair("features C64 512x1024", _C64_WIDE, layout=_LAST, dtype="bfloat16"),
    *_pair("features C64 512x1024", _C64_WIDE, layout=_LAST),
    *_pair("features C64 512x1024", _C64_WIDE),
    *_pair("frame 1024x2048 B8 blend", (8, 3, 1024, 2048), variant="blend"),
]
