"""How conv_gru reaches the native ops, is differentiated, batched by vmap and traced.

Decides what autograd keeps: inputs, output and the gates of all steps, or without the gates where they are to be
computed again. The second derivative is the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _native, conv_gru_cuda
from ._autograd import needs_function, second_order
from ._checks import accumulation_dtype
from .conv_gru_arguments import check_call, check_kept, result_shapes
from .conv_gru_packing import packed_weights
from .conv_gru_steps import run_steps


def call_native(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    tanh: bool,
    reverse: bool,
    checkpoint: bool,
    algorithm: int,
) -> tuple[Tensor, Tensor]:
    """(output, h_T) of arguments that are checked, h0 in the accumulation dtype."""
    if needs_function(x, h0, weight_ih, weight_hh, bias):
        return _ConvGRU.apply(
            x, h0, weight_ih, weight_hh, bias, lengths, tanh, reverse, not checkpoint, algorithm
        )[:2]  # fmt: skip
    packed = packed_weights(x, weight_ih, weight_hh, algorithm)
    return _native.kernels.conv_gru(
        x, h0, weight_ih, weight_hh, bias, lengths, packed, tanh, reverse, False, algorithm
    )[:2]


# ---- autograd ----


class _ConvGRU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        tanh: bool,
        reverse: bool,
        keep_gates: bool,
        algorithm: int,
    ) -> Any:
        return _native.kernels.conv_gru(
            x, h0, weight_ih, weight_hh, bias, lengths, None, tanh, reverse, keep_gates, algorithm
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        output, _, gates = outputs
        keep_gates = inputs[8]
        ctx.mark_non_differentiable(gates)  # the second derivative goes by the inputs
        if not torch.compiler.is_compiling():  # which can't, and has no need to
            ctx.set_materialize_grads(False)  # else the gates get a gradient: zeros, as large as they are
        ctx.save_for_backward(*inputs[:6], output, gates if keep_gates else None)
        ctx.options = (*inputs[6:8], inputs[9])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_T: Tensor | None, _: Any) -> Any:
        needs = ctx.needs_input_grad[:5]
        tensors = ctx.saved_tensors  # once: non-reentrant checkpoints give them out no second time
        x, output = tensors[0], tensors[6]
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        if grad_h_T is None:
            grad_h_T = output.new_zeros(output.shape[1:], dtype=accumulation_dtype(x.dtype))
        again = needs_function(grad_output, grad_h_T, *tensors)
        gradients = (_ConvGRUBackward.apply if again else _ConvGRUBackward.forward)(
            grad_output, grad_h_T, *tensors, *ctx.options, *needs
        )
        return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *[None] * 5


class _ConvGRUBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
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
    ) -> Any:
        needs = (need_x, need_h0, need_weight_ih, need_weight_hh, need_bias)
        return _native.kernels.conv_gru_backward(
            grad_output, grad_h_T, x, h0, weight_ih, weight_hh, bias, lengths, output, gates,
            tanh, reverse, algorithm, *needs,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:8])
        ctx.options, ctx.needs = inputs[10:12], inputs[13:]

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor) -> Any:
        grad_output, grad_h_T, *tensors, lengths = ctx.saved_tensors
        tanh, reverse = ctx.options
        gradients = second_order(
            lambda x, h0, weight_ih, weight_hh, bias: run_steps(
                x, h0, weight_ih, weight_hh, bias, lengths, tanh, reverse
            ),
            tensors,
            ctx.needs,
            (grad_output, grad_h_T),
            grad_grads,
            ctx.needs_input_grad[:7],
        )
        return *gradients, *[None] * 11


# ---- vmap ----


def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    op, size = _native.kernels.conv_gru, info.batch_size
    if any(dim is not None for dim in in_dims[2:5]):
        return _one_by_one(op, size, in_dims, args)
    x, h0, weight_ih, weight_hh, bias, lengths, packed, *options = args
    clips = x.shape[1 if in_dims[0] is None or in_dims[0] > 1 else 2]
    outputs = op(
        _fold(x, in_dims[0], size, 1),
        _fold(h0, in_dims[1], size, 0),
        weight_ih,
        weight_hh,
        bias,
        _fold(lengths, in_dims[5], size, 0),
        packed,
        *options,
    )
    return _unfolded(outputs, (1, 0, 2), size, clips)


def _backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    op, size = _native.kernels.conv_gru_backward, info.batch_size
    need_weights = any(args[15:18])  # those have a gradient for each index of the new dim
    if need_weights or any(dim is not None for dim in in_dims[4:7]):
        return _one_by_one(op, size, in_dims, args)
    batch = (1, 0, 1, 0, None, None, None, 0, 1, 2)  # where the op's batch is
    folded = [
        arg if to is None else _fold(arg, dim, size, to)
        for arg, dim, to in zip(args[:10], in_dims[:10], batch, strict=True)
    ]
    clips = args[0].shape[1 if in_dims[0] is None or in_dims[0] > 1 else 2]
    return _unfolded(op(*folded, *args[10:]), (1, 0, 0, 0, 0), size, clips)


def _one_by_one(op: Callable[..., Any], size: int, in_dims: tuple[int | None, ...], args: Any) -> tuple[Any, Any]:
    if size == 0:
        shapes = op(*(arg if dim is None else arg.new_zeros(_without(arg, dim)) for arg, dim in
                      zip(args, in_dims, strict=True)))  # fmt: skip
        return tuple(out.new_empty((0, *out.shape)) for out in shapes), (0,) * len(shapes)
    each = [
        op(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)))
        for i in range(size)
    ]
    return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0,) * len(each[0])


def _without(tensor: Tensor, dim: int) -> list[int]:
    return [size for i, size in enumerate(tensor.shape) if i != dim]


def _fold(tensor: Tensor | None, dim: int | None, size: int, to: int) -> Tensor | None:
    """The new dim folded into dim `to` of a tensor, which is repeated where it has no new dim."""
    if tensor is None:
        return None
    if dim is None:
        shape = list(tensor.shape)
        return tensor.unsqueeze(to).expand(*shape[:to], size, *shape[to:]).flatten(to, to + 1)
    return tensor.movedim(dim, to).flatten(to, to + 1)


def _unfolded(outputs: Any, dims: tuple[int, ...], size: int, clips: int) -> tuple[Any, Any]:
    """The way back; an output of shape (0,), which nobody asked for, stays as it is."""
    found = [None if output.shape == (0,) else dim for output, dim in zip(outputs, dims, strict=True)]
    return tuple(
        output if dim is None else output.unflatten(dim, (size, clips))
        for output, dim in zip(outputs, found, strict=True)
    ), tuple(found)


# ---- registration, on the ops that the native library defines ----


def _forward_fake(
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
) -> tuple[Tensor, Tensor, Tensor]:
    check_call("conv_gru", x, h0, weight_ih, weight_hh, bias, lengths, algorithm)
    output, h_T, gates = result_shapes(x, weight_hh)
    return (
        x.new_empty(output),
        x.new_empty(h_T, dtype=accumulation_dtype(x.dtype)),
        x.new_empty(gates if keep_gates else 0),
    )


def _backward_fake(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    op = "conv_gru_backward"
    check_call(op, x, h0, weight_ih, weight_hh, bias, lengths, algorithm)
    check_kept(op, x, weight_hh, grad_output, grad_h_T, output, gates)
    return (
        x.new_empty(x.shape if need_x else 0),
        grad_h_T.new_empty(grad_h_T.shape if need_h0 else 0),
        x.new_empty(weight_ih.shape if need_weight_ih else 0),
        x.new_empty(weight_hh.shape if need_weight_hh else 0),
        x.new_empty(weight_hh.shape[0] if need_bias else 0),
    )


def register(namespace: str, cuda: str | None) -> None:
    """Gives the ops of a loaded library their fake and vmap rules.

    cuda: the dispatch key under which its CUDA kernels are, out of which the ops are put together here; None: they are
        in the library.
    """
    torch.library.register_fake(f"{namespace}::conv_gru", _forward_fake)
    torch.library.register_fake(f"{namespace}::conv_gru_backward", _backward_fake)
    torch.library.register_vmap(f"{namespace}::conv_gru", _forward_vmap)
    torch.library.register_vmap(f"{namespace}::conv_gru_backward", _backward_vmap)
    if cuda:
        torch.library.impl(f"{namespace}::conv_gru", cuda, conv_gru_cuda.forward)
        torch.library.impl(f"{namespace}::conv_gru_backward", cuda, conv_gru_cuda.backward)


_native.native_status()  # the libraries are loaded from here on
if hasattr(torch.ops.vgkernels, "conv_gru"):
    register("vgkernels", "cuda" if _native.native_status().cuda_loaded else None)
