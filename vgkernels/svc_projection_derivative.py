"""First and second derivative of the projection onto the matrices whose singular values are at most a bound.

    P(W) = h(G) W,   G = W W^T = Q diag(l) Q^T,   h(l) = min(1, l^(-1/2))        W in units of the bound, m <= n
    P'(W)[g] = h(G) g + D(Y_g) W                               Y_g = g W^T + W g^T,   D(Y) = Q (K o Q^T Y Q) Q^T
    P''(W)[g, u] = (D(u g^T + g u^T) + D2(Y_g, Y_u)) W + D(Y_u) g + D(Y_g) u

K_ij = h[l_i, l_j] and D2's h[l_i, l_k, l_j] are divided differences, written without a difference of two eigenvalues on
one side of the bound: ties are harmless. P is a gradient, so P' and P'' are symmetric in g, u: both serve as their own
transposes. Decides the arithmetic of the derivatives; when they are called is decided in svc_projection.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .svc_projection_matrix import tolerance

_WIDE = 16.0  # eigenvalues of a float32 Gram matrix beyond this blur those near 1: it is made in float64


def first_derivative(grad_out: Tensor, weight: Tensor, bound: float) -> Tensor:
    """P'(weight)[grad_out] for matrices (B, m, n) of float64 or float32; about 14 k m n flops for k clipped values."""
    return _each(lambda g, w: _first(g, _in_units(w, bound)), grad_out, weight)


def second_derivative(grad_grad: Tensor, grad_out: Tensor, weight: Tensor, bound: float) -> Tensor:
    """P''(weight)[grad_out, grad_grad] for matrices (B, m, n), in float64 and memory for m x m: right, but slow."""
    return _each(lambda u, g, w: _second(u, g, _in_units(w, bound)) / bound, grad_grad, grad_out, weight)


def _each(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    weight, out = tensors[-1], torch.empty(tensors[-1].shape, dtype=tensors[-1].dtype, device=tensors[-1].device)
    tall = weight.shape[-2] > weight.shape[-1]
    with torch.autocast(weight.device.type, enabled=False):
        for result, *matrices in zip(out, *tensors, strict=True):
            result.copy_(function(*(matrix.mT for matrix in matrices)).mT if tall else function(*matrices))
    return out


def _in_units(w: Tensor, bound: float) -> Tensor:
    """W / bound, in float64 where float32 can't hold that."""
    scaled = w / bound
    return scaled if scaled.isfinite().all() else w.double() / bound


def _first(g: Tensor, w: Tensor) -> Tensor:
    lam, q, k = _spectrum(w)
    if k == 0:
        return g
    g, w, q1 = g.to(lam.dtype), w.to(lam.dtype), q[:, -k:]
    g1, w1, s1 = q1.mT @ g, q1.mT @ w, lam[-k:, None].sqrt()  # (k, n), (k, n), (k, 1)
    half = _slopes(lam, k) * ((g1 @ w.mT + w1 @ g.mT) @ q)  # (k, m): the clipped rows of K o Q^T Y Q
    half[:, -k:] /= 2  # the block of two clipped ones is in both halves of D = Q1 half + (Q1 half)^T
    half = half @ q.mT
    return g + q1 @ (half @ w - (1 - 1 / s1) * g1) + half.mT @ w1


def _second(u: Tensor, g: Tensor, w: Tensor) -> Tensor:
    lam, q, k = _spectrum(w, wide=True)
    if k == 0:
        return torch.zeros_like(w)
    u, g, w = (q.mT @ matrix.double() for matrix in (u, g, w))  # in the basis of eigenvectors from here on
    slopes = lam.new_zeros(q.shape)
    slopes[-k:] = rows = _slopes(lam, k)
    slopes[:, -k:] = rows.mT
    y_u, y_g, u_g = (a @ b.mT + b @ a.mT for a, b in ((u, w), (g, w), (u, g)))
    curved = _curved(lam, k, slopes, y_u, y_g)
    return q @ ((slopes * u_g + curved) @ w + (slopes * y_u) @ g + (slopes * y_g) @ u)


def _spectrum(w: Tensor, wide: bool = False) -> tuple[Tensor, Tensor, int]:
    """Eigenvalues of W W^T in ascending order, their vectors as columns, and how many of them are clipped."""
    limit = (1 + tolerance(w.dtype, w.shape[0])) ** 2
    w = w.double() if wide or (w.is_cuda and torch.backends.cuda.matmul.allow_tf32) else w
    gram = w @ w.mT
    if w.dtype == torch.float32 and not gram.abs().sum(1).max() <= _WIDE:  # no eigenvalue is above that sum
        w = w.double()
        gram = w @ w.mT
    lam, q = torch.linalg.eigh(gram)
    return lam, q, int((lam > limit).sum())


def _slopes(lam: Tensor, k: int) -> Tensor:
    """h[l_i, l_j] for the k clipped i, (k, m); it is 0 for two that are not clipped."""
    s = lam[-k:, None].sqrt()
    over, under = s - 1, 1 - lam[:-k].clamp(max=1)
    return torch.cat([-over / (s * (over * (s + 1) + under)), -1 / (s * s.mT * (s + s.mT))], dim=1)


def _curved(lam: Tensor, k: int, slopes: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """sum_j h[l_a, l_j, l_b] (y_aj v_jb + v_aj y_jb), one j at a time."""
    m = len(lam)
    clipped = torch.arange(m, device=lam.device) >= m - k
    lam = torch.where(clipped, lam, lam.clamp(max=1))
    s = torch.where(clipped, lam, 1).sqrt()
    a, b = s[:, None], s[None]
    opposite = clipped[:, None] != clipped  # a and b lie on two sides of the bound
    gap = torch.where(opposite, lam[:, None] - lam, 1)
    both = clipped[:, None] & clipped
    total = torch.zeros_like(slopes)
    for j in range(m):
        across = (slopes[:, j, None] - slopes[j]) / gap
        if j >= m - k:  # beside a clipped j: two more clipped ones, or two others
            three = (a + b + s[j]) / (a * b * s[j] * (a + b) * (a + s[j]) * (b + s[j]))
            alike = torch.where(both, three, (slopes - slopes[j]) / torch.where(clipped, 1, lam - lam[j])[:, None])
        else:
            alike = (slopes - slopes[j]) / torch.where(clipped, lam - lam[j], 1)[:, None]  # 0 for two others
        total += torch.where(opposite, across, alike) * (y[:, j, None] * v[j] + v[:, j, None] * y[j])
    return total
