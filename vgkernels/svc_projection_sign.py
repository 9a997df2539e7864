"""Singular value clipping by matrix products alone: the algorithm of the CUDA kernels, in plain torch on any device.

With G = W W^T / c^2, A = G - I and S = sign(A):  P = A (I + S) / 2,  W' = (I + P)^(-1/2) W.

S is iterated by the quintics of Amsel, Persson, Musco, Gower: The Polar Express, arXiv 2505.16932; the inverse root by
quintics of the same family with p(1) = 1, so that where P is 0 nothing moves. What is inside already is certified by
squaring G. Decides the coefficients, the steps and what is computed in float64; csrc/svc_projection/*_cuda.cu follow it
step by step, with sums in another order.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

# Float32 products lose too much of what is far below the largest singular value: up to 7e-7 of the result where that is
# 2 bounds, 1.5e-6 where it is 3. Wider spectra, and bounds whose fourth powers leave float32, take float64.
WIDE = 2.0
LEAST_BOUND, LARGEST_BOUND = 1e-6, 1e6
LARGEST_TRACE = 1e150  # of W W^T; a matrix with a larger one counts as not finite
ROUNDS = 2  # a projection, and one more where the result's certificate fails
SIGN_STEPS, SIGN_STEPS_FLOAT, SIGN_STEPS_WIDE = 26, 13, 20  # float64; float32; float64 products for float32 weights
SQUARINGS = {torch.float32: 22, torch.float64: 48}
RESOLUTION = 0.0285  # log2(1.02): squaring goes on until the largest eigenvalue is known to 2 %
INSIDE, CLIPPED, NONFINITE = 0.0, 1.0, 2.0


def project_by_sign(matrix: Tensor, bound: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """The (m, n) matrix, m <= n, with singular values cut at `bound`, and its report: SvcReport's fields in float64.

    A matrix with no singular value above bound * (1 + tolerance) is returned itself. Reads norms back to decide, so it
    synchronises with a GPU; there, torch's float32 products must not be TF32.
    """
    result, clipped, largest = matrix, 0.0, math.nan
    limit = 2 * math.log2(1 + tolerance)
    in_range = matrix.dtype != torch.float64 and LEAST_BOUND <= bound <= LARGEST_BOUND
    for rounds in range(ROUNDS + 1):
        arithmetic = torch.float32 if in_range else torch.float64
        gram, high = _measure(result, bound, limit, arithmetic)
        if arithmetic == torch.float32 and not high <= max(limit, 2 * math.log2(WIDE)):  # NaN too
            arithmetic = torch.float64
            gram, high = _measure(result, bound, limit, arithmetic)
        if math.isnan(high):
            if rounds == 0:
                return matrix, _report(NONFINITE, 0, math.nan, 0, matrix)
            break
        if rounds == 0:
            largest = bound * 2 ** (high / 2)
        if high <= limit:
            return result, _report(CLIPPED if rounds else INSIDE, clipped, largest, 1, matrix)
        if rounds < ROUNDS:
            positive, above, high = _positive_part(gram, high, matrix.dtype)
            clipped = clipped if rounds else above
            change = _inverse_root(positive, high)
            if not change.isfinite().all():
                break
            values = result.to(arithmetic)
            result = (values + change @ values).to(matrix.dtype)
    return result, _report(CLIPPED, clipped, largest, 0, matrix)


def _report(state: float, clipped: float, largest: float, certified: float, matrix: Tensor) -> Tensor:
    return torch.tensor([state, clipped, largest, certified], dtype=torch.float64, device=matrix.device)


# ---- the certificate ----


def _measure(matrix: Tensor, bound: float, limit: float, arithmetic: torch.dtype) -> tuple[Tensor, float]:
    """G = W W^T / bound^2 and log2 of an upper bound of its norm, which is at most `limit` iff no value is above it.

    X = G^(2^k), held scaled by powers of two: ||X||_F^(1/2^k) is an upper bound, divided by m^(1/2^(k+1)) a lower one.
    NaN: an entry of the matrix is not finite, or its square is not.
    """
    values = matrix.to(arithmetic)
    gram = _symmetric(values @ values.mT) * (1 / bound**2)
    trace = float(gram.diagonal().sum(dtype=torch.float64))
    if not trace * bound**2 <= LARGEST_TRACE:
        return gram, math.nan
    if trace == 0:
        return gram, -math.inf
    power, log2_scale = gram, 0.0
    for k in range(SQUARINGS[arithmetic] + 1):
        norm = float(torch.linalg.vector_norm(power, dtype=torch.float64))
        if k == 0 and not 0 < norm < math.inf:
            norm = trace
        high = log2_scale + math.log2(norm) / 2**k
        low = high - math.log2(len(gram)) / 2 ** (k + 1)
        beyond = arithmetic == torch.float32 and low > 2 * math.log2(WIDE)
        settled = high - low <= RESOLUTION and (arithmetic == torch.float64 or high <= 2 * math.log2(WIDE))
        if high <= limit or (low > limit and (beyond or settled)):
            break
        factor = math.frexp(norm)[1] - 1
        log2_scale += factor / 2**k
        scaled = power * 2.0**-factor
        power = _symmetric(scaled @ scaled)
    return gram, high


def _symmetric(square: Tensor) -> Tensor:
    """Its lower triangle, mirrored: the iterations are stable for exactly symmetric matrices only."""
    return square.tril() + square.tril(-1).mT


# ---- the projection ----


def _positive_part(gram: Tensor, high: float, dtype: torch.dtype) -> tuple[Tensor, float, float]:
    """P and the number of eigenvalues above 1; those of `gram` are at most 2^high. `dtype`: of the weights.

    Beyond the reach of the inverse root, P is that of a smaller multiple of `gram`: the next round goes on. The third
    value is `high` for that.
    """
    reach = 2 * math.log2(root_rows()[0][2]) - 0.01
    shrink = 2.0 ** -max(0, math.ceil(high - reach))
    high += math.log2(shrink)
    size = 2.0 ** math.ceil(math.log2(max(1.0, 2.0**high - 1)))  # a power of two, so that it cancels exactly
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    start = x = (gram * shrink - identity) * (2 / size)
    double_steps = SIGN_STEPS if dtype == torch.float64 else SIGN_STEPS_WIDE
    steps = double_steps if gram.dtype == torch.float64 else SIGN_STEPS_FLOAT
    for a, b, c, centre in sign_rows()[-steps:]:
        y = _symmetric(x @ x) - centre * identity
        x = _symmetric(x @ (a * identity + b * y + c * _symmetric(y @ y)))
    above = round((len(gram) + float(x.diagonal().sum(dtype=torch.float64))) / 2)
    return _symmetric(start @ ((size / 4) * (identity + x))), above, high


def _inverse_root(positive: Tensor, high: float) -> Tensor:
    """(I + P)^(-1/2) - I = E. Holds R too, I + R = (I + E)^2 (I + P): both are products with P, so small where P is."""
    identity = torch.eye(len(positive), dtype=positive.dtype, device=positive.device)
    rest, change = positive, torch.zeros_like(positive)
    rows = root_rows()[: None if positive.dtype == torch.float64 else -1]
    first = max(i for i, row in enumerate(rows) if i == 0 or 2 * math.log2(row[2]) >= high + 0.001)
    for b, c, _ in rows[first:]:
        step = b * rest + c * _symmetric(rest @ rest)
        change = _symmetric(change @ (identity + step)) + step
        half = _symmetric(rest @ (identity + step)) + step
        rest = _symmetric(half @ (identity + step)) + step
    return change


# ---- coefficients ----

_CUSHION = 0.02407327424182761  # the paper's: l / u of the interval where a step's quintic is optimal is at least this
_SAFETY = 1.002  # rounding may lift a value above u, where the quintic would grow it twelvefold a step


@functools.cache
def sign_rows() -> tuple[tuple[float, float, float, float], ...]:
    """(a, b, c, t) of x -> x (a + b y + c y^2), y = x^2 - t, composed on |x| <= 2; a shorter run takes the last ones.

    From |x| = 8e-15, in the last 13 from 9e-7; |result| is 1 to 1e-15. With t amid the values of x^2 little cancels.
    """
    rows, low, high = [], 8e-15, 2.0
    for _ in range(SIGN_STEPS):
        a, b, c = _quintic(max(low, _CUSHION * high), high)
        safety = _SAFETY if low < 0.5 else 1.0
        lift = 2 / (_odd(a, b, c, low) + _odd(a, b, c, high))
        a, b, c = a * lift, b * lift, c * lift
        a, b, c = a / safety, b / safety**3, c / safety**5
        centre = (low**2 + high**2) / 2
        rows.append((a + centre * (b + centre * c), b + 2 * centre * c, c, centre))
        low = _odd(a, b, c, low)
        high = 2 - low
    return tuple(rows)


@functools.cache
def root_rows() -> tuple[tuple[float, float, float], ...]:
    """(b, c, u) of steps y -> y (1 + b r + c r^2), r = y^2 - 1, from [1, u] to [1, the next u], down to 1."""
    rows, high = [], 1.4e6
    while True:
        low = max(1.0, _CUSHION * high)
        a, b, c = _quintic(low, high)
        lift = 1 / _odd(a, b, c, 1.0)
        rows.append(((b + 2 * c) * lift, c * lift, high))
        if high - 1 < 1e-6:
            return tuple(rows)
        high = (2 - _odd(a, b, c, low)) * lift


def _odd(a: float, b: float, c: float, x: float) -> float:
    return x * (a + x * x * (b + x * x * c))


def _quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic nearest to 1 on [low, high], by Remez: its error is +-E in turn at low, q, r and high."""
    if low / high >= 1 - 1e-5:  # the limit; the system is nearly singular
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    q, r, a, b, c = (3 * low + high) / 4, (low + 3 * high) / 4, 0.0, 0.0, 0.0
    for _ in range(12):  # it converges quadratically
        points = np.array([low, q, r, high]) / high
        system = np.stack([points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], 1)
        a, b, c, _ = (float(value) for value in np.linalg.solve(system, np.ones(4)))
        root = math.sqrt(9 * b * b - 20 * a * c)
        q, r = high * math.sqrt((-3 * b - root) / (10 * c)), high * math.sqrt((-3 * b + root) / (10 * c))
    return a / high, b / high**3, c / high**5
