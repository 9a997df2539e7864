"""Decides what svc_projection must compute, in numpy's float64, and how tests call its kernels on numpy arrays.

A Weight is one matrix of a call, laid in memory in one of LAYOUTS. What is tried is decided in
test_svc_projection_emulated.py and test_svc_projection_cpu_native.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from native.kernels import narrow, widen

EMULATED = (
    "csrc/svc_projection/svc_projection_cuda.cu",
    "csrc/svc_projection/svc_projection_sign_cuda.cu",
    "csrc/svc_projection/svc_projection_weights_cuda.cu",
    "tests/native/svc_projection_bindings.cpp",
)
INSIDE, CLIPPED, NONFINITE = 0, 1, 2
# The specification's figures, in bounds: relative error in Frobenius norm, largest singular value less 1.
ERROR = {"float64": 1e-12, "float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ABOVE = {"float64": 1e-12, "float32": 4e-6, "float16": 1.01 * 2.0**-11, "bfloat16": 1.01 * 2.0**-8}
WIDE_ERROR = 2e-5  # float32, where the spectrum is 1e-6..1e2
LAYOUTS = ("rows", "columns", "rows apart", "columns apart")

SPECTRA = {
    "few above 1": lambda m, draw: with_some(m // 10 + 1, draw.uniform(0, 1, m), draw.uniform(1, 1.5, m)),
    "half above 1": lambda m, draw: with_some(m // 2 + 1, draw.uniform(0.5, 1, m), draw.uniform(1.8, 1.99, m)),
    "to 3.9": lambda m, draw: with_some(m // 2 + 1, draw.uniform(0, 1, m), draw.uniform(1, 3.9, m)),
    "cluster 0.99..1.01": lambda m, draw: draw.uniform(0.99, 1.01, m),
    "cluster 1 +- 1e-4": lambda m, draw: draw.uniform(1 - 1e-4, 1 + 1e-4, m),
    "cluster 1 +- 1e-6": lambda m, draw: draw.uniform(1 - 1e-6, 1 + 1e-6, m),
    "half at 1 +- 1e-3": lambda m, draw: with_some(
        m // 2 + 1, draw.uniform(0, 1, m), draw.uniform(1 - 1e-3, 1 + 1e-3, m)
    ),
    "wide": lambda m, draw: np.geomspace(1e2, 1e-6, m),
    "rank-deficient": lambda m, draw: with_some(m // 4 + 1, np.zeros(m), draw.uniform(0.5, 2, m)),
    "all equal": lambda m, draw: np.full(m, 1.5),
    "all inside": lambda m, draw: draw.uniform(0, 0.999, m),
    "all exactly 1": lambda m, draw: np.ones(m),
}


def with_some(count, values, other):
    return np.concatenate([other[:count], values[count:]])


def matrix(values, n, draw):
    """(m, n) with those singular values between random orthogonal factors."""
    m = len(values)
    left, right = (np.linalg.qr(draw.standard_normal((size, m)))[0] for size in (m, n))
    return (left * values) @ right.T


def clip(values, bound):
    u, s, vh = np.linalg.svd(values, full_matrices=False)
    return (u * np.minimum(s, bound)) @ vh


@dataclass
class Weight:
    values: np.ndarray  # (m, n) in float64; what is stored is these, rounded
    dtype: str = "float32"
    bound: float = 1.0
    layout: str = "rows"
    memory: np.ndarray = field(init=False)  # changed in place by a call
    before: np.ndarray = field(init=False)

    def __post_init__(self):
        stored = narrow(self.values, self.dtype)
        lines = stored if self.layout.startswith("rows") else stored.T
        if self.layout.endswith("apart"):  # what lies between the lines belongs to others
            lines = np.concatenate([lines, np.full((len(lines), 3), 7, lines.dtype)], 1)
        self.memory = np.ascontiguousarray(lines)
        self.before = self.memory.copy()

    def stored(self, memory):
        m, n = self.values.shape
        return widen(memory[:, :n] if self.layout.startswith("rows") else memory[:, :m].T, self.dtype)

    def argument(self):
        pitch, rows = self.memory.shape[1], self.layout.startswith("rows")
        return (self.memory, *self.values.shape, pitch if rows else 1, 1 if rows else pitch, self.bound)

    @property
    def untouched(self):
        return self.memory.tobytes() == self.before.tobytes()

    def check(self, row, tolerance):
        """The result and its row of the report, against the clipped SVD of what was stored."""
        before, after, what = self.stored(self.before), self.stored(self.memory), self.summary()
        values = np.linalg.svd(before, compute_uv=False)
        expected = clip(before, self.bound)
        if self.layout.endswith("apart"):
            between = slice(self.values.shape[self.layout.startswith("rows")], None)
            assert self.memory[:, between].tobytes() == self.before[:, between].tobytes(), f"{what}: wrote beside"
        inside = values[0] <= self.bound * (1 + 0.99 * tolerance)
        assert row[0] == (INSIDE if inside else CLIPPED) or abs(values[0] / self.bound - 1 - tolerance) < tolerance, (
            what
        )
        assert row[3] == 1, f"{what}: not certified"
        if row[0] == INSIDE:
            assert self.untouched, f"{what}: inside and changed"
            assert row[1] == 0
            assert values[0] * (1 - 1e-6) <= row[2] <= (1 + tolerance) * self.bound, what
            return
        above = np.linalg.svd(after, compute_uv=False)[0] / self.bound - 1
        error = np.linalg.norm(after - expected) / np.linalg.norm(expected)
        most = ERROR[self.dtype]
        if self.dtype == "float32" and values[0] > 4 * self.bound:
            most = WIDE_ERROR
        assert error <= most, f"{what}: relative error {error}"
        assert above <= ABOVE[self.dtype], f"{what}: largest singular value 1 + {above}"
        assert values[0] * (1 - 1e-6) <= row[2] <= values[0] * 1.011, f"{what}: largest {row[2]} of {values[0]}"
        nearly = [np.sum(values > self.bound * (1 + shift)) for shift in (4e-6, -4e-6)]
        assert nearly[0] <= row[1] <= nearly[1], f"{what}: {row[1]} of {nearly} clipped"

    def summary(self):
        return f"{self.values.shape} {self.dtype} {self.layout} {self.bound}"


def weights_of(spectrum, shapes, dtype="float32", bound=1.0, layout="rows", seed=0):
    draw = np.random.default_rng(seed)
    return [Weight(bound * matrix(SPECTRA[spectrum](m, draw), n, draw), dtype, bound, layout) for m, n in shapes]


def project(native, weights, skip=False, poison=0xFF):
    return native.project(weights[0].dtype, [weight.argument() for weight in weights], skip, poison)


def check(native, weights):
    """One call's results, then that a second call changes nothing and finds all inside."""
    for weight, row in zip(weights, project(native, weights), strict=True):
        weight.check(row, native.tolerance(weight.dtype, len(weight.values)))
    once = [weight.memory.copy() for weight in weights]
    again = project(native, weights)
    assert (again[:, 0] == INSIDE).all()
    assert [weight.memory.tobytes() for weight in weights] == [memory.tobytes() for memory in once]


