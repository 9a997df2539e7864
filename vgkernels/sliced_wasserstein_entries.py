"""The sliced Wasserstein distance of each batch entry: native or reference, and how it is differentiated.

Decides which kernel runs and what autograd keeps: gradients come with the value, in one pass, as long as the samples
themselves, so the backward only scales them. Shared by all that is built on the distance; the public function, its
checks and its reductions are in sliced_wasserstein.py, the reference's arithmetic in sliced_wasserstein_coupling.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native
from ._autograd import needs_function, register_batched, second_order
from ._checks import check_not_empty, check_same_device, check_same_dtype, check_shape, check_tensor, use_native
from .sliced_wasserstein_coupling import reference_value


def value_of_entries(
    op: str,
    x: Tensor,
    y: Tensor,
    projections: Tensor | None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    p: float = 2.0,
    impl: str = "auto",
) -> Tensor:
    """(B,): mean over L directions of W_p^p, for x (B, N, D) and y (B, M, D) of one dtype, float64 or float32.

    Args:
        op: for errors and warnings.
        x: (B, N, D).
        y: (B, M, D).
        projections: (G, L, D), entry b of the batch takes b // (B // G); None: x and y are projected already, D == L.
        x_weights: (B, N) in float64, each row of sum 1. Both sides have weights or neither.
        y_weights: (B, M).
        p: at least 1.
        impl: as in `sliced_wasserstein`.
    """
    unsupported = without_kernel(x, y, x_weights, y_weights)
    if not use_native(op, impl, x.device, unsupported):
        return reference_value(x, y, projections, x_weights, y_weights, p)
    if not needs_function(x, y, projections):
        return _native.kernels.sliced_wasserstein(x, y, projections, x_weights, y_weights, p)
    hidden = torch._C._are_functorch_transforms_active()  # there a tensor may not say that it requires grad
    needs = [tensor is not None and (hidden or tensor.requires_grad) for tensor in (x, y, projections)]
    if hidden:
        return _Transformed.apply(x, y, projections, x_weights, y_weights, p, *needs)[0]
    return _SlicedWasserstein.apply(x, y, projections, x_weights, y_weights, p, *needs)


def without_kernel(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> str | None:
    """What of a call no kernel takes, on this device; None: nothing."""
    if forward_ad._current_level >= 0:  # the op would drop tangents without a word
        return "forward-mode AD"
    if x_weights is not None and y_weights is not None:
        if _native.runs_cuda_kernels(x.device):
            return "weights on CUDA"
        if torch.is_grad_enabled() and (_may_require_grad(x_weights) or _may_require_grad(y_weights)):
            return "weights that require grad"
    return None


def _may_require_grad(weights: Tensor) -> bool:
    hidden = torch._C._are_functorch_transforms_active()
    return weights.requires_grad or (hidden and torch._C._functorch.is_functorch_wrapped_tensor(weights))


# ---- autograd ----


def _backward(ctx: Any, grad_value: Tensor | None, *_: Any) -> Any:
    if grad_value is None:
        return (None,) * 9
    tensors = ctx.saved_tensors  # once: non-reentrant checkpoints give them out no second time
    again = needs_function(grad_value, *tensors[3:6])  # else a second Function costs more than the scaling
    call: Any = _SlicedWassersteinBackward.apply if again else _SlicedWassersteinBackward.forward
    grad_x, grad_y, grad_projections = call(grad_value, *tensors, ctx.p, *ctx.needs)
    (need_x, need_y, need_projections), asked = ctx.needs, ctx.needs_input_grad
    return (
        grad_x if need_x and asked[0] else None,
        grad_y if need_y and asked[1] else None,
        grad_projections if need_projections and asked[2] else None,
        *[None] * 6,
    )


class _SlicedWasserstein(torch.autograd.Function):
    """Outside of torch.func, where what is kept need not be an output, which costs less."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        projections: Tensor | None,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        p: float,
        need_x: bool,
        need_y: bool,
        need_projections: bool,
    ) -> Any:
        needs = (need_x, need_y, need_projections)
        value, *units = _native.kernels.sliced_wasserstein_gradients(x, y, projections, x_weights, y_weights, p, *needs)
        ctx.save_for_backward(*units, x, y, projections, x_weights, y_weights)
        ctx.p, ctx.needs = p, needs
        return value

    backward = staticmethod(_backward)


