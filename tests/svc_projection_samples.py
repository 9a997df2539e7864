"""What the tests of svc_projection share: matrices of given singular values, tolerances, bad input, and the suite.

Decides how large an error may be; what is checked is decided in op_suite.py and the test files.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from op_suite import Bad, OpSuite, Sample
from torch import Tensor

from vgkernels import _native

SHAPES = ((64, 192), (128, 4096), (96, 96), (300, 40))
# The specification's figures, in bounds: the largest singular value less 1, and the relative error in Frobenius norm.
ABOVE = {torch.float64: 1e-12, torch.float32: 4e-6}
ERROR = {torch.float64: 1e-12, torch.float32: 1e-6}
WIDE_ERROR = 2e-5  # float32, where "wide" is
REFUSED: Any = (RuntimeError, TypeError, ValueError)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_values(m: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    """(m, n) in float64 with those singular values, 0 for the rest of them, between random orthogonal factors."""
    g = generator(seed)
    u, v = (torch.linalg.qr(torch.randn(size, len(values), generator=g, dtype=torch.float64))[0] for size in (m, n))
    return (u * values) @ v.mT


def uniform(count: int, low: float, high: float, seed: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator(seed), dtype=torch.float64)


def few_above(r: int) -> Tensor:
    return torch.cat([uniform(max(1, r // 10), 1, 1.5), uniform(r - max(1, r // 10), 0, 1)])


# The specification's A4. Of r singular values; `inside`: nothing may change.
SPECTRA = {
    "few above 1": few_above,
    "to 3.9": lambda r: uniform(r, 0, 3.9),
    "cluster 0.99..1.01": lambda r: uniform(r, 0.99, 1.01),
    "cluster 1 +- 1e-4": lambda r: uniform(r, 1 - 1e-4, 1 + 1e-4),
    "cluster 1 +- 1e-6": lambda r: uniform(r, 1 - 1e-6, 1 + 1e-6),
    "after a step": lambda r: torch.cat([uniform(r // 2, 1 - 1e-3, 1 + 1e-3), uniform(r - r // 2, 0, 0.9)]),
    "wide": lambda r: torch.logspace(-6, 2, r, dtype=torch.float64),
    "rank-deficient": lambda r: uniform(max(1, r // 4), 0.1, 3),
    "all equal": lambda r: torch.full((r,), 2.0, dtype=torch.float64),
    "all inside": lambda r: uniform(r, 0, 0.999),
}


@functools.cache
def hard_case(spectrum: str, m: int, n: int) -> Tensor:
    return with_values(m, n, SPECTRA[spectrum](min(m, n)), seed=m + n)


def clipped(weight: Tensor, bound: float = 1.0) -> Tensor:
    """The definition, in float64."""
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u * s.clamp(max=bound)) @ vh


def largest_value(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().double(), 2))


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


# ---- the suite ----


def make(name: str, shape: tuple[int, ...], values: list[float], **options: Any) -> Sample:
    """Singular values of the matrix that `options` ask for, none of them twice or near the bound."""
    dim = options.get("dim", 0)
    moved = torch.empty(shape).movedim(dim, 0).shape
    matrix = with_values(moved[0], moved[1:].numel(), torch.tensor(values, dtype=torch.float64), seed=len(name))
    return Sample(name, {"weight": matrix.view(moved).movedim(0, dim).contiguous()}, options)


def changed(**change: Any) -> Any:
    """For `Bad`: weight=function of the tensor, or name=value of the option."""

    def change_in_place(tensors: dict[str, Any], options: dict[str, Any]) -> None:
        for k, value in change.items():
            if k in tensors:
                tensors[k] = value(tensors[k]) if callable(value) else value
            else:
                options[k] = value

    return change_in_place


# float32: the singular values are at most 3, and the SVD of the reference is exact to about 1e-6 of that.
TOLERANCE = {
    torch.float64: {"out": 1e-13, "weight": 1e-12},
    torch.float32: {"out": 4e-6, "weight": 2e-5},
}
SAMPLES = [
    make("wide", (5, 8), [2.5, 1.7, 1.2, 0.8, 0.3]),
    make("tall", (7, 4), [3.0, 1.3, 0.7, 0.2], max_singular_value=0.5),
    make("square", (5, 5), [2.0, 1.5, 1.2, 0.6, 0.2]),
    make("convolution", (6, 3, 2, 2), [2.2, 1.9, 1.6, 1.3, 0.7, 0.3]),
    make("transposed-convolution", (3, 4, 2, 2), [2.2, 1.6, 0.7, 0.3], dim=1),
    make("last-dim", (2, 3, 4), [2.2, 1.6, 0.7, 0.3], dim=-1),
    make("inside", (4, 6), [0.9, 0.7, 0.4, 0.2]),
    make("all-above", (4, 6), [2.9, 2.2, 1.7, 1.2]),
    make("one-row", (1, 6), [2.0]),
    make("one-column", (6, 1), [2.0]),
]
BAD = [
    Bad("no-tensor", changed(weight=3), TypeError, "expected weight to be a tensor, got int"),
    Bad("integer", changed(weight=Tensor.int), TypeError, "expected weight of dtype float64 or .*, got int32"),
    Bad("complex", changed(weight=Tensor.cfloat), TypeError, "expected weight of dtype .*, got complex64"),
    Bad("sparse", changed(weight=Tensor.to_sparse), TypeError, "expected weight to be a dense tensor"),
    Bad("0-D", changed(weight=Tensor.sum), ValueError, r"expected weight of at least 2 dimensions, got shape \(\)"),
    Bad("1-D", changed(weight=lambda t: t[0]), ValueError, r"expected weight of at least 2 dimensions, got shape"),
    Bad("no-columns", changed(weight=lambda t: t[:, :0]), ValueError, r"expected weight with size\(1\) > 0, got"),
    Bad("no-rows", changed(weight=lambda t: t[:0]), ValueError, r"expected weight with size\(0\) > 0, got shape"),
    Bad("no-bound", changed(max_singular_value="1"), TypeError, "expected max_singular_value to be a float, got str"),
    Bad("tensor-bound", changed(max_singular_value=torch.ones(())), TypeError, "expected max_singular_value to be"),
    Bad("zero-bound", changed(max_singular_value=0), ValueError, "expected max_singular_value from 1e-30 to 1e30, got"),
    Bad("nan-bound", changed(max_singular_value=float("nan")), ValueError, "expected max_singular_value from 1e-30"),
    Bad("small-bound", changed(max_singular_value=0.9e-30), ValueError, "expected max_singular_value from 1e-30"),
    Bad("large-bound", changed(max_singular_value=1.1e30), ValueError, "expected max_singular_value from 1e-30"),
    Bad("infinite-bound", changed(max_singular_value=float("inf")), ValueError, "expected max_singular_value from"),
    Bad("dim", changed(dim=2), ValueError, "expected dim from -2 to 1, got 2"),
    Bad("negative-dim", changed(dim=-3), ValueError, "expected dim from -2 to 1, got -3"),
    Bad("float-dim", changed(dim=1.0), TypeError, "expected dim to be an int, got float"),
    Bad("impl", changed(impl="cuda"), ValueError, "expected impl to be one of 'auto', 'native', .*, got 'cuda'"),
]
# Through torch.ops a batch of float64 or float32 matrices is taken, nothing else.
BAD_NATIVE = [
    Bad("integer", changed(weight=Tensor.int), REFUSED, "expected weight"),
    Bad("no-batch", changed(weight=lambda t: t[0]), REFUSED, "expected weight"),
    Bad("4-D", changed(weight=lambda t: t[None]), REFUSED, "expected weight"),
    Bad("no-columns", changed(weight=lambda t: t[:, :0]), REFUSED, "expected (a )?weight"),
    Bad("no-rows", changed(weight=lambda t: t[:0]), REFUSED, "expected (a )?weight"),
    Bad("zero-bound", changed(max_singular_value=0.0), REFUSED, "expected .*bound"),
    Bad("nan-bound", changed(max_singular_value=float("nan")), REFUSED, "expected .*bound"),
]


class SvcProjectionSuite(OpSuite):
    op = "svc_projection"
    samples = SAMPLES
    empty: list[Sample] = []  # noqa: RUF012
    test_empty = None  # an empty weight is bad input
    bad = BAD
    bad_native = BAD_NATIVE
    tolerance = TOLERANCE

    def native_calls(self, sample: Sample) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        weight = sample.tensors["weight"]
        weight = weight.float() if weight.dtype == torch.bfloat16 else weight
        if sample.name != "wide":  # of which bad input is made
            weight = weight.movedim(sample.options.get("dim", 0), 0).flatten(1)
        matrix = weight.unsqueeze(0)
        bound = sample.options.get("max_singular_value", 1.0)
        gradients = [torch.randn(matrix.shape, generator=generator(seed)).to(matrix) for seed in (5, 6)]
        yield _native.kernels.svc_projection.default, (matrix, bound)
        yield torch.ops.vgkernels.svc_projection_backward.default, (gradients[0], matrix, bound)
        yield torch.ops.vgkernels.svc_projection_second.default, (*gradients, matrix, bound)
