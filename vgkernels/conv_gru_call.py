"""A call of conv_gru from its arguments as they come: cast, checked, and given to the kernel or to the reference.

Decides which of the two runs. Shared by the functions and the module, which name themselves in errors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from ._checks import accumulation_dtype, use_native
from .conv_gru_arguments import ALGORITHMS, cast_for_autocast, check_options, check_tensors, checked_lengths
from .conv_gru_autograd import call_native
from .conv_gru_steps import run_steps


def run_conv_gru(
    op: str,
    x: Any,
    h0: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias: Any = None,
    *,
    activation: str = "relu",
    lengths: Any = None,
    reverse: bool = False,
    checkpoint: bool = False,
    algorithm: str = "auto",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """As `conv_gru`, under the name `op`."""
    x, h0, weight_ih, weight_hh, bias = cast_for_autocast(x, h0, weight_ih, weight_hh, bias)
    check_tensors(op, x, h0, weight_ih, weight_hh, bias)
    check_options(op, x, weight_hh, activation, algorithm, reverse=reverse, checkpoint=checkpoint)
    lengths = checked_lengths(op, lengths, x)
    tanh = activation == "tanh"
    # The op would drop tangents without a word.
    unsupported = "forward-mode AD" if forward_ad._current_level >= 0 else None
    if not use_native(op, impl, x.device, unsupported):
        return run_steps(x, h0, weight_ih, weight_hh, bias, lengths, tanh, reverse)
    h0 = None if h0 is None else h0.to(accumulation_dtype(x.dtype))  # out here: autograd casts the gradient back
    number = ALGORITHMS.index(algorithm)
    return call_native(x, h0, weight_ih, weight_hh, bias, lengths, tanh, reverse, checkpoint, number)
