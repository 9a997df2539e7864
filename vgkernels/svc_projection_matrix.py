"""What svc_projection takes for a weight, and which matrix it is: dim first, the rest flattened in memory's order.

The order of a matrix' columns does not change its singular values. Decides what is refused, which tolerance counts as
inside, and the projection by torch.linalg.svd that serves where no kernel runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_not_empty, check_tensor


def check_weight(op: str, name: str, weight: Any, dim: Any) -> int:
    """Refuses what has no matrix; returns `dim` counted from the front."""
    check_tensor(op, name, weight)
    if weight.dim() < 2:
        raise ValueError(f"{op}: expected {name} of at least 2 dimensions, got shape {tuple(weight.shape)}")
    check_not_empty(op, name, weight, {f"size({i})": size for i, size in enumerate(weight.shape)})
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{op}: expected dim to be an int, got {type(dim).__name__}")
    if not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"{op}: expected dim from {-weight.dim()} to {weight.dim() - 1}, got {dim}")
    return dim % weight.dim()


def check_bound(op: str, value: Any, name: str = "max_singular_value") -> None:
    """TypeError unless `value` is a number, ValueError unless its square, and its inverse's, are far inside float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{op}: expected {name} to be a float, got {type(value).__name__}")
    if not 1e-30 <= value <= 1e30:
        raise ValueError(f"{op}: expected {name} from 1e-30 to 1e30, got {value}")


def tolerance(dtype: torch.dtype, rows: int) -> float:
    """Singular values up to (1 + this) times the bound count as inside: svc_tolerance in csrc/svc_projection."""
    if dtype == torch.float64:
        return 1e-14 * math.sqrt(rows)
    return {torch.float32: 3e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]


def by_memory(weight: Tensor, dim: int) -> list[int]:
    """Its dimensions: `dim`, then the others from the largest stride to the smallest: flattening copies less.

    In compiled code, whose strides may be symbols that nothing can sort, the others in their own order.
    """
    others = [d for d in range(weight.dim()) if d != dim]
    return [dim, *(others if torch.compiler.is_compiling() else sorted(others, key=weight.stride, reverse=True))]


def find_shared(weights: Sequence[Tensor]) -> tuple[int, int] | None:
    """Two of them that have a byte in common, if any do; views that interleave without one are fine."""
    spans = []
    for i, weight in enumerate(weights):
        reach = 1 + sum(stride * (size - 1) for stride, size in zip(weight.stride(), weight.shape, strict=True))
        spans.append((str(weight.device), weight.data_ptr(), reach * weight.element_size(), i))
    clusters: list[list[tuple[int, int, int]]] = []  # of spans that touch: index, begin, end
    last = ("", 0)
    for device, begin, length, i in sorted(spans):
        if (device, begin) >= last:
            clusters.append([])
        clusters[-1].append((i, begin, begin + length))
        last = max(last, (device, begin + length))
    found = (_find_in_cluster(weights, sorted(cluster)) for cluster in clusters if len(cluster) > 1)
    return next((pair for pair in found if pair), None)


def _find_in_cluster(weights: Sequence[Tensor], cluster: Sequence[tuple[int, int, int]]) -> tuple[int, int] | None:
    """By writing each weight's number where its elements lie."""
    origin = min(begin for _, begin, _ in cluster)
    unit = math.gcd(*(begin - origin for _, begin, _ in cluster), *(weights[i].element_size() for i, *_ in cluster))
    owner = torch.zeros((max(end for *_, end in cluster) - origin) // unit, dtype=torch.int32, device="cpu")
    for i, begin, _ in cluster:
        units = weights[i].element_size() // unit
        strides = [stride * units for stride in weights[i].stride()]
        mine = owner.as_strided((*weights[i].shape, units), (*strides, 1), (begin - origin) // unit)
        if first := int(mine.max()):
            return first - 1, i
        mine.fill_(i + 1)
    return None


def matrix_view(weight: Tensor, dim: int) -> Tensor | None:
    """A weight that does not overlap as a matrix over its own memory, one stride 1; None where its strides forbid.

    None for a negated view too, whose memory holds other signs.
    """
    if weight.is_neg():
        return None
    rest = [d for d in by_memory(weight, dim)[1:] if weight.shape[d] > 1]
    for outer, inner in itertools.pairwise(rest):
        if weight.stride(outer) != weight.stride(inner) * weight.shape[inner]:
            return None
    m, n = weight.shape[dim], weight.numel() // weight.shape[dim]
    column = weight.stride(rest[-1]) if rest else 1
    row = weight.stride(dim) if m > 1 else (n if column == 1 else 1)
    if (column == 1 and row >= n) or (row == 1 and column >= m):
        return weight.as_strided((m, n), (row, column))
    return None


def project_by_svd(matrix: Tensor, bound: float, allowed: float) -> tuple[Tensor, Tensor]:
    """What a finite matrix becomes, by torch.linalg.svd in float64, and its row of the report; itself if it is inside.

    The result's singular values, after rounding, are at most bound (1 + allowed): a smaller target is tried until so.
    """
    wide = matrix.double()
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    k, largest = int((s > bound * (1 + allowed)).sum()), float(s[0])
    result, target, after = matrix, bound, largest
    for _ in range(20 if k else 0):
        over = (s[:k] - target)[:, None] * vh[:k]
        result = (wide - u[:, :k] @ over).to(matrix.dtype)
        after = float(torch.linalg.matrix_norm(result.double(), 2))
        if after <= bound * (1 + allowed):
            break
        target *= bound / after
    certified = after <= bound * (1 + allowed)
    return result, torch.tensor([k > 0, k, largest, certified], dtype=torch.float64)
