"""The loop over time of conv_gru on CUDA: which convolutions and which kernels a call launches, in which order.

Decides nothing about the arithmetic of the gates (csrc/conv_gru/conv_gru_gates_cuda.h). Three stages, the same algebra:

- "library": the recurrent convolutions by torch (cuDNN), each followed by a kernel of ours that does everything up to
  the next convolution. Any dtype, any channels, maps and volumes. In float32 cuDNN takes 11 bits of each number unless
  torch.backends.cudnn.allow_tf32 is False.
- "gemm": convolution and gates in one kernel on the tensor cores; float16 and bfloat16, channels in multiples of 8.
- "persistent": all steps in one kernel (conv_gru_persistent.py says which calls).

All take the input's convolution, bias and all, and the gradients to weights and input over all steps at once. Nothing
here waits for the device or depends on its data, so that a CUDA graph can capture a call; `lengths` is read by the
kernels. Inside, channels are innermost: (T, B, [D,] H, W, C), a torch tensor in channels_last; results are
contiguous, as the CPU's are. No step allocates but torch's convolutions.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native, conv_gru_persistent
from ._checks import accumulation_dtype
from .conv_gru_arguments import check_call, check_kept, kept_channels

STAGES = ("library", "gemm", "persistent")
PACKED_COLUMNS = 128  # kPackedColumns in csrc/conv_gru/conv_gru_cuda.h


def stage(x: Tensor, weight_hh: Tensor) -> str:
    """The stage that runs: "library", unless VGKERNELS_CONV_GRU_CUDA asks for one that can take the call.

    Raises:
        ValueError: it asks for one that can't, or for one that there is not.
    """
    wanted = os.environ.get("VGKERNELS_CONV_GRU_CUDA") or "library"  # no other one has run on a GPU yet
    if wanted not in STAGES:
        raise ValueError(f"conv_gru: expected VGKERNELS_CONV_GRU_CUDA to be one of {', '.join(STAGES)}, got {wanted}")
    if wanted == "persistent" and (why := conv_gru_persistent.can_not(x, weight_hh)):
        raise ValueError(f"conv_gru: {why}")
    channels = weight_hh.shape[1]
    if wanted == "gemm" and (x.dtype not in (torch.float16, torch.bfloat16) or channels % 8):
        raise ValueError(
            "conv_gru: expected float16 or bfloat16 and channels in multiples of 8 for VGKERNELS_CONV_GRU_CUDA=gemm, "
            f"got {x.dtype} and {channels} channels"
        )
    return wanted


# ---- layout and convolutions: maps are (B, [D,] H, W, C), weights (outputs, inputs, [k,] k, k) ----


def inner(maps: Tensor, channels: int) -> Tensor:
    """Channels from dim `channels` to the end; packed, and aligned as the kernels' vectors want it."""
    packed = maps.movedim(channels, -1).contiguous()
    return packed if packed.data_ptr() % 16 == 0 else packed.clone()


def channels_last(weight: Tensor) -> Tensor:
    return weight.movedim(1, -1).contiguous().movedim(-1, 1)


