"""Optical flow as colour: direction is hue, length is saturation (the Middlebury wheel, Baker et al. 2007).

Decides the wheel and its legend; the scale (which length gets the full colour) is left to the caller.
"""

import math

import torch
from torch import Tensor

# steps between red, yellow, green, cyan, blue, magenta and red again; the channel that changes, and its direction
_SEGMENTS = ((15, 1, +1), (6, 0, -1), (4, 2, +1), (11, 1, -1), (13, 0, +1), (6, 2, -1))


def _wheel() -> Tensor:
    """(55, 3) colours in 0..255, from red over yellow, green, cyan, blue and magenta back towards red."""
    colours, colour = [], torch.tensor([255.0, 0.0, 0.0])
    for steps, channel, direction in _SEGMENTS:
        for step in range(steps):
            ramp = float(255 * step // steps)
            colour[channel] = ramp if direction > 0 else 255 - ramp
            colours.append(colour.clone())
        colour[channel] = 255.0 if direction > 0 else 0.0
    return torch.stack(colours)


def flow_to_color(flow: Tensor, max_flow: float | None = None) -> Tensor:
    """Colours (..., 2, H, W) flow: white is no motion, full colour is `max_flow` pixels, darker is beyond.

    Args:
        flow: pixels, channel 0 = x (right), 1 = y (down).
        max_flow: length of the full colour; the longest vector by default.

    Returns:
        (..., 3, H, W) uint8.
    """
    if max_flow is None:
        max_flow = float(flow.square().sum(-3).max().sqrt()) if flow.numel() else 0.0
    x, y = (flow / (max_flow + 1e-5)).unbind(-3)
    radius = (x.square() + y.square()).sqrt().unsqueeze(-1)  # (..., H, W, 1)
    wheel = _wheel().to(flow.device) / 255
    position = (torch.atan2(-y, -x) / math.pi + 1) / 2 * (len(wheel) - 1)
    low = position.floor().long()
    fraction = (position - low).unsqueeze(-1)  # (..., H, W, 1)
    hue = (1 - fraction) * wheel[low] + fraction * wheel[(low + 1) % len(wheel)]  # (..., H, W, 3)
    colour = torch.where(radius <= 1, 1 - radius * (1 - hue), 0.75 * hue)
    return (255 * colour).floor().byte().movedim(-1, -3)


def legend_disc(size: int = 96) -> Tensor:
    """The wheel as a disc whose rim is the full colour: (4, size, size) uint8, transparent outside."""
    axis = torch.linspace(-1.03, 1.03, size)
    flow = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # (2, size, size): every pixel shows its own offset
    radius = flow.square().sum(0, keepdim=True).sqrt()  # (1, size, size)
    opacity = ((1.03 - radius) * size / 2.06 + 0.5).clamp(0, 1)  # (1, size, size): a soft rim, one pixel wide
    colour = flow_to_color(flow / radius.clamp(min=1), max_flow=1.0)
    return torch.cat([colour, (255 * opacity).byte()])