class _Transformed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        projections: Tensor | None,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        p: float,
        need_x: bool,
        need_y: bool,
        need_projections: bool,
    ) -> Any:
        needs = (need_x, need_y, need_projections)
        return _native.kernels.sliced_wasserstein_gradients(x, y, projections, x_weights, y_weights, p, *needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])  # the second derivative goes by the samples
        if not torch.compiler.is_compiling():  # which can't, and has no need to
            ctx.set_materialize_grads(False)  # else the unit gradients' gradients are zeros, as long as the samples
        ctx.save_for_backward(*output[1:], *inputs[:5])
        ctx.p, ctx.needs = inputs[5], inputs[6:]

    backward = staticmethod(_backward)


class _SlicedWassersteinBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_value: Tensor,
        unit_x: Tensor,
        unit_y: Tensor,
        unit_projections: Tensor,
        x: Tensor,
        y: Tensor,
        projections: Tensor | None,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        p: float,
        need_x: bool,
        need_y: bool,
        need_projections: bool,
    ) -> Any:
        scale = grad_value.unsqueeze(-1).unsqueeze(-1)
        grad_x = unit_x * scale if need_x else unit_x
        grad_y = unit_y * scale if need_y else unit_y
        grad_projections = unit_projections * scale if need_projections else unit_projections
        if need_projections and projections is not None and projections.shape[0] != x.shape[0]:
            grad_projections = grad_projections.unflatten(0, (projections.shape[0], -1)).sum(1)
        return grad_x, grad_y, grad_projections

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0], *inputs[4:9])
        ctx.p, ctx.needs = inputs[9], inputs[10:]

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor) -> Any:
        grad_value, x, y, projections, x_weights, y_weights = ctx.saved_tensors
        asked = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:7])
        with torch.autocast(grad_value.device.type, enabled=False):
            by_value, *gradients = second_order(
                lambda x, y, projections: reference_value(x, y, projections, x_weights, y_weights, ctx.p),
                (x, y, projections),
                ctx.needs,
                grad_value,
                grad_grads,
                asked,
            )
        return by_value, None, None, None, *gradients, *[None] * 6


# ---- registration, on the ops that the native library defines ----


def _value_fake(
    x: Tensor, y: Tensor, projections: Tensor | None, x_weights: Tensor | None, y_weights: Tensor | None, p: float
) -> Tensor:
    op = "sliced_wasserstein"
    check_tensor(op, "x", x, (torch.float64, torch.float32))
    sizes: dict[str, int] = {}
    check_shape(op, "x", x, "B N D", sizes)
    check_shape(op, "y", y, "B M D", sizes)
    named: dict[str, Tensor] = {"y": y}
    if projections is not None:
        check_shape(op, "projections", projections, "G L D", sizes)
        named["projections"] = projections
    for name, tensor in named.items():
        check_same_dtype(op, name, tensor, "x", x)
        check_same_device(op, name, tensor, "x", x)
    for name, weights, dims in (("x_weights", x_weights, "B N"), ("y_weights", y_weights, "B M")):
        if weights is not None:
            check_tensor(op, name, weights, (torch.float64,))
            check_same_device(op, name, weights, "x", x)
            check_shape(op, name, weights, dims, sizes)
    check_not_empty(op, "x", x, {"N": sizes["N"], "D": sizes["D"]})
    check_not_empty(op, "y", y, {"M": sizes["M"]})
    return x.new_empty(x.shape[0])


def _gradients_fake(
    x: Tensor,
    y: Tensor,
    projections: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    need_x: bool,
    need_y: bool,
    need_projections: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value = _value_fake(x, y, projections, x_weights, y_weights, p)
    need_projections = need_projections and projections is not None
    shape = (x.shape[0], *projections.shape[1:]) if projections is not None else (0,)
    return (
        value,
        x.new_empty(tuple(x.shape) if need_x else 0),
        x.new_empty(tuple(y.shape) if need_y else 0),
        x.new_empty(shape if need_projections else 0),
    )


def register(namespace: str) -> None:
    """Gives the ops of a loaded library their fake and vmap rules."""
    register_batched(namespace, {"sliced_wasserstein": _value_fake, "sliced_wasserstein_gradients": _gradients_fake})


_native.native_status()  # the libraries are loaded from here on
if hasattr(torch.ops.vgkernels, "sliced_wasserstein"):
    register("vgkernels")
