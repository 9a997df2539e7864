"""Singular value clipping: the nearest matrix (Frobenius norm) whose singular values are at most a bound.

    W = U diag(s) V^T   ->   P(W) = U diag(min(s, c)) V^T = h(W W^T) W,   h(l) = min(1, c / sqrt(l))

Source: Saito, Matsumoto, Saito, Temporal Generative Adversarial Nets (TGAN), arXiv 1611.06624, section 3.3. This file
decides what the differentiable op accepts and when which derivative runs; the kernels are in csrc/svc_projection, the
derivatives' formulas in svc_projection_derivative.py, the call in place in svc_projection_inplace.py.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native
from ._autograd import needs_function, register_batched
from ._checks import (
    accumulation_dtype,
    check_not_empty,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    is_autocast_on,
    use_native,
)
from .svc_projection_derivative import first_derivative, second_derivative
from .svc_projection_matrix import by_memory, check_bound, check_weight


def svc_projection(weight: Tensor, max_singular_value: float = 1.0, *, dim: int = 0, impl: str = "auto") -> Tensor:
    """Clips the singular values of `weight`, seen as a matrix, at a bound: U diag(min(s, c)) V^T for W = U diag(s) V^T.

    Args:
        weight: two dimensions or more, float64, float32, float16 or bfloat16, of any strides. Its matrix has the size
            of dimension `dim` for rows, all others flattened for columns.
        max_singular_value: the bound c, 1e-30 to 1e30.
        dim: 0 for the weight of a linear or convolution layer, 1 for the (out, in k) matrix of a transposed one.
        impl: "native", "reference", or "auto", the kernel where there is one. Forward-mode AD has none and takes the
            reference, whose derivative is NaN where singular values are equal. Where none is loaded, "auto" warns once
            and takes it (VGKERNELS_REQUIRE_NATIVE=1: raises).

    Returns:
        Of the shape and dtype of `weight`, dense in its order of dimensions in memory if dim is 0, else contiguous; in
        compiled code always contiguous.

    Raises:
        TypeError: not a tensor, or of an integer, complex or other dtype; a bound that is no number.
        ValueError: fewer than two dimensions, no elements, a bound out of range, options that don't
            fit.
        RuntimeError: on the CPU, a weight with NaN or Inf. On CUDA nothing waits for the device to find out: such a
            weight comes back as it is.

    Arithmetic: float64 for a float64 weight, otherwise float32, rounded once to the weight's dtype. Singular values up
    to c (1 + 3e-6), for float64 c (1 + 1e-14 sqrt(rows)), count as inside; where all are, the kernel returns a copy of
    the same bits. The reference moves last digits.

    Autocast: nothing is cast, the result has the weight's dtype.

    Differentiability: twice, by formulas that need the eigenvectors of the smaller side's Gram matrix (on CUDA they
    wait for the device); singular values that are equal or zero do no harm. Where one crosses the bound the derivative
    jumps; there it is that of the side the tolerance puts it on. A third derivative raises; impl="reference" has all,
    where the singular values are distinct.

    Determinism: bitwise repeatable, for any number of threads.

    Source: TGAN (arXiv 1611.06624), section 3.3.

    Example:
        >>> import torch, vgkernels
        >>> vgkernels.svc_projection(torch.tensor([[0.0, 3.0], [0.5, 0.0]]))
        tensor([[0.0000, 1.0000],
                [0.5000, 0.0000]])
    """
    dim = _check("svc_projection", weight, max_singular_value, dim)
    unsupported = "forward-mode AD" if forward_ad._current_level >= 0 else None  # the op would drop tangents
    if not use_native("svc_projection", impl, weight.device, unsupported):
        return _reference("svc_projection", weight, max_singular_value, dim)
    dim = 0 if weight.dim() == 2 else dim  # a matrix and its transpose have the same projection
    order = by_memory(weight, dim)
    wide = weight.to(accumulation_dtype(weight.dtype))  # cast out here: autograd casts the gradient back
    moved = wide.permute(order)
    matrix = moved.flatten(1).unsqueeze(0)
    call = _SvcProjection.apply if needs_function(matrix) else _native.kernels.svc_projection
    out = call(matrix, float(max_singular_value)).view(moved.shape).permute([order.index(d) for d in range(len(order))])
    return (out if dim == 0 else out.contiguous()).to(weight.dtype)


def _check(op: str, weight: Any, max_singular_value: Any, dim: Any) -> int:
    check_bound(op, max_singular_value)
    return check_weight(op, "weight", weight, dim)


# ---- the reference ----


def svc_projection_reference(weight: Tensor, max_singular_value: float = 1.0, *, dim: int = 0) -> Tensor:
    """`svc_projection` in plain PyTorch: torch.linalg.svd, clamp, rebuild. Any device; arguments as there.

    Differentiable as torch.linalg.svd is: gradients are NaN where singular values are equal.
    """
    op = "svc_projection_reference"
    return _reference(op, weight, max_singular_value, _check(op, weight, max_singular_value, dim))


def _reference(op: str, weight: Tensor, max_singular_value: float, dim: int) -> Tensor:
    moved = weight.to(accumulation_dtype(weight.dtype)).movedim(dim, 0)
    if _can_look_at(moved) and not moved.isfinite().all():
        raise RuntimeError(f"{op}: expected finite weight, got NaN or Inf")
    autocast = is_autocast_on(weight.device)  # would make the product a 16-bit one
    with torch.autocast(weight.device.type, enabled=False) if autocast else contextlib.nullcontext():
        u, s, vh = torch.linalg.svd(moved.flatten(1), full_matrices=False)
        out = (u * s.clamp(max=max_singular_value)) @ vh
    return out.view(moved.shape).movedim(0, dim).contiguous().to(weight.dtype)


def _can_look_at(tensor: Tensor) -> bool:
    """Whether a decision may depend on its values: not while they are traced or batched, nor where that has to wait."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return tensor.device.type == "cpu" and not traced


