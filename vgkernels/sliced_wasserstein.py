"""The sliced Wasserstein distance: samples projected on directions, sorted, and compared in order.

    SW_p^p(x, y) = 1/L sum_l W_p^p(theta_l . x, theta_l . y),   W_p^p(s, t) = int_0^1 |F_s^-1(u) - F_t^-1(u)|^p du

Source: Wu, Huang et al., Sliced Wasserstein Generative Models, arXiv 1706.02631, section 2. This file decides what the
op accepts and how entries are reduced; the kernels are in csrc/sliced_wasserstein, the choice between them and the
reference, and derivatives, in sliced_wasserstein_entries.py, the reference's arithmetic in
sliced_wasserstein_coupling.py, the directions in sliced_wasserstein_projections.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._checks import (
    accumulation_dtype,
    check_not_empty,
    check_option,
    check_same_device,
    check_tensor,
)
from .sliced_wasserstein_arguments import as_entries, check_power, check_samples
from .sliced_wasserstein_entries import value_of_entries
from .sliced_wasserstein_projections import (
    KINDS,
    check_count,
    check_generator,
    hadamard_signs,
    project_hadamard,
    random_projections,
)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: Tensor | None = None,
    n_projections: int = 128,
    p: float = 2.0,
    root: bool = False,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    reduction: str = "mean",
    kind: str = "gaussian",
    generator: torch.Generator | None = None,
    impl: str = "auto",
) -> Tensor:
    """The mean over directions of W_p^p between projected samples: exact in each direction, for any sizes and weights.

    Args:
        x: (..., N, D), N samples for each entry of the batch; float64, float32, float16 or bfloat16, of any strides.
        y: (..., M, D), of the same batch, dtype and device.
        projections: (L, D), the same directions for all entries, used as they are, of any of the four dtypes; None:
            `random_projections(n_projections, D, kind=kind, generator=generator)`, new ones at each call.
        n_projections: how many random ones.
        p: at least 1.
        root: whether to take the p-th root of each entry, POT's convention; its gradient is 0 where the value is 0.
        x_weights: (N,) or (..., N), not negative, normalised to sum 1 here; any of the four dtypes.
        y_weights: (M,) or (..., M). Given on one side only, the other side's are equal.
        reduction: over the entries of the batch, "mean", "sum" or "none".
        kind: of random directions, "gaussian", "orthogonal" or "hadamard". The last are never formed: far faster where
            D is large.
        generator: of random directions, which under torch.vmap need its `randomness` argument.
        impl: "native", "reference", or "auto", the kernel where there is one. Forward-mode AD, weights that require
            grad, and on CUDA all weights have none and take the reference. Where none is loaded, "auto" warns once and
            takes it (VGKERNELS_REQUIRE_NATIVE=1: raises).

    Returns:
        A scalar, or of the batch's shape where reduction is "none"; of x's dtype.

    Raises:
        TypeError: not a tensor, of an integer, complex or other dtype, of two dtypes; a `p` that is no number.
        ValueError: shapes, devices or options that don't fit; N, M, D or L of 0; p < 1 or not finite; on the CPU
            outside of compiled code and vmap also weights that are negative, not finite or all zero; elsewhere such
            weights make their entry NaN.

    Arithmetic: float64 for float64 samples, otherwise float32, rounded once to x's dtype; within 2e-6 of the same
    projections in float64, relative, for p up to 3, beyond with powf's error; |d|^p may not come within a factor 64 of
    the largest number. Exactly 0 where y holds the samples of x, in any order. NaN or Inf in an entry makes its value
    NaN, and its gradients; other entries don't notice.

    Autocast: nothing is cast, the result has x's dtype.

    Differentiability: once in `x`, `y` and `projections`, the gradient coming with the value, in one pass; twice and
    more in plain PyTorch, with the order of the samples held constant. The derivative of |d|^p at 0 is 0, also for
    p = 1. In the weights by the reference.

    Determinism: bitwise repeatable, for any number of threads. Equal projections keep the order of their samples.

    Source: SWGAN (arXiv 1706.02631).

    Example:
        >>> import torch, vgkernels
        >>> x, y = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [4.0, 2.0]])
        >>> vgkernels.sliced_wasserstein(x, y, projections=torch.eye(2))
        tensor(4.2500)
    """
    return _checked("sliced_wasserstein", x, y, projections, n_projections, p, root, x_weights, y_weights, reduction,
                    kind, generator, impl)  # fmt: skip


def sliced_wasserstein_reference(
    x: Tensor,
    y: Tensor,
    *,
    projections: Tensor | None = None,
    n_projections: int = 128,
    p: float = 2.0,
    root: bool = False,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    reduction: str = "mean",
    kind: str = "gaussian",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`sliced_wasserstein` in plain PyTorch: matmul, torch.sort, mean. Any device, any derivative; arguments as there.

    Its products may round a sample by its place, so that the value is exactly 0 only for samples in the same order; on
    CUDA they follow torch's setting for TF32, and a backward inside of autocast rounds to 16 bits.
    """
    return _checked("sliced_wasserstein_reference", x, y, projections, n_projections, p, root, x_weights, y_weights,
                    reduction, kind, generator, "reference")  # fmt: skip


