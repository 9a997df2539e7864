"""The max-sliced Wasserstein distance: along the direction that tells the samples apart best, found by ascent.

    max over |theta| = 1 of W_p^p(theta . x, theta . y)
    by ascent, theta <- theta + lr g / |g|, made a unit again,   g = d W_p^p / d theta

Source: Deshpande et al., Max-Sliced Wasserstein Distance and its use for GANs, arXiv 1904.05877. Decides the ascent;
the value and its gradients are those of sliced_wasserstein with one direction.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._checks import use_native
from .sliced_wasserstein_arguments import as_entries, check_power, check_samples
from .sliced_wasserstein_coupling import reference_value
from .sliced_wasserstein_entries import value_of_entries, without_kernel
from .sliced_wasserstein_projections import check_count, check_generator, random_projections

_OP = "max_sliced_wasserstein"


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 50,
    lr: float = 1.0,
    p: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """W_p^p along the best direction that `steps` of gradient ascent find from a random one, for each entry its own.

    Args:
        x: (..., N, D), as in `sliced_wasserstein`.
        y: (..., M, D), of the same batch, dtype and device.
        steps: of the ascent; the best direction that it passes counts.
        lr: the length of a step before the direction is made a unit again, whatever the gradient's: large ones take
            the gradient for the direction, as power iteration does.
        p: at least 1.
        generator: of the first directions.

    Returns:
        A scalar of x's dtype: the mean over the batch. A lower bound of the maximum, which is not convex.

    Raises:
        TypeError: as `sliced_wasserstein`; `steps` that is no int, `lr` that is no number.
        ValueError: as `sliced_wasserstein`; steps < 1; an `lr` that is not positive and finite.

    Differentiability: in `x` and `y`, with the direction held constant, which at a maximum is the true derivative.
    Determinism: as `sliced_wasserstein`.

    Source: arXiv 1904.05877.

    Example:
        >>> import torch, vgkernels
        >>> x, y = torch.zeros(2, 2), torch.tensor([[0.0, 3.0], [0.0, 3.0]])
        >>> vgkernels.max_sliced_wasserstein(x, y).round(decimals=4)
        tensor(9.)
    """
    check_samples(_OP, x, y)
    check_power(_OP, p)
    check_count(_OP, "steps", steps)
    check_generator(_OP, generator)
    if isinstance(lr, bool) or not isinstance(lr, int | float):
        raise TypeError(f"{_OP}: expected lr to be a float, got {type(lr).__name__}")
    if not 0 < lr <= sys.float_info.max:
        raise ValueError(f"{_OP}: expected lr > 0 and finite, got {lr}")
    entries = as_entries(x), as_entries(y)
    start = random_projections(
        entries[0].shape[0] or 1, x.shape[-1], generator=generator, dtype=entries[0].dtype, device=x.device
    )
    start, lr = start[: entries[0].shape[0]], float(lr)
    direction = _ascend(entries[0].detach(), entries[1].detach(), start, steps, lr, float(p))
    return value_of_entries(_OP, *entries, direction.unsqueeze(1), p=float(p)).mean().to(x.dtype)


@torch.no_grad()
def _ascend(x: Tensor, y: Tensor, direction: Tensor, steps: int, lr: float, p: float) -> Tensor:
    """(B, D): the best of `steps` directions, of which (B, D) is the first."""
    best, highest = direction, direction.new_full(direction.shape[:1], -1)
    for _ in range(steps):
        value, gradient = _value_and_gradient(x, y, direction.unsqueeze(1), p)
        better = value > highest
        best = torch.where(better.unsqueeze(-1), direction, best)
        highest = torch.where(better, value, highest)
        gradient = gradient.squeeze(1)
        largest = gradient.abs().amax(-1, keepdim=True)  # first: squares would leave the range of float32
        step = torch.nn.functional.normalize(gradient / torch.where(largest > 0, largest, 1), dim=-1)
        direction = torch.nn.functional.normalize(direction / max(lr, 1) + min(lr, 1) * step, dim=-1)
    return best


def _value_and_gradient(x: Tensor, y: Tensor, directions: Tensor, p: float) -> tuple[Any, Any]:
    """The values (B,), and their gradients in the directions (B, 1, D)."""
    if use_native(_OP, "auto", x.device, without_kernel(x, y)):
        needs = (False, False, True)
        value, _, _, gradient = _native.kernels.sliced_wasserstein_gradients(x, y, directions, None, None, p, *needs)
        return value, gradient
    with torch.enable_grad():
        pulled: Any = torch.func.vjp(lambda theta: reference_value(x, y, theta, None, None, p), directions)
        value, pull = pulled
        return value.detach(), pull(torch.ones_like(value))[0].detach()