def convolve(maps: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    dims = weight.dim() - 2
    ones, zeros, padding = [1] * dims, [0] * dims, [weight.shape[-1] // 2] * dims
    convolution = torch.ops.aten.convolution.default
    return inner(convolution(maps.movedim(-1, 1), weight, bias, ones, padding, ones, transposed, zeros, 1), 1)


def convolve_backward(grad: Tensor, maps: Tensor, weight: Tensor, need_maps: bool, need_weight: bool) -> Any:
    """The gradients to maps and weight over all of (T, B, ...), None where not asked for."""
    dims = weight.dim() - 2
    ones, zeros, padding = [1] * dims, [0] * dims, [weight.shape[-1] // 2] * dims
    grad, maps = (array.flatten(0, 1).movedim(-1, 1) for array in (grad, maps))
    backward = torch.ops.aten.convolution_backward.default
    mask = [need_maps, need_weight, False]
    return backward(grad, maps, weight, None, ones, padding, ones, False, zeros, 1, mask)[:2]


class Library:
    """Products by torch's convolutions, done before the kernel that applies the gates."""

    def prepare(self, weight: Tensor, maps: int, transposed: bool = False) -> Any:
        return channels_last(weight), None, transposed

    def product(self, array: Tensor, prepared: Any) -> tuple[Tensor, None]:
        return convolve(array, *prepared), None


class Gemm:
    """Products by the kernel that applies the gates."""

    def prepare(self, weight: Tensor, maps: int, transposed: bool = False) -> Any:
        if transposed:
            weight = weight.transpose(0, 1).flip(tuple(range(2, weight.dim())))
        return pack(weight, maps)

    def product(self, array: Tensor, prepared: Any) -> tuple[Tensor, Tensor]:
        return array, prepared


def pack(weight: Tensor, maps: int) -> Tensor:
    """(maps C, Cin, [k,] k, k) to (columns, [k,] k, k, Cin), in the order that conv_gru_cuda.h says."""
    rows = weight.movedim(1, -1)
    channels, taps = rows.shape[0] // maps, rows.shape[1:]
    groups = -(-channels // 16)
    padded = weight.new_zeros(maps, groups * 16, *taps)
    padded[:, :channels] = rows.unflatten(0, (maps, channels))
    count = maps * groups * 16
    packed = weight.new_zeros(-(-count // PACKED_COLUMNS) * PACKED_COLUMNS, *taps)
    ordered = padded.view(maps, groups, 4, 2, 2, -1).permute(1, 0, 3, 2, 4, 5)  # groups, maps, j, t, b
    packed[:count] = ordered.reshape(count, *taps)
    return packed


# ---- the recurrence ----


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without autocast, which would change the dtypes of the convolutions inside."""

    @functools.wraps(function)
    def run(first: Tensor, *others: Any, **named: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others, **named)

    return run


def before_the_ends(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x, and 0 past each clip's end: what is there counts for nothing, not even where it is NaN."""
    if lengths is None:
        return x
    live = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths
    return torch.where(live[(...,) + (None,) * (x.dim() - 2)], x, 0)


@plain
def forward(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    packed: Tensor | None,
    tanh: bool,
    reverse: bool,
    keep_gates: bool,
    algorithm: int,
    kernels: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op conv_gru; `packed` and `algorithm` are the CPU's.

    kernels: whose conv_gru_reset_update_ and conv_gru_candidate_ run; by default those in use.
    """
    check_call("conv_gru", x, h0, weight_ih, weight_hh, bias, lengths, algorithm)
    kernels = kernels or _native.kernels
    running = stage(x, weight_hh)
    engine = Library() if running == "library" else Gemm()
    (steps, batch), size, channels = x.shape[:2], x.shape[3:], weight_hh.shape[1]
    h = x.new_zeros(batch, *size, channels, dtype=accumulation_dtype(x.dtype))
    if h0 is not None:
        h.copy_(h0.movedim(1, -1))
    output = x.new_empty(steps, batch, *size, channels)
    padded = kept_channels(channels)  # the kernels write no padding
    made = x.new_empty if padded == channels else x.new_zeros
    gates = made(steps if keep_gates else min(steps, 1), 3, batch, *size, padded)
    if steps:
        lengths = None if lengths is None else lengths.contiguous()
        x = before_the_ends(x, lengths)
        xg = convolve(inner(x, 2).flatten(0, 1), channels_last(weight_ih), bias).unflatten(0, (steps, batch))
        if running == "persistent":
            kept = gates if keep_gates else None
            conv_gru_persistent.all_steps(kernels, xg, h, weight_hh, lengths, output, kept, tanh, reverse)
        else:
            all_steps(engine, kernels, xg, h, weight_hh, lengths, output, gates, keep_gates, tanh, reverse)
    kept = gates.flatten(3, -2) if keep_gates else x.new_empty(0)
    return output.movedim(-1, 2).contiguous(), h.movedim(-1, 1).contiguous(), kept


def all_steps(
    engine: Library | Gemm,
    kernels: Any,
    xg: Tensor,
    h: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    keep_gates: bool,
    tanh: bool,
    reverse: bool,
) -> None:
    """Fills output and gates, and makes the last state of h, the first one: two products and two kernels a step."""
    channels = h.shape[-1]
    rz = engine.prepare(weight_hh[: 2 * channels], 2)
    candidate = engine.prepare(weight_hh[2 * channels :], 1)
    past, rh, inputs, outputs = h.to(output.dtype), torch.empty_like(output[0]), xg.unbind(), output.unbind()
    for t in in_order(len(outputs), reverse):
        r, z, n = gates[t if keep_gates else 0].unbind()
        kept_r, kept_n = (r, n) if keep_gates else (None, None)
        kernels.conv_gru_reset_update_(*engine.product(past, rz), inputs[t], past, rh, kept_r, z)
        kernels.conv_gru_candidate_(
            *engine.product(rh, candidate), inputs[t], z, h, outputs[t], kept_n, lengths, t, tanh
        )
        past = outputs[t]


def in_order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


@plain
def backward(
    grad_output: Tensor,
    grad_h_T: Tensor,
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor | None,
    tanh: bool,
    reverse: bool,
    algorithm: int,
    need_x: bool,
    need_h0: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_bias: bool,
    kernels: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op conv_gru_backward. Without gates they are computed again, over all steps at once: h is known."""
    check_call("conv_gru_backward", x, h0, weight_ih, weight_hh, bias, lengths, algorithm)
    check_kept("conv_gru_backward", x, weight_hh, grad_output, grad_h_T, output, gates)
    kernels = kernels or _native.kernels
    running = stage(x, weight_hh)
    engine = Library() if running == "library" else Gemm()
    (steps, batch), size, channels = x.shape[:2], x.shape[3:], weight_hh.shape[1]
    grad_h = x.new_empty(batch, *size, channels, dtype=accumulation_dtype(x.dtype)).copy_(grad_h_T.movedim(1, -1))
    if steps == 0:
        return (
            torch.zeros_like(x),
            grad_h.movedim(-1, 1),
            torch.zeros_like(weight_ih),
            torch.zeros_like(weight_hh),
            weight_ih.new_zeros(3 * channels),
        )
    lengths = None if lengths is None else lengths.contiguous()
    inputs, past = inner(before_the_ends(x, lengths), 2), before(inner(output, 2), h0, reverse)
    rh = torch.empty_like(past)
    if gates is None:
        r, z, n = gates_again(engine, kernels, inputs, past, rh, weight_ih, weight_hh, bias, tanh)
    else:
        r, z, n = gates.unflatten(3, size).unbind(1)
        if need_weight_hh:
            torch.mul(r[..., :channels], past, out=rh)

    grads = inner(grad_output, 2)
    grad_rz, grad_n = x.new_empty(steps, batch, *size, 2 * channels), torch.empty_like(past)
    if running == "persistent":
        kept = torch.stack((r, z, n), 1) if gates is None else gates.unflatten(3, size)
        conv_gru_persistent.all_steps_backward(
            kernels, grads, past, kept, weight_hh, lengths, grad_h, grad_rz, grad_n, tanh, reverse
        )
    else:
        steps_of = grads, past, r, z, n, grad_rz, grad_n
        all_steps_backward(engine, kernels, steps_of, grad_h, weight_hh, lengths, need_h0, tanh, reverse)

    grad_x = grad_weight_ih = grad_weight_hh = grad_bias = None
    split = (2 * channels, channels)
    if need_x or need_weight_ih:
        of_gates = zip((grad_rz, grad_n), weight_ih.split(split), strict=True)
        parts = [convolve_backward(grad, inputs, channels_last(w), need_x, need_weight_ih) for grad, w in of_gates]
        grad_x = (parts[0][0] + parts[1][0]).unflatten(0, (steps, batch)) if need_x else None
        grad_weight_ih = torch.cat([part[1] for part in parts]) if need_weight_ih else None
    if need_weight_hh:
        arrays = zip((grad_rz, grad_n), (past, rh), weight_hh.split(split), strict=True)
        grad_weight_hh = torch.cat([convolve_backward(*array, False, True)[1] for array in arrays])
    if need_bias:
        grad_bias = torch.cat([grad.flatten(0, -2).sum(0) for grad in (grad_rz, grad_n)])
    grad_h0 = grad_h.movedim(-1, 1).contiguous() if need_h0 else grad_h.new_empty(0)
    grad_x, grad_weight_ih, grad_weight_hh, grad_bias = (
        x.new_empty(0) if gradient is None else gradient.contiguous()
        for gradient in (grad_x, grad_weight_ih, grad_weight_hh, grad_bias)
    )
    return grad_x, grad_h0, grad_weight_ih, grad_weight_hh, grad_bias


def all_steps_backward(
    engine: Library | Gemm,
    kernels: Any,
    arrays: Sequence[Tensor],
    grad_h: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    need_h0: bool,
    tanh: bool,
    reverse: bool,
) -> None:
    """Makes the gradient to the first state, if needed, of grad_h, that to the last one.

    arrays: grad_output, past, r, z, n of all steps, and grad_rz, grad_n, which are filled.
    """
    grads, pasts, r, z, n, grad_rz, grad_n = (array.unbind() for array in arrays)
    channels = grad_h.shape[-1]
    rz = engine.prepare(weight_hh[: 2 * channels], 1, transposed=True)
    candidate = engine.prepare(weight_hh[2 * channels :], 1, transposed=True)
    product: tuple[Tensor | None, Tensor | None] = (None, None)
    for t in in_order(len(grads), not reverse):
        kernels.conv_gru_candidate_backward_(
            *product, grads[t], pasts[t], z[t], n[t], grad_h, grad_rz[t], grad_n[t], lengths, t, tanh
        )
        kernels.conv_gru_reset_backward_(*engine.product(grad_n[t], candidate), pasts[t], r[t], grad_h, grad_rz[t])
        product = engine.product(grad_rz[t], rz)
    if need_h0:
        kernels.conv_gru_candidate_backward_(*product, None, None, None, None, grad_h, None, None, None, 0, tanh)


def before(output: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    """The state before every step, (T, B, ..., C): the output of the step that ran before it."""
    first = output.new_zeros(1, *output.shape[1:])
    if h0 is not None:
        first[0].copy_(h0.movedim(1, -1))
    return torch.cat([output[1:], first] if reverse else [first, output[:-1]])


def gates_again(
    engine: Library | Gemm,
    kernels: Any,
    inputs: Tensor,
    past: Tensor,
    rh: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    tanh: bool,
) -> Sequence[Tensor]:
    """r, z, n of all steps, (T, B, ..., Cp), and rh filled: as the forward computed them, in two launches."""
    channels = past.shape[-1]
    gates = past.new_empty(3, *past.shape[:-1], kept_channels(channels))
    r, z, n = (gate.flatten(0, 1) for gate in gates)
    xg, past, rh = convolve(inputs.flatten(0, 1), channels_last(weight_ih), bias), past.flatten(0, 1), rh.flatten(0, 1)
    rz = engine.prepare(weight_hh[: 2 * channels], 2)
    candidate = engine.prepare(weight_hh[2 * channels :], 1)
    kernels.conv_gru_reset_update_(*engine.product(past, rz), xg, past, rh, r, z)
    kernels.conv_gru_candidate_(*engine.product(rh, candidate), xg, None, None, None, n, None, 0, tanh)
    return gates.unbind()
