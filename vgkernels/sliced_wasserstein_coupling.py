"""The reference of sliced_wasserstein on batches (B, N, D): matmul, stable sort, quantile coupling, mean.

    W_p^p(s, t) = sum_k w_k |s_(i_k) - t_(j_k)|^p         s_(i), t_(j): in ascending order, the lower index first

Decides where both quantile functions are constant (the segments i_k, j_k, w_k), and what is done at 0 and at NaN:
plain PyTorch, differentiable to any order with the order of the samples held constant.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from ._checks import is_autocast_on


def reference_value(
    x: Tensor, y: Tensor, projections: Tensor | None, x_weights: Tensor | None, y_weights: Tensor | None, p: float
) -> Tensor:
    """(B,) of the samples' dtype, float64 or float32. Arguments as torch.ops.vgkernels.sliced_wasserstein has them."""
    autocast = is_autocast_on(x.device)  # would make the product a 16-bit one
    with torch.autocast(x.device.type, enabled=False) if autocast else contextlib.nullcontext():
        s, t = _projected(x, projections), _projected(y, projections)  # (B, L, N), (B, L, M)
    bad = ~(s.detach().isfinite().all(-1, keepdim=True) & t.detach().isfinite().all(-1, keepdim=True))
    poison = torch.where(bad, math.nan, 1.0)  # for all of a direction: neither Inf - Inf nor the sign of NaN says it
    s, t = s * poison, t * poison
    s, s_order = s.sort(dim=-1, stable=True)
    t, t_order = t.sort(dim=-1, stable=True)
    if x_weights is None or y_weights is None:
        weight, i, j = _uniform_segments(s.shape[-1], t.shape[-1], s.device)
        if i is not None:
            s, t = s[..., i], t[..., j]
    else:
        weight, i, j = _weighted_segments(_at(x_weights, s_order), _at(y_weights, t_order))
        s, t = s.gather(-1, i), t.gather(-1, j)
    difference = s - t
    if isinstance(weight, Tensor) and weight.dim() > 1:  # a sample without weight may be at any distance
        difference = torch.where(weight == 0, 0, difference)
    powers = _power(difference, p)
    total = powers.sum(-1) * weight if isinstance(weight, float) else (powers * weight.to(powers.dtype)).sum(-1)
    return total.mean(-1)


def _projected(samples: Tensor, projections: Tensor | None) -> Tensor:
    """(B, L, N)."""
    if projections is None:
        return samples.mT
    groups = projections.shape[0]
    if groups == 1:
        return projections @ samples.mT
    shape = (groups, samples.shape[0] // groups, *samples.shape[1:])
    return (projections.unsqueeze(1) @ samples.reshape(shape).mT).flatten(0, 1)


def _uniform_segments(n: int, m: int, device: torch.device) -> tuple[float | Tensor, Tensor | None, Tensor | None]:
    """Weight, i and j of n + m segments, some of them empty; of equal numbers of samples, 1 / n and no indices.

    In units of 1 / (n m) the cuts are integers: exact.
    """
    if n == m:
        return 1 / n, None, None
    ends = (torch.arange(1, n + 1, device=device) * m, torch.arange(1, m + 1, device=device) * n)
    cuts = torch.cat(ends).sort()[0]
    width = torch.diff(cuts, prepend=cuts.new_zeros(1))
    return width.double() / (n * m), (cuts - 1) // m, (cuts - 1) // n


def _weighted_segments(x_weights: Tensor, y_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for weights in the order of the samples, each (B, L, N + M); differentiable in them."""
    x_ends, y_ends = x_weights.cumsum(-1), y_weights.cumsum(-1)
    cuts = torch.cat([x_ends, y_ends], -1).sort(-1)[0]
    width = torch.diff(cuts, dim=-1, prepend=torch.zeros_like(cuts[..., :1]))
    i, j = (  # the last end may fall short of 1 by its rounding
        torch.searchsorted(ends.detach(), cuts.detach()).clamp(max=ends.shape[-1] - 1) for ends in (x_ends, y_ends)
    )
    return width, i, j


def _at(weights: Tensor, order: Tensor) -> Tensor:
    return weights.unsqueeze(1).expand(order.shape).gather(-1, order)


def _power(difference: Tensor, p: float) -> Tensor:
    """|difference|^p, whose derivatives of any order are finite at 0, and 0 unless p is even."""
    if p == 1:
        return difference.abs()
    if p % 2 == 0:
        return difference.pow(p)
    some = difference != 0  # NaN too
    return torch.where(some, torch.where(some, difference.abs(), 1).pow(p), 0)
