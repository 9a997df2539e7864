"""svc_projection_ and svc_projection beside the loop over torch.linalg.svd that they replace, and beside Gram matrix
and eigh in plain torch. Only sizes, spectra, peers and the least work; how they are timed is the harness's business."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import vgkernels
from benchmarks.harness import Case
from benchmarks.measure import Cost

Shapes = tuple[tuple[int, int], ...]


def above(case: Case, rows: int) -> int:
    """How many singular values of a matrix with `rows` rows exceed the bound: that share of them, at least one."""
    return math.ceil(float(case.variant) * rows)


def matrix(rows: int, columns: int, over: int, rng: torch.Generator) -> Tensor:
    """U diag(s) V^T with random orthonormal U and V; `over` singular values from 1.05 to 1.5, the others 0.05 to 0.95.

    Evenly spaced, and none near the bound, where the derivative has a kink."""
    u = torch.linalg.qr(torch.randn(rows, rows, generator=rng))[0]
    v = torch.linalg.qr(torch.randn(columns, rows, generator=rng))[0]
    return (u * torch.cat([torch.linspace(1.5, 1.05, over), torch.linspace(0.95, 0.05, rows - over)])) @ v.T


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    dtype = getattr(torch, case.dtype)
    return tuple(matrix(m, n, above(case, m), rng).to(device, dtype) for m, n in case.shape)


def ours(*weights: Tensor, in_place: bool) -> Tensor | None:
    if not in_place:
        return vgkernels.svc_projection(weights[0])
    vgkernels.svc_projection_(weights)
    return None


def svd(*weights: Tensor, in_place: bool) -> Tensor | None:
    """TGAN's own: take it apart, clip, put it together again; 16 bits through float32, as torch.linalg needs."""
    for weight in weights:
        u, s, vh = torch.linalg.svd(_single(weight), full_matrices=False)
        clipped = (u * s.clamp(max=1)) @ vh
        if not in_place:
            return clipped
        weight.copy_(clipped)
    return None


def gram(*weights: Tensor, in_place: bool) -> Tensor | None:
    """Without an SVD: W - U (1 - 1 / s) U^T W, where U are the eigenvectors of W W^T with an eigenvalue s^2 above 1."""
    return _by_gram(torch.linalg.eigh, weights, in_place)


def cupy(*weights: Tensor, in_place: bool) -> Tensor | None:
    """`gram` with CuPy's eigen-solve, which calls cuSOLVER in another way than torch; no gradient."""
    import cupy  # on GPU machines

    def eigh(matrix: Tensor) -> tuple[Tensor, ...]:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return tuple(torch.from_dlpack(array) for array in cupy.linalg.eigh(cupy.from_dlpack(matrix)))

    return _by_gram(eigh, weights, in_place)


def _by_gram(eigh: Callable[[Tensor], Any], weights: Sequence[Tensor], in_place: bool) -> Tensor | None:
    for weight in weights:
        single = _single(weight)
        values, vectors = eigh(single @ single.T)
        u, scale = vectors[:, values > 1], 1 - values[values > 1].rsqrt()
        if not in_place:
            return torch.addmm(single, u * scale, u.T @ single, alpha=-1)
        if len(scale):
            single.addmm_(u * scale, u.T @ single, alpha=-1)
            weight.copy_(single)  # nothing to do but for 16 bits
    return None


def _single(weight: Tensor) -> Tensor:
    return weight.float() if weight.itemsize == 2 else weight


truth = svd  # in fp64: nothing of ours judges ours
PEERS = {"svd": svd, "gram": gram}
CUDA_PEERS = {"cupy": cupy}
BASELINE = "svd"


def cost(case: Case, direction: str) -> Cost:
    """Matrix products only, at half the flops where the result is symmetric; the eigen-solve is O(m^3), left out.

    An m x n layer with k singular values above the bound. Forward: W W^T, m^2 n; where k > 0 also U^T W and U times it,
    4 k m n. Bytes: W once for the Gram matrix, once more to correct it, and the result once.
    Backward, U and W W^T being known: U^T G, G W^T U and W^T U, A^T W and the sum of both corrections, 14 k m n, or by
    full products if that is less, 4 (m + k) m n. Bytes: G and W twice, the result once.
    """
    if direction == "fwd+bwd":
        forward, backward = cost(case, "fwd"), cost(case, "bwd")
        return Cost(forward.bytes + backward.bytes, forward.flops + backward.flops, forward.unit)
    moved, flops = 0.0, 0.0
    for m, n in case.shape:
        k = above(case, m)
        if direction == "fwd":
            layer = of_layer(m, n, k, case.in_place)
            flops, moved = flops + layer.flops, moved + layer.bytes
        else:
            flops += m * n * min(14 * k, 4 * (m + k))
            moved += m * n * 5
    return Cost(moved * getattr(torch, case.dtype).itemsize, flops, "float64" if case.dtype == "float64" else "float32")


def of_layer(m: int, n: int, k: int, in_place: bool = True) -> Cost:
    """Forward, in flops and in numbers moved, not bytes."""
    return Cost(m * n * (3 if k or not in_place else 1), m * n * (m + 4 * k))


def tiny(case: Case) -> Case:
    """Odd sizes: for --check."""
    return dataclasses.replace(case, shape=tuple((min(m, 19), 19 if m == n else 61) for m, n in case.shape))


def _in_place(name: str, shapes: Shapes, share: float, goal: tuple[float, float] | None = None, **more: Any) -> Case:
    more |= {"goals": {"fwd": goal} if goal else {}, "options": {"in_place": True}, "directions": ("fwd",)}
    return Case(name, shapes, variant=f"{share}", in_place=True, **more)


TGAN: Shapes = ((64, 192), (128, 4096), (256, 8192), (512, 16384), (1, 8192))  # its critic, layer by layer
BIG: Shapes = ((1024, 1024), (512, 4608))  # an image critic's linear layer and 3x3 convolution
LAYER: Shapes = ((256, 8192),)

# Goals: (goal, stretch) against "svd"; everywhere else the goal is to be no slower than a peer.
CASES = [
    _in_place("TGAN critic, 10 % above", TGAN, 0.1, (16, 24), floor_goal=0.75),
    _in_place("TGAN critic, none above", TGAN, 0, (28, 38)),
    _in_place("1024x1024 + 512x4608, 10 % above", BIG, 0.1, (14, 14)),
    _in_place("1024x1024 + 512x4608, none above", BIG, 0, (32, 32)),
    _in_place("128x4096, 10 % above", ((128, 4096),), 0.1),
    _in_place("512x4608, 10 % above", ((512, 4608),), 0.1),
    _in_place("256x8192, 10 % above", LAYER, 0.1, dtype="float64"),
    _in_place("256x8192, 10 % above", LAYER, 0.1, dtype="bfloat16"),
    Case("256x8192, 10 % above, out of place", LAYER, variant="0.1", options={"in_place": False}),
]
