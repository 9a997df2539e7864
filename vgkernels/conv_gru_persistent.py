"""conv_gru's recurrence on CUDA in one launch: what conv_gru_cuda.py calls for the stage "persistent".

Decides which array is passed as what; the kernels are in csrc/conv_gru/conv_gru_persistent*.cu. Not run on a GPU yet.
float16 and bfloat16, 2-D maps, channels in multiples of 32, as many as the device's shared memory holds the weights of:
the op says why where it can't. Channels are innermost: (T, B, H, W, C).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def can_not(x: Tensor, weight_hh: Tensor) -> str | None:
    """Why the kernels are not for such a call, as far as that doesn't depend on the device."""
    if x.dtype in (torch.float16, torch.bfloat16) and x.dim() == 5 and weight_hh.shape[1] % 32 == 0:
        return None
    return (
        "expected float16 or bfloat16, 2-D maps and channels in multiples of 32 for "
        f"VGKERNELS_CONV_GRU_CUDA=persistent, got {x.dtype}, {x.dim() - 3}-D maps and {weight_hh.shape[1]} channels"
    )


def all_steps(
    kernels: Any,
    xg: Tensor,
    h: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor | None,
    tanh: bool,
    reverse: bool,
) -> None:
    """Fills output and gates, (T, 3, B, H, W, C), and makes the last state of h, the first one."""
    kernels.conv_gru_persistent_(xg, h, packed(weight_hh), lengths, output, gates, tanh, reverse)


def all_steps_backward(
    kernels: Any,
    grad_output: Tensor,
    past: Tensor,
    gates: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    grad_h: Tensor,
    grad_rz: Tensor,
    grad_n: Tensor,
    tanh: bool,
    reverse: bool,
) -> None:
    """Fills grad_rz and grad_n, and makes the gradient to the first state of grad_h, that to the last one."""
    weight_hh = packed(weight_hh)
    kernels.conv_gru_persistent_backward_(
        grad_output, past, gates, weight_hh, lengths, grad_h, grad_rz, grad_n, tanh, reverse
    )


def packed(weight: Tensor) -> Tensor:
    weight = weight.contiguous()
    return weight if weight.data_ptr() % 16 == 0 else weight.clone()