# ---- autograd, on matrices (B, m, n); each derivative is an op, so that torch.compile and vmap see one node ----


class _SvcProjection(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, bound: float) -> Any:
        return _native.kernels.svc_projection(weight, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        (weight,) = ctx.saved_tensors  # once: non-reentrant checkpoints give it out no second time
        again = needs_function(grad_out, weight)
        call = _SvcProjectionBackward.apply if again else torch.ops.vgkernels.svc_projection_backward
        return call(grad_out, weight, ctx.bound), None


class _SvcProjectionBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_out: Tensor, weight: Tensor, bound: float) -> Any:
        return torch.ops.vgkernels.svc_projection_backward(grad_out, weight, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.bound = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad_grad: Tensor) -> Any:
        grad_out, weight = ctx.saved_tensors
        need_grad_out, need_weight, _ = ctx.needs_input_grad
        return (  # the derivative is symmetric: its transpose is itself
            _SvcProjectionBackward.apply(grad_grad, weight, ctx.bound) if need_grad_out else None,
            _SvcProjectionSecond.apply(grad_grad, grad_out, weight, ctx.bound) if need_weight else None,
            None,
        )


class _SvcProjectionSecond(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_grad: Tensor, grad_out: Tensor, weight: Tensor, bound: float) -> Any:
        return torch.ops.vgkernels.svc_projection_second(grad_grad, grad_out, weight, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError("svc_projection: expected at most two derivatives, got a third; impl='reference' has all")


# ---- registration: fakes and vmap rules; the derivatives are ops of this file ----


def _svc_projection_fake(weight: Tensor, bound: float) -> Tensor:
    _check_matrices("svc_projection", weight, bound)
    return weight.new_empty(tuple(weight.shape))


def _svc_projection_backward_fake(grad_out: Tensor, weight: Tensor, bound: float) -> Tensor:
    _check_matrices("svc_projection_backward", weight, bound, grad_out=grad_out)
    return weight.new_empty(tuple(weight.shape))


def _svc_projection_second_fake(grad_grad: Tensor, grad_out: Tensor, weight: Tensor, bound: float) -> Tensor:
    _check_matrices("svc_projection_second", weight, bound, grad_grad=grad_grad, grad_out=grad_out)
    return weight.new_empty(tuple(weight.shape))


def _svc_projection_backward(grad_out: Tensor, weight: Tensor, bound: float) -> Tensor:
    _check_matrices("svc_projection_backward", weight, bound, grad_out=grad_out)
    return first_derivative(grad_out, weight, bound)


def _svc_projection_second(grad_grad: Tensor, grad_out: Tensor, weight: Tensor, bound: float) -> Tensor:
    _check_matrices("svc_projection_second", weight, bound, grad_grad=grad_grad, grad_out=grad_out)
    return second_derivative(grad_grad, grad_out, weight, bound)


def _check_matrices(op: str, weight: Tensor, bound: float, **gradients: Tensor) -> None:
    check_tensor(op, "weight", weight, (torch.float64, torch.float32))
    check_bound(op, bound, "bound")
    sizes: dict[str, int] = {}
    check_shape(op, "weight", weight, "B m n", sizes)
    check_not_empty(op, "weight", weight, {"m": sizes["m"], "n": sizes["n"]})
    for name, gradient in gradients.items():
        check_same_device(op, name, gradient, "weight", weight)
        check_same_dtype(op, name, gradient, "weight", weight)
        check_shape(op, name, gradient, "B m n", sizes)


def _svc_projection__fake(weights: list[Tensor], bounds: list[float], skip_nonfinite: bool) -> Tensor:
    return weights[0].new_empty((len(weights), 4), dtype=torch.float64)


def _register(name: str, arguments: str, function: Any, fake: Any) -> None:
    torch.library.define(f"vgkernels::{name}", f"({arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"vgkernels::{name}", ("cpu", "cuda"), function)
    register_batched("vgkernels", {name: fake})


def register(namespace: str) -> None:
    """Gives the ops of a loaded library their fake and vmap rules."""
    register_batched(namespace, {"svc_projection": _svc_projection_fake})
    torch.library.register_fake(f"{namespace}::svc_projection_", _svc_projection__fake)


_tensors = "Tensor grad_out, Tensor weight, float bound"
_register("svc_projection_backward", _tensors, _svc_projection_backward, _svc_projection_backward_fake)
_register("svc_projection_second", f"Tensor grad_grad, {_tensors}", _svc_projection_second, _svc_projection_second_fake)
_native.native_status()  # the libraries are loaded from here on
if hasattr(torch.ops.vgkernels, "svc_projection"):
    register("vgkernels")
