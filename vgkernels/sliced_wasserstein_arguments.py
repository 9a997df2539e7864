"""What functions on two sets of samples take: x (..., N, D), y (..., M, D) and a power p; one entry a batch index.

Decides what is refused and in which dtype entries are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulation_dtype, check_not_empty, check_same_device, check_same_dtype, check_tensor


def check_samples(op: str, x: Any, y: Any) -> None:
    """Refuses what are not samples (..., N, D) and (..., M, D) of one batch, dtype and device."""
    check_tensor(op, "x", x)
    check_tensor(op, "y", y)
    check_same_dtype(op, "y", y, "x", x)
    check_same_device(op, "y", y, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{op}: expected x of shape (..., N, D), got {tuple(x.shape)}")
    if x.dim() != y.dim() or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{op}: expected y of shape (..., M, D) = ({', '.join(map(str, (*x.shape[:-2], 'M', x.shape[-1])))}), "
            f"got {tuple(y.shape)}"
        )
    check_not_empty(op, "x", x, {"N": x.shape[-2], "D": x.shape[-1]})
    check_not_empty(op, "y", y, {"M": y.shape[-2]})


def check_power(op: str, p: Any) -> None:
    """TypeError unless `p` is a number, ValueError unless it is finite and at least 1."""
    if isinstance(p, bool) or not isinstance(p, int | float | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{op}: expected p to be a float, got {type(p).__name__}")
    if not 1 <= p <= 1e30:
        raise ValueError(f"{op}: expected p >= 1 and finite, got {p}; the largest is 1e30")


def as_entries(samples: Tensor) -> Tensor:
    """(B, N, D) in the accumulation dtype. Cast out here: autograd casts the gradient back."""
    samples = samples.to(accumulation_dtype(samples.dtype))
    if samples.dim() == 3:
        return samples
    return samples.unsqueeze(0) if samples.dim() == 2 else samples.flatten(0, -3)