def mixed(dtype, seed=3):
    """A call with a layer of every fate: inside, clipped, wide, not finite; of one row and of several tiles."""
    draw = np.random.default_rng(seed)
    broken = draw.standard_normal((6, 9))
    broken[4, 5] = np.nan
    shapes = {"all inside": (5, 8), "few above 1": (34, 41), "wide": (9, 12), "all equal": (1, 7)}
    weights = [Weight(matrix(SPECTRA[name](m, draw), n, draw), dtype) for name, (m, n) in shapes.items()]
    return [*weights, Weight(broken, dtype), Weight(3 * matrix(np.ones(3), 4, draw), dtype, 0.5, "columns")]


def check_orders(native, dtype, orders, layers=slice(None)):
    """The same bits in every order of execution, whatever was in the workspace."""
    digests = set()
    for schedule, poison in orders:
        native.configure(schedule, poison)
        weights = mixed(dtype)[layers]
        report = project(native, weights, skip=True, poison=poison)
        fates = [INSIDE, CLIPPED, CLIPPED, CLIPPED, NONFINITE, CLIPPED]
        assert report[:, 0].tolist() == fates[layers]
        digests.add(b"".join([report.tobytes(), *(weight.memory.tobytes() for weight in weights)]))
    assert len(digests) == 1, f"order or poison changes the bits of {dtype}"
