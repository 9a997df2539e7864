"""svc_projection_: clips the singular values of all weights of a model in one call, in place, or changes none of them.

    W = U diag(s) V^T   becomes   U diag(min(s, c)) V^T

Source: Saito et al., TGAN, arXiv 1611.06624, section 3.3. This file decides what the call accepts, which algorithm runs
and what is guaranteed when weights are not finite; the kernels are in csrc/svc_projection, reports in
svc_projection_report.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._checks import check_option, overlaps, use_native
from .svc_projection_matrix import (
    by_memory,
    check_bound,
    check_weight,
    find_shared,
    matrix_view,
    project_by_svd,
    tolerance,
)
from .svc_projection_report import SVCReport, nonfinite_error, raise_unread
from .svc_projection_sign import project_by_sign

_ALGORITHMS = ("auto", "gram", "sign", "svd")


@torch.compiler.disable
def svc_projection_(
    weights: Tensor | Sequence[Tensor],
    max_singular_value: float = 1.0,
    *,
    dim: int | Sequence[int] = 0,
    bound: str = "reshaped",
    strides: Any = None,
    dilations: Any = None,
    nonfinite: str = "raise",
    algorithm: str = "auto",
) -> SVCReport:
    """Clips every singular value of each weight, seen as a matrix, at a bound, in place: W <- U diag(min(s, c)) V^T.

    Args:
        weights: a tensor or a sequence of them, of at least two dimensions: float64, float32, float16 or bfloat16, of
            any strides that do not overlap. Leaves that require grad are fine: autograd sees an in-place write. Their
            matrix has the size of dimension `dim` for rows, all others flattened for columns.
        max_singular_value: the bound c, 1e-30 to 1e30; what "patch" makes of it too.
        dim: an int, or one for each weight. 0 is the output of a linear or convolution layer; 1 clips the
            (out, in k) matrix of a transposed convolution.
        bound: "reshaped" bounds the matrix. A convolution with that matrix has an operator norm between its largest
            singular value and sqrt(prod ceil(k_i / s_i)) times it (k kernel, s stride), since an input cell lies in
            that many patches: 2.83 for TGAN's layers. "patch" divides c by sqrt(prod ceil(k_i / (s_i / gcd(s_i,
            d_i)))) (d dilation), which bounds the convolution itself by c, under zero padding; dim must be 0 then, for
            transposed convolutions too, whose adjoint is the convolution with that matrix. Under circular padding the
            stride must divide the maps' sizes and 2 * padding be at most d (k - 1); reflect and replicate padding break
            it.
        strides: the convolutions' strides for "patch": None is 1; an int or a tuple, one entry for each axis, serves
            every weight; a list has one of those, or None, for each weight.
        dilations: likewise.
        nonfinite: "raise", or "skip", which leaves that weight alone and reports it.
        algorithm: "auto", the kernels where they are loaded, else "svd" after one warning; "gram", the CPU kernels
            (Gram matrix, Cholesky certificate, partial eigen-solve); "sign", products of matrices alone: the CUDA
            kernels, plain PyTorch on the CPU; "svd", torch.linalg.svd for each matrix.

    Returns:
        An SVCReport with one entry for each weight. On CUDA nothing is waited for until it is read.

    Raises:
        TypeError: not a tensor, or of an integer or complex dtype; a bound that is no number.
        ValueError: fewer than two dimensions, no elements, overlapping strides, weights that share an element, options
            that don't fit. Before anything is written.
        RuntimeError: a weight holds NaN or Inf, or its Frobenius norm is about 1e75 or more; nothing is modified in
            any. On CUDA it is raised when the report is read, or by a later call that finds it there, or at once with
            VGKERNELS_DEBUG=1.

    Arithmetic: singular values up to c (1 + tolerance) count as inside, and a weight that is inside is not written at
    all; the tolerance is 3e-6 for float32, 1e-14 sqrt(rows) for float64, 2^-11 for float16, 2^-8 for bfloat16, which
    are computed in float32. After a call all are inside, so a second call changes no bit.

    Memory: the rows x rows matrix of each weight's smaller side. A weight that no matrix with a stride of 1 can be laid
    over, as a transposed convolution's with dim=1, is copied, and copied back where it was clipped. Weights of several
    dtypes or devices take one call each; with nonfinite="raise" all are looked through first, which waits for CUDA.

    Differentiability: none, see `svc_projection`. Determinism: bitwise, for any number of threads and whichever other
    weights are in the call.

    Source: TGAN (arXiv 1611.06624), section 3.3.

    Example:
        >>> import torch, vgkernels
        >>> weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
        >>> vgkernels.svc_projection_(weight)
        SVCReport of 1 weight
          weights[0]: 1 clipped, largest 2
        >>> weight
        tensor([[1.0000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]])
    """
    op = "svc_projection_"
    if not isinstance(weights, Iterable):
        raise TypeError(f"{op}: expected weights to be a tensor or a sequence of them, got {type(weights).__name__}")
    tensors = [weights] if isinstance(weights, Tensor) else list(weights)
    check_bound(op, max_singular_value)
    check_option(op, "bound", bound, ("reshaped", "patch"))
    dims = [dim] * len(tensors) if isinstance(dim, int) else dim
    if not isinstance(dims, Sequence) or len(dims) != len(tensors):
        raise ValueError(f"{op}: expected dim to be an int or one for each of {len(tensors)} weights, got {dim!r}")
    bounds = [float(max_singular_value)] * len(tensors)
    if bound == "patch":
        steps = (_each_weight(op, *option, len(tensors)) for option in (("strides", strides), ("dilations", dilations)))
        for i, (stride, dilation) in enumerate(zip(*steps, strict=True)):
            if check_weight(op, f"weights[{i}]", tensors[i], dims[i]) != 0:
                raise ValueError(
                    f"{op}: expected dim 0 for bound='patch', whose factor holds for the matrix that multiplies the "
                    f"patches (a transposed convolution is the adjoint of one, of the same norm), got {dims[i]}"
                )
            bounds[i] /= patch_factor(op, tensors[i].shape[2:], stride, dilation)
    elif strides is not None or dilations is not None:
        raise ValueError(f"{op}: expected strides and dilations only with bound='patch', got bound={bound!r}")
    names = [f"weights[{i}]" for i in range(len(tensors))]
    return clip_in_place(op, names, tensors, dims, bounds, nonfinite, algorithm)


def patch_factor(op: str, kernel: Sequence[int], stride: Any, dilation: Any) -> float:
    """sqrt of the number of patches that an input cell can lie in; `stride` and `dilation` an int or one an axis."""
    patches = 1
    for axis, k in enumerate(kernel):
        s = _along(op, "strides", stride, axis, len(kernel))
        d = _along(op, "dilations", dilation, axis, len(kernel))
        patches *= math.ceil(k / (s // math.gcd(s, d)))
    return math.sqrt(patches)


def _each_weight(op: str, name: str, value: Any, count: int) -> Sequence[Any]:
    if not isinstance(value, list):
        value = [value] * count
    if len(value) != count:
        raise ValueError(f"{op}: expected a list of {name} to have one entry for each of {count} weights, got {value}")
    return [1 if entry is None else entry for entry in value]


def _along(op: str, name: str, value: Any, axis: int, axes: int) -> int:
    values = (value,) * axes if isinstance(value, int) else value
    if not isinstance(values, Sequence) or len(values) != axes:
        raise ValueError(f"{op}: expected {name} to be an int or a tuple of {axes} ints, got {value!r}")
    if isinstance(values[axis], bool) or not isinstance(values[axis], int) or values[axis] < 1:
        raise ValueError(f"{op}: expected {name} of ints > 0, got {value!r}")
    return values[axis]


@torch.no_grad()
def clip_in_place(
    op: str,
    names: Sequence[str],
    weights: Sequence[Tensor],
    dims: Sequence[int],
    bounds: Sequence[float],
    nonfinite: str = "raise",
    algorithm: str = "auto",
) -> SVCReport:
    """What svc_projection_ and SingularValueClipping do, a bound for each weight; `op` and `names` are for errors."""
    raise_unread()
    check_option(op, "nonfinite", nonfinite, ("raise", "skip"))
    check_option(op, "algorithm", algorithm, _ALGORITHMS)
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    dims = [check_weight(op, name, weight, dim) for name, weight, dim in zip(names, weights, dims, strict=True)]
    for i, (name, weight, bound) in enumerate(zip(names, weights, bounds, strict=True)):
        check_bound(op, bound, f"the bound of {name}")
        if weight.is_meta:
            raise ValueError(f"{op}: expected {name} on a device that holds data, got meta")
        if overlaps(weight):
            raise ValueError(
                f"{op}: expected {name} without elements that share memory, got shape {tuple(weight.shape)} with "
                f"strides {weight.stride()}"
            )
        groups.setdefault((weight.dtype, weight.device), []).append(i)
    if shared := find_shared(weights):
        first, second = (names[i] for i in shared)
        raise ValueError(
            f"{op}: expected weights that don't share memory, got {first} and {second} with an element in both"
        )
    natives = [_takes_native(op, algorithm, device) for _, device in groups]

    bad: set[int] = set()
    if not all(natives) or (len(groups) > 1 and nonfinite == "raise"):
        bad = {i for i, weight in enumerate(weights) if not _is_finite(weight)}
        if bad and nonfinite == "raise":
            raise nonfinite_error(op, [names[i] for i in sorted(bad)])
    matrices = [_Matrix(*each) for each in zip(weights, dims, bounds, strict=True)]  # all copies before the first write
    parts = []
    for places, native in zip(groups.values(), natives, strict=True):
        chosen = [matrices[i] for i in places]
        if native:
            table = _clip_native(chosen, nonfinite == "skip")
        else:
            project = project_by_sign if algorithm == "sign" else project_by_svd
            table = _clip_each(chosen, [i in bad for i in places], project)
        parts.append((places, table))
    report = SVCReport(op, names, parts, nonfinite == "raise")
    torch.autograd.graph.increment_version([weight for weight in weights if not weight.is_inference()])
    return report


def _takes_native(op: str, algorithm: str, device: torch.device) -> bool:
    if algorithm == "auto":
        return use_native(op, "auto", device, None)
    if algorithm == "svd" or (algorithm == "sign" and not _native.runs_cuda_kernels(device)):
        return False
    if algorithm == "gram" and (device.type != "cpu" or _native.runs_cuda_kernels(device)):
        raise ValueError(f"{op}: expected algorithm 'auto', 'sign' or 'svd' on {device.type}, got 'gram'")
    status = _native.native_status()
    if why := status.cuda_reason if device.type == "cuda" else status.cpu_reason:
        raise RuntimeError(f"{op}: expected algorithm 'auto' or 'svd', got {algorithm!r}, but {why}")
    return True


def _is_finite(weight: Tensor) -> bool:
    """What passes here passes in the kernels, which sum in another order and stop at 1e75, short of overflow."""
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)) <= 0.99e75


class _Matrix:
    """A weight's matrix, over the weight's own memory where it can be, else a copy."""

    def __init__(self, weight: Tensor, dim: int, bound: float) -> None:
        weight, self.bound = weight.detach(), bound
        self._moved, view = weight.permute(by_memory(weight, dim)), matrix_view(weight, dim)
        self._own = view is not None
        self.values = self._moved.flatten(1).resolve_neg().contiguous() if view is None else view

    def write_back(self) -> None:
        """Needed where the values changed."""
        if not self._own:
            self._moved.copy_(self.values.view(self._moved.shape))


def _clip_native(matrices: Sequence[_Matrix], skip: bool) -> Tensor:
    values, bounds = [matrix.values for matrix in matrices], [matrix.bound for matrix in matrices]
    table = _native.kernels.svc_projection_(values, bounds, skip)
    states = None if table.is_cuda else [row[0] for row in table.tolist()]  # no tensors: nothing may fail from here on
    for i, matrix in enumerate(matrices):
        if states is None or states[i] == 1:
            matrix.write_back()
    return table


def _clip_each(
    matrices: Sequence[_Matrix],
    bad: Sequence[bool],
    project: Callable[[Tensor, float, float], tuple[Tensor, Tensor]],
) -> Tensor:
    rows, writes = [], []
    for matrix, is_bad in zip(matrices, bad, strict=True):
        if is_bad:
            rows.append(torch.tensor([2, 0, math.nan, 0], dtype=torch.float64))
            continue
        wide = matrix.values if matrix.values.shape[0] <= matrix.values.shape[1] else matrix.values.mT
        result, row = project(wide, matrix.bound, tolerance(wide.dtype, len(wide)))
        rows.append(row.cpu())
        if row[0] == 1:
            writes.append((matrix, wide, result))
    table = torch.stack(rows)
    for matrix, wide, result in writes:  # last: a failure before has changed no weight
        wide.copy_(result)
        matrix.write_back()
    return table
