"""Where a coordinate falls on an axis, for flow_warp's reference: the twin of `locate` in csrc/flow_warp/flow_warp.h.

Decides padding, the modes' weights and their slopes at edges; what is gathered and summed is decided in flow_warp.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_taps(x: Tensor, n: int, mode: str, padding_mode: str) -> list[tuple[Tensor, Tensor]]:
    """The taps of coordinates x on an axis of n samples: an index and a weight each; what is outside counts as 0."""
    if mode == "bicubic":
        x = _folded(x, n) if padding_mode == "reflection" else _inside(x, -3, n + 2, padding_mode == "zeros")
        cell = x.detach().floor()
        t = x - cell
        weights = (_cubic_far(t + 1), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t))
        return [(_padded(cell.long() + i - 1, n, padding_mode), weight) for i, weight in enumerate(weights)]
    if padding_mode == "zeros":
        x = _inside(x, -2, n, True)  # further out, both taps are outside already
    else:
        if padding_mode == "reflection":
            x = torch.where((x >= 0) & (x <= n - 1), x, _mirrored(x, n))
        clamped = _inside(x.detach(), 0, n - 1, False)
        x = torch.where((x > 0) & (x < n - 1), x, clamped)  # no slope at the edge, where clamp() has one
    if mode == "nearest":
        cell = x.detach().round()
        return [(cell.long(), 1 + (x.round() - cell))]  # 1, with a gradient of 0
    cell = x.detach().floor()
    if padding_mode != "zeros":
        cell = cell.clamp(max=max(n - 2, 0))  # both taps inside, fraction up to 1
    fraction = x - cell
    return [(cell.long(), 1 - fraction), (cell.long() + 1, fraction)]


def _inside(x: Tensor, low: int, high: int, nan_low: bool) -> Tensor:
    """x clamped to [low, high], with slope 0 beyond; NaN becomes `low`, or 0."""
    x = torch.where(x.isnan(), low if nan_low else 0, x)
    x = torch.where(x >= low, x, low)
    return torch.where(x <= high, x, high)


def _folded(x: Tensor, n: int) -> Tensor:
    """x modulo the period of a mirror at both end samples, of x's sign; 0 where x is not finite, or n is 1."""
    x = torch.where(x.isfinite(), x, 0)
    return x.fmod(2 * (n - 1)) if n > 1 else x * 0


def _mirrored(x: Tensor, n: int) -> Tensor:
    folded = _folded(x, n).abs()
    return torch.where(folded > n - 1, 2 * (n - 1) - folded, folded)


def _padded(tap: Tensor, n: int, padding_mode: str) -> Tensor:
    if padding_mode == "zeros":
        return tap
    if padding_mode == "reflection" and n > 1:
        tap = tap.abs() % (2 * (n - 1))
        return torch.where(tap > n - 1, 2 * (n - 1) - tap, tap)
    return tap.clamp(0, n - 1)


def _cubic_near(t: Tensor, a: float = -0.75) -> Tensor:
    return ((a + 2) * t - (a + 3)) * t * t + 1


def _cubic_far(t: Tensor, a: float = -0.75) -> Tensor:
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
