"""Decides what the kernels of sliced_wasserstein must compute, in numpy's float64, and how tests call those on CUDA.

A Case holds one call's arrays. What is tried is decided in test_sliced_wasserstein_emulated.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

EMULATED = (
    "csrc/sliced_wasserstein/sliced_wasserstein_cuda.cu",
    "csrc/sliced_wasserstein/sliced_wasserstein_couple_cuda.cu",
    "csrc/sliced_wasserstein/sliced_wasserstein_product_cuda.cu",
    "csrc/sliced_wasserstein/sliced_wasserstein_sort_cuda.cu",
    "csrc/sliced_wasserstein/sliced_wasserstein_tensor_cuda.cu",
    "tests/native/sliced_wasserstein_bindings.cpp",
)
VALUE_ERROR = {"float64": 1e-12, "float32": 2e-6}  # relative; the specification's figure for float32
GRADIENT_ERROR = {"float64": 1e-12, "float32": 2e-6}  # of the norm, where no two samples change places


def pieces(n, m):
    """The coupling of n with m equal weights, by the definition: (i, j, weight) of every piece, in integers."""
    cuts = sorted({*range(0, n * m + 1, m), *range(0, n * m + 1, n)})
    low, high = np.array(cuts[:-1]), np.array(cuts[1:])
    return low // m, low // n, (high - low) / (n * m)


def one_direction(s, t, p):
    """W_p^p of two rows of numbers and its derivatives; ties in order of the index, the derivative of |0|^p is 0."""
    s_order, t_order = np.argsort(s + 0.0, kind="stable"), np.argsort(t + 0.0, kind="stable")
    i, j, weight = pieces(len(s), len(t))
    d = s[s_order[i]] - t[t_order[j]]
    slope = np.where(d == 0, 0, weight * p * np.abs(d) ** (p - 1) * np.sign(d))
    grad_s, grad_t = np.zeros(len(s)), np.zeros(len(t))
    np.add.at(grad_s, s_order[i], slope)
    np.add.at(grad_t, t_order[j], -slope)
    return math.fsum(weight * np.abs(d) ** p), grad_s, grad_t


@dataclass
class Case:
    x: np.ndarray  # (B, N, D)
    y: np.ndarray  # (B, M, D)
    theta: np.ndarray | None  # (G, L, D); None: x and y are projected
    p: float = 2.0

    @property
    def sizes(self):
        groups, directions, _ = (1, self.x.shape[2], 0) if self.theta is None else self.theta.shape
        return [self.x.shape[0], self.x.shape[1], self.y.shape[1], self.x.shape[2], directions, groups]

    def directions_of(self, entry):
        batch, _, _, dim, _, groups = self.sizes
        return np.eye(dim) if self.theta is None else self.theta[entry * groups // batch].astype(np.float64)

    def expected(self):
        """value (B), grad_x, grad_y, grad_projections (B, L, D), in float64."""
        batch, _, _, dim, directions, _ = self.sizes
        value, grad_x, grad_y = np.zeros(batch), np.zeros(self.x.shape), np.zeros(self.y.shape)
        grad_theta = np.zeros((batch, directions, dim))
        for b in range(batch):
            x, y, theta = self.x[b].astype(np.float64), self.y[b].astype(np.float64), self.directions_of(b)
            s, t = x @ theta.T, y @ theta.T
            rows = [one_direction(s[:, k], t[:, k], self.p) for k in range(directions)]
            by_s, by_t = (np.array([row[i] for row in rows]) / directions for i in (1, 2))  # (L, N), (L, M)
            value[b] = math.fsum(row[0] for row in rows) / directions
            grad_x[b], grad_y[b], grad_theta[b] = by_s.T @ theta, by_t.T @ theta, by_s @ x + by_t @ y
        return value, grad_x, grad_y, grad_theta

    def run(self, native, wanted="xyt", poison=0xFF, shift=0):
        """What the kernels write into arrays of another number: value and the gradients in `wanted`, else None."""
        batch, _, _, dim, directions, _ = self.sizes
        shapes = {"x": self.x.shape, "y": self.y.shape, "t": (batch, directions, dim)}
        if self.theta is None:
            wanted = wanted.replace("t", "")
        dtype = self.x.dtype
        outputs = [np.full(batch, 7.5, dtype)]
        outputs += [np.full(shapes[name], 7.5, dtype) if name in wanted else None for name in "xyt"]
        arrays = [np.ascontiguousarray(array) if array is not None else None for array in (self.x, self.y, self.theta)]
        native.distance(dtype.name, *arrays, self.sizes, self.p, outputs, poison, shift)
        return outputs


def gaussian(batch, n, m, dim, directions, groups=1, dtype="float32", p=2.0, seed=0):
    draw = np.random.default_rng(seed)
    theta = draw.standard_normal((groups, directions, dim))
    theta /= np.linalg.norm(theta, axis=-1, keepdims=True)
    x, y = draw.standard_normal((batch, n, dim)), 1.5 * draw.standard_normal((batch, m, dim)) + 0.3
    return Case(x.astype(dtype), y.astype(dtype), theta.astype(dtype), p)


def grid(batch, n, m, dim, directions, groups=1, dtype="float32", p=2.0, seed=0, levels=3):
    """Small integers, so that every projection is exact and many tie; zeros of both signs."""
    draw = np.random.default_rng(seed)
    arrays = [draw.integers(-levels, levels + 1, s) for s in ((batch, n, dim), (batch, m, dim))]
    x, y = (np.where(draw.random(a.shape) < 0.5, a, -0.0 + a * 1.0).astype(dtype) for a in arrays)
    x[x == 0] = -0.0
    return Case(x, y, draw.integers(-2, 3, (groups, directions, dim)).astype(dtype), p)


def projected(case):
    """The same case, projected before: for calls without projections."""
    batch = case.sizes[0]
    x, y = (np.stack([a[b] @ case.directions_of(b).T for b in range(batch)]) for a in (case.x, case.y))
    return Case(x.astype(case.x.dtype), y.astype(case.x.dtype), None, case.p)


def check(native, case, exact_order=True, poison=0xFF, shift=0):
    """Value and gradients against float64; the value has the same bits with and without gradients."""
    dtype = case.x.dtype.name
    (alone, *_), outputs = case.run(native, "", poison, shift), case.run(native, "xyt", poison, shift)
    assert alone.tobytes() == outputs[0].tobytes()
    expected = case.expected()
    np.testing.assert_allclose(outputs[0], expected[0], rtol=VALUE_ERROR[dtype], atol=1e-300)
    for name, got, wanted in zip("xyt", outputs[1:], expected[1:], strict=True):
        if got is None:
            continue
        assert np.isfinite(got).all(), f"gradient to {name}"
        if exact_order:
            size = np.linalg.norm(wanted, axis=(1, 2))  # per entry
            error = np.linalg.norm(got - wanted, axis=(1, 2))
            assert (error <= GRADIENT_ERROR[dtype] * size).all(), f"gradient to {name}: {error / size}"
    return outputs


def check_orders(native, cases, orders, settings):
    """The same bits in every order of execution, whenever copies come, whatever was in the workspace."""
    for name, case in cases.items():
        for policy in settings:
            native.set_policy(**policy)
            digests = set()
            for schedule, poison, copies in orders:
                native.configure(schedule, poison, copies)
                outputs = case.run(native, poison=poison) + case.run(native, "", poison)
                digests.add(b"".join(array.tobytes() for array in outputs if array is not None))
            assert len(digests) == 1, f"order or poison changes the bits of {name} with {policy}"
    native.configure()


def small_cases():
    """For sanitizers and orders: what reaches every kernel when a block has 32 threads to sort with."""
    not_finite = gaussian(2, 30, 20, 3, 2)
    not_finite.x[0, 3, 1] = np.nan
    return {
        "aligned": gaussian(1, 70, 20, 68, 2),
        "not aligned": gaussian(1, 9, 5, 37, 3, p=1.5),
        "ties, more of y": grid(1, 20, 300, 3, 2),
        "double": grid(2, 200, 130, 65, 2, dtype="float64", p=1.0),
        "projected": projected(gaussian(2, 40, 37, 3, 5)),
        "not finite": not_finite,
    }
