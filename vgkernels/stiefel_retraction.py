"""Back to the Stiefel manifold after a step: the matrix with orthonormal columns (or rows) that belongs to a weight.

    polar: W (W^T W)^(-1/2), the nearest one, by X <- X (3 I - X^T X) / 2 from X = W / sqrt(bound of |W^T W|)
    qr:    Q of W = Q R with a positive diagonal of R

Source: Wu, Huang et al., Sliced Wasserstein Generative Models, arXiv 1706.02631, section 3 (QR); Bjorck and Bowie, An
Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix, 1971 (polar). Decides when the iteration
stops and what is refused: neither method ever flips the sign of a column that a small step leaves where it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import accumulation_dtype, check_not_empty, check_option, check_tensor, overlaps

_OP = "stiefel_retraction_"
_ORTHOGONALITY = {torch.float32: 1e-6, torch.float64: 1e-12}  # largest entry of X^T X - I
_STEPS = 24  # singular values up to 1.5^24 = 17000 times smaller than the scale; what is beyond takes an SVD


@torch.no_grad()
def stiefel_retraction_(weight: Tensor, method: str = "polar") -> Tensor:
    """Makes the matrices in `weight` orthonormal, in place: the columns of tall ones, the rows of wide ones.

    Args:
        weight: (..., n, m) of full rank, float64, float32, float16 or bfloat16, of any strides that don't overlap; a
            parameter may require grad.
        method: "polar", the nearest orthonormal matrix, by matrix products alone. "qr", Gram-Schmidt's: the first
            column keeps its direction.

    Returns:
        `weight` itself.

    Raises:
        TypeError: not a tensor, or of an integer, complex or other dtype.
        ValueError: fewer than two dimensions, no rows or columns, overlapping strides, an unknown method, meta.
        RuntimeError: a matrix that is not of full rank, or holds NaN or Inf. Nothing is modified in any.

    Arithmetic: float64 for float64, otherwise float32, rounded once; entries of W^T W differ from the identity's by at
    most 1e-6, for float64 1e-12, before that. Polar takes 3 steps near the manifold and about 20 from a random square
    matrix; singular values far apart take torch.linalg.svd in float64. On CUDA every step waits for the device.

    Differentiability: none. Determinism: that of torch's products.

    Source: SWGAN (arXiv 1706.02631), section 3.

    Example:
        >>> import torch, vgkernels
        >>> vgkernels.stiefel_retraction_(torch.tensor([[-2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).round(decimals=3)
        tensor([[-1.,  0.],
                [ 0.,  1.],
                [ 0.,  0.]])
    """
    check_tensor(_OP, "weight", weight)
    check_option(_OP, "method", method, ("polar", "qr"))
    if weight.dim() < 2:
        raise ValueError(f"{_OP}: expected weight of shape (..., n, m), got {tuple(weight.shape)}")
    check_not_empty(_OP, "weight", weight, {"n": weight.shape[-2], "m": weight.shape[-1]})
    if overlaps(weight):
        raise ValueError(
            f"{_OP}: expected weight without elements that share memory, got shape {tuple(weight.shape)} with strides "
            f"{weight.stride()}"
        )
    if weight.is_meta:
        raise ValueError(f"{_OP}: expected weight on a device that holds data, got meta")
    if weight.numel() == 0:
        return weight
    if not weight.isfinite().all():
        raise RuntimeError(f"{_OP}: expected finite weight, got NaN or Inf; nothing was modified")
    dtype = accumulation_dtype(weight.dtype)
    if torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float64  # products of TF32 or bfloat16 would not converge
    wide = weight.shape[-2] < weight.shape[-1]
    matrices = weight.to(dtype).flatten(0, -3) if weight.dim() > 2 else weight.to(dtype).unsqueeze(0)
    largest = matrices.abs().amax((-2, -1), keepdim=True)
    matrices = matrices / torch.where(largest > 0, largest, 1)  # norms of huge ones would overflow
    with torch.autocast(weight.device.type, enabled=False):
        result = (_polar if method == "polar" else _qr)(matrices.mT if wide else matrices)
    weight.copy_((result.mT if wide else result).reshape(weight.shape))
    return weight


def _polar(matrices: Tensor) -> Tensor:
    """Of tall ones (B, n, m)."""
    x, identity = matrices, torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    gram = x.mT @ x
    bound = torch.minimum(gram.abs().sum(-1).amax(-1), torch.linalg.matrix_norm(gram))  # of its norm
    bound = torch.where(bound > 0, bound, 1)[:, None, None]
    x, gram = x / bound.sqrt(), gram / bound
    error = (gram - identity).abs().amax((-2, -1))
    for _ in range(_STEPS):
        if (error <= _ORTHOGONALITY[x.dtype]).all():
            return x
        x = x @ (1.5 * identity - 0.5 * gram)
        gram = x.mT @ x
        error = (gram - identity).abs().amax((-2, -1))
    slow = (error > _ORTHOGONALITY[x.dtype]).nonzero()[:, 0]
    if len(slow):
        u, s, vh = torch.linalg.svd(matrices[slow].double(), full_matrices=False)
        _check_rank(s, 4, matrices, slow)
        x[slow] = (u @ vh).to(x.dtype)
    return x


def _qr(matrices: Tensor) -> Tensor:
    q, r = torch.linalg.qr(matrices)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    _check_rank(diagonal.abs(), 64, matrices, torch.arange(len(matrices)))
    return q * torch.where(diagonal < 0, -1.0, 1.0).unsqueeze(-2)


def _check_rank(values: Tensor, ulps: int, matrices: Tensor, places: Tensor) -> None:
    """RuntimeError if the least of a matrix' singular values, or of R's diagonal, is as small as rounding makes one.

    On matrices of 8 to 700 rows that are short of full rank it was below 0.5 and 15 times epsilon of the largest.
    """
    bad = (values.amin(-1) <= ulps * torch.finfo(matrices.dtype).eps * values.amax(-1)).nonzero()[:, 0]
    if len(bad):
        which = "" if len(matrices) == 1 else f" in matrix {int(places[bad[0]])} of {len(matrices)}"
        raise RuntimeError(
            f"{_OP}: expected weight of full rank, got a singular value of rounding's size{which}; nothing was modified"
        )
