"""The recurrence of conv_gru in plain PyTorch, step by step: the fallback, the tests' oracle, the second derivative.

Decides in which order and dtype the reference computes; the equations are in conv_gru.py, the checks in
conv_gru_arguments.py.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import accumulation_dtype, is_autocast_on


def run_steps(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    tanh: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(output, h_T), all in the accumulation dtype, output rounded once to x's dtype."""
    # Arguments that were cast already must not be rounded again, neither here nor in derivatives of what is done here.
    with torch.autocast(x.device.type, enabled=False) if is_autocast_on(x.device) else nullcontext():
        return _run_steps(x, h0, weight_ih, weight_hh, bias, lengths, tanh, reverse)


def _run_steps(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    tanh: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    accumulation, channels, radius = accumulation_dtype(x.dtype), weight_hh.shape[1], weight_hh.shape[-1] // 2
    weight_ih, weight_hh = weight_ih.to(accumulation), weight_hh.to(accumulation)
    bias = None if bias is None else bias.to(accumulation)
    w_r, w_z, w_n = weight_hh.chunk(3)
    conv = F.conv2d if x.dim() == 5 else F.conv3d
    act = torch.tanh if tanh else torch.relu
    h = x.new_zeros(()) if h0 is None else h0
    h = h.to(accumulation).expand(x.shape[1], channels, *x.shape[3:]).clone()  # never h0 itself, not even for T = 0
    states: list[Tensor] = []
    for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
        x_t = x[t].to(accumulation)
        goes_on = None if lengths is None else (t < lengths).view(-1, *[1] * (x.dim() - 2))
        if goes_on is not None:
            x_t = torch.where(goes_on, x_t, 0)  # NaN past a clip's end must not reach the weights' gradients
        x_r, x_z, x_n = conv(x_t, weight_ih, bias, padding=radius).chunk(3, 1)

        r = torch.sigmoid(x_r + conv(h, w_r, padding=radius))
        z = torch.sigmoid(x_z + conv(h, w_z, padding=radius))
        n = act(x_n + conv(r * h, w_n, padding=radius))
        new = z * h + (1 - z) * n

        h = new if goes_on is None else torch.where(goes_on, new, h)
        states.append(h)
    if not states:  # sums of nothing, that autograd gives gradients of 0 to
        nothing = sum(tensor[:0].sum() for tensor in (x, weight_ih, weight_hh, bias) if tensor is not None)
        return (x.new_zeros((0, *h.shape)) + nothing).to(x.dtype), h + nothing
    return torch.stack(states[::-1] if reverse else states).to(x.dtype), h
