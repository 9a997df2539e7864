"""The weights of conv_gru from three convolutions over concatenated channels, as papers and checkpoints have them.

Decides how those are split; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import FLOATING, check_same_device, check_same_dtype, check_tensor


def pack_conv_gru_weights(
    reset: Tensor, update: Tensor, candidate: Tensor, *, order: Sequence[str] = ("hx", "hx", "xh")
) -> tuple[Tensor, Tensor]:
    """`conv_gru`'s (weight_ih, weight_hh) from the weights of one convolution for each gate, over [h; x] or [x; h].

    Args:
        reset: (C, Cin + C, k, k[, k]), the weight of r's convolution.
        update: the same for z; where a model writes h = (1 - z) . h + z . n, give it negated, and its bias.
        candidate: the same for n.
        order: for each of the three whether the state comes first on the channels, "hx", or the input, "xh". The
            default is DVD-GAN's: [h; x] for both gates, [x; r . h] for the candidate.

    Returns:
        weight_ih (3C, Cin, k, k[, k]) and weight_hh (3C, C, k, k[, k]), copies, differentiable. The bias is
        `torch.cat` of the three (C,).

    Raises:
        TypeError: not a tensor, of an integer, complex or other dtype, of two dtypes.
        ValueError: shapes, devices or orders that don't fit.

    A spectral norm is taken of each gate's whole (C, Cin + C) convolution, as DVD-GAN does, and the result split: leave
    the parametrization on the three convolutions and pack `convolution.weight` at each call.

    Source: DVD-GAN (arXiv 1907.06571), appendix A.2.

    Example:
        >>> import torch, vgkernels
        >>> r, z, n = (torch.nn.Conv2d(4 + 8, 8, 3, padding=1) for _ in "rzn")  # over 8 channels of h and 4 of x
        >>> weights = vgkernels.pack_conv_gru_weights(r.weight, z.weight, n.weight)
        >>> [tuple(weight.shape) for weight in weights]
        [(24, 4, 3, 3), (24, 8, 3, 3)]
        >>> bias = torch.cat([r.bias, z.bias, n.bias])
        >>> output, h_T = vgkernels.conv_gru(torch.randn(5, 2, 4, 6, 6), None, *weights, bias)
    """
    op = "pack_conv_gru_weights"
    _check_order(op, order)
    gates = {"reset": reset, "update": update, "candidate": candidate}
    for name, weight in gates.items():
        check_tensor(op, name, weight, FLOATING)
        check_same_dtype(op, name, weight, "reset", reset)
        check_same_device(op, name, weight, "reset", reset)
        if weight.dim() not in (4, 5) or weight.shape[1] <= weight.shape[0]:
            raise ValueError(
                f"{op}: expected {name} of shape (C, Cin + C, k, k) or (C, Cin + C, k, k, k), got {tuple(weight.shape)}"
            )
        if weight.shape != reset.shape:
            raise ValueError(f"{op}: expected {name} of reset's shape {tuple(reset.shape)}, got {tuple(weight.shape)}")
    channels = reset.shape[0]
    of_x, of_h = [], []
    for weight, first in zip(gates.values(), order, strict=True):
        at = channels if first == "hx" else weight.shape[1] - channels
        halves = weight[:, :at], weight[:, at:]
        of_h.append(halves[first.index("h")])
        of_x.append(halves[first.index("x")])
    return torch.cat(of_x), torch.cat(of_h)


def _check_order(op: str, order: Any) -> None:
    right = isinstance(order, Sequence) and not isinstance(order, str) and len(order) == 3
    if not right or any(each not in ("hx", "xh") for each in order):
        raise ValueError(f"{op}: expected order to be three of 'hx' and 'xh', got {order!r}")