def _checked(
    op: str,
    x: Tensor,
    y: Tensor,
    projections: Tensor | None,
    n_projections: int,
    p: float,
    root: bool,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    reduction: str,
    kind: str,
    generator: torch.Generator | None,
    impl: str,
) -> Tensor:
    check_samples(op, x, y)
    check_power(op, p)
    check_option(op, "reduction", reduction, ("mean", "sum", "none"))
    check_option(op, "kind", kind, KINDS)
    if not isinstance(root, bool):
        raise TypeError(f"{op}: expected root to be a bool, got {type(root).__name__}")
    weights: tuple[Tensor | None, Tensor | None] = (None, None)
    if x_weights is not None or y_weights is not None:
        weights = _normalised(op, "x_weights", x_weights, x, "N"), _normalised(op, "y_weights", y_weights, y, "M")
    dim, accumulation = x.shape[-1], accumulation_dtype(x.dtype)
    x_entries, y_entries = as_entries(x), as_entries(y)
    if projections is not None:
        _check_projections(op, projections, x)
        projections = projections.to(accumulation).unsqueeze(0)
    else:
        check_count(op, "n_projections", n_projections)
        check_generator(op, generator)
        if kind == "hadamard":
            signs = hadamard_signs(n_projections, dim, generator=generator, dtype=accumulation, device=x.device)
            x_entries, y_entries = (project_hadamard(each, signs, n_projections) for each in (x_entries, y_entries))
        else:
            projections = random_projections(
                n_projections, dim, kind=kind, generator=generator, dtype=accumulation, device=x.device
            ).unsqueeze(0)
    value = value_of_entries(op, x_entries, y_entries, projections, *weights, float(p), impl)
    if root and p != 1:
        value = _root(value, float(p))
    if reduction == "none" or x.dim() == 2:
        value = value.view(x.shape[:-2])
    else:
        value = value.mean() if reduction == "mean" else value.sum()
    return value.to(x.dtype)


def _check_projections(op: str, projections: Any, x: Tensor) -> None:
    check_tensor(op, "projections", projections)
    check_same_device(op, "projections", projections, "x", x)
    if projections.dim() != 2 or projections.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{op}: expected projections of shape (L, D) = (L, {x.shape[-1]}), got {tuple(projections.shape)}"
        )
    check_not_empty(op, "projections", projections, {"L": projections.shape[0]})


def _normalised(op: str, name: str, weights: Any, samples: Tensor, symbol: str) -> Tensor:
    """(B, N) in float64, of sum 1."""
    shape = samples.shape[:-1]
    if weights is None:
        count = math.prod(shape[:-1])
        return samples.new_full((count, shape[-1]), 1 / shape[-1], dtype=torch.float64)
    check_tensor(op, name, weights)
    check_same_device(op, name, weights, "x", samples)
    if weights.shape != shape and weights.shape != shape[-1:]:
        raise ValueError(
            f"{op}: expected {name} of shape ({symbol},) = {tuple(shape[-1:])} or (..., {symbol}) = {tuple(shape)}, "
            f"got {tuple(weights.shape)}"
        )
    weights = weights.double()
    if _can_look_at(weights):
        if not (weights >= 0).all() or not weights.isfinite().all():
            raise ValueError(f"{op}: expected {name} to be finite and not negative")
        if not (weights.sum(-1) > 0).all():
            raise ValueError(f"{op}: expected {name} with a sum > 0, got all zeros")
    weights = weights / weights.amax(-1, keepdim=True)  # first: the sum might overflow
    weights = weights / weights.sum(-1, keepdim=True)
    return weights.expand(shape).reshape(math.prod(shape[:-1]), shape[-1])


def _can_look_at(tensor: Tensor) -> bool:
    """Whether a decision may depend on its values: not while they are traced or batched, nor where that has to wait."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return tensor.device.type == "cpu" and not traced


def _root(value: Tensor, p: float) -> Tensor:
    """value^(1/p), with gradients of 0 at 0."""
    some = value != 0  # NaN too
    safe = torch.where(some, value, 1)
    return torch.where(some, safe.sqrt() if p == 2 else safe.pow(1 / p), 0)
