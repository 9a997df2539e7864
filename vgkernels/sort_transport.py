"""The exact optimal transport map in one dimension, column by column: the k-th smallest goes to the k-th smallest.

    T(s_(i)) = t((i + 1/2) / N),   t: the target's order statistics, t_(j) at (j + 1/2) / M, linear in between

Source: Wu, Huang et al., Sliced Wasserstein Generative Models, arXiv 1706.02631, algorithm 1, whose histograms it
replaces. Decides the map and the gradient that the source gets in place of the true one, which is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._checks import (
    accumulation_dtype,
    check_not_empty,
    check_option,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from ._forked import one_thread_in_forked_child

_LARGEST_SLOPE = 5.0


def sort_transport(source: Tensor, target: Tensor, *, source_gradient: str = "slope") -> Tensor:
    """Moves each column of `source` to the values of that column of `target`, in order. Plain PyTorch.

    Args:
        source: (N, L), float64, float32, float16 or bfloat16.
        target: (M, L), of the same dtype and device. M = N takes its values as they are, otherwise they are
            interpolated at (i + 1/2) / N, and beyond the first and last constant.
        source_gradient: "slope", that of the piecewise linear map through the samples: (t_(i+1) - t_(i-1)) /
            (s_(i+1) - s_(i-1) + 1e-6), clamped to 0..5, at both ends with the end itself in place of the neighbour
            that is missing. "none", the true one, which is 0 and would starve an encoder.

    Returns:
        (N, L) of source's dtype, row i the image of source's row i. Equal samples keep their order.

    Raises:
        TypeError: not a tensor, of an integer, complex or other dtype, of two dtypes.
        ValueError: shapes, devices or options that don't fit; N, M or L of 0.

    Arithmetic: float64 for float64, otherwise float32, rounded once. NaN counts as larger than all.

    Differentiability: in `target` as a gather is, any number of times; in `source` as said above, whose slope counts as
    a constant.

    Source: SWGAN (arXiv 1706.02631); the slope is ours.

    Example:
        >>> import torch, vgkernels
        >>> source, target = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[10.0], [30.0], [20.0]])
        >>> vgkernels.sort_transport(source, target)
        tensor([[30.],
                [10.],
                [20.]])
    """
    op = "sort_transport"
    check_tensor(op, "source", source)
    check_tensor(op, "target", target)
    check_option(op, "source_gradient", source_gradient, ("slope", "none"))
    sizes: dict[str, int] = {}
    check_shape(op, "source", source, "N L", sizes)
    check_shape(op, "target", target, "M L", sizes)
    check_same_dtype(op, "target", target, "source", source)
    check_same_device(op, "target", target, "source", source)
    check_not_empty(op, "source", source, {"N": sizes["N"], "L": sizes["L"]})
    check_not_empty(op, "target", target, {"M": sizes["M"]})
    dtype, wide = source.dtype, accumulation_dtype(source.dtype)
    source, target = source.to(wide), target.to(wide)
    ordered, order = source.detach().sort(dim=0, stable=True)
    images = _order_statistics(target, sizes["N"])
    ranks = order.argsort(dim=0)
    moved = images.gather(0, ranks)
    slopes = _slopes(ordered, images.detach()) if source_gradient == "slope" else torch.zeros_like(ordered)
    slopes = slopes.gather(0, ranks)
    if forward_ad._current_level >= 0:  # a Function with a jvp of its own could not be compiled
        return (moved + slopes * (source - source.detach())).to(dtype)
    return _WithSlope.apply(moved, source, slopes).to(dtype)


def _order_statistics(target: Tensor, count: int) -> Tensor:
    """(count, L): of target's distribution, at (i + 1/2) / count."""
    ordered, m = target.sort(dim=0, stable=True)[0], target.shape[0]
    if m == count:
        return ordered
    twice = (2 * torch.arange(count, device=target.device) + 1) * m - count  # of place i, in units of 1 / (2 count)
    place = twice.clamp(0, 2 * count * (m - 1))
    below = place // (2 * count)
    share = ((place - below * (2 * count)).double() / (2 * count)).to(target.dtype).unsqueeze(1)
    low, high = ordered[below], ordered[(below + 1).clamp(max=m - 1)]
    exact = (share == 0) | (low.isinf() & (low == high))
    return torch.where(exact, low, low * (1 - share) + high * share)


def _slopes(source: Tensor, images: Tensor) -> Tensor:
    """Of the map at each of its sorted samples."""
    last = source.shape[0] - 1
    places = torch.arange(last + 1, device=source.device)
    above, below = (places + 1).clamp(max=last), (places - 1).clamp(min=0)
    rise, run = images[above] - images[below], source[above] - source[below]
    return (rise / (run + 1e-6)).clamp(0, _LARGEST_SLOPE)


class _WithSlope(torch.autograd.Function):
    """`moved`, whose derivative in `source` counts as `slope`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(moved: Tensor, source: Tensor, slope: Tensor) -> Tensor:
        return moved.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        one_thread_in_forked_child()
        (slope,) = ctx.saved_tensors
        return grad if ctx.needs_input_grad[0] else None, grad * slope if ctx.needs_input_grad[1] else None, None
