"""Decides what the CPU kernels of sliced_wasserstein must compute, without torch, and that any thread may do any part.

Called over ranges of units as threads would, on heap blocks of exact size (native/sliced_wasserstein_cpu_bindings.cpp);
the definition is in sliced_wasserstein_emulation.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from native.kernels import ISAS, SANITIZERS, compiling, load_or_skip, run_small_set
from sliced_wasserstein_emulation import Case, check, gaussian, grid, projected

SOURCES = (
    "csrc/sliced_wasserstein/sliced_wasserstein_cpu.cpp",
    "csrc/common/cpu_isa.cpp",
    "tests/native/sliced_wasserstein_cpu_bindings.cpp",
)
SPLITS = ((1, True), (2, False), (3, True), (7, False), (10**4, True))  # pieces, reversed
# Rows around the groups of 8 and 16 and the chunks of 64 that the network sorts, up to 33 of them.
ROWS = (1, 2, 7, 8, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 200, 257, 511, 513, 1025, 1100, 2049)
# Directions around lines of 8 and 16 and panels of 48; coordinates around lines, chains of 64 and depths of 512.
PANELS = ((1, 1), (7, 3), (16, 8), (17, 15), (33, 16), (48, 17), (49, 63), (95, 65), (100, 147), (3, 511), (20, 1030))


@pytest.fixture(scope="module")
def native():
    return load_or_skip("sliced_wasserstein_cpu_native", SOURCES)


@dataclass
class Kernels:
    """The CPU kernels as sliced_wasserstein_emulation.py calls kernels; they take no workspace."""

    native: object
    weights: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    pieces: int = 1
    backwards: bool = False

    def distance(self, dtype, x, y, theta, sizes, p, outputs, poison, shift):
        self.native.distance(dtype, x, y, theta, sizes, p, outputs, self.weights, self.pieces, self.backwards)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_numbers_of_samples(native, dtype, rows):
    for n, m in ((rows, rows), (rows, 40), (40, rows)):
        check(Kernels(native), grid(1, n, m, 3, 17, dtype=dtype, levels=1000))  # exact, and hardly a tie


@pytest.mark.parametrize(("directions", "dim"), PANELS)
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_panels(native, dtype, directions, dim):
    check(Kernels(native), gaussian(2, 37, 21, dim, directions, groups=2, dtype=dtype, p=1.5))
    check(Kernels(native), gaussian(3, 70, 70, dim, directions, dtype=dtype))


@pytest.mark.parametrize("p", (1.0, 1.25, 2.0, 3.0, 10.0))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_ties_go_by_their_index(native, dtype, p):
    for n, m in ((70, 70), (20, 140), (300, 130)):
        case = grid(2, n, m, 5, 30, dtype=dtype, p=p)
        check(Kernels(native), case)
        check(Kernels(native), projected(case))


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_several_chunks_of_directions(native, dtype):
    """More derivatives than are held at a time: 16 MiB."""
    case = gaussian(2, 20000, 9000, 2, 170 if dtype == "float32" else 100, dtype=dtype)
    check(Kernels(native), case, exact_order=dtype == "float64")
    # Of two entries at a time, three; and a panel that fills its scratch, over two blocks of 512 coordinates.
    rows = 40000 if dtype == "float32" else 20000
    check(Kernels(native), gaussian(3, rows - 9000, 9000, 1, 3, dtype=dtype), exact_order=dtype == "float64")
    check(Kernels(native), gaussian(1, 9, 7, 1024, 48, dtype=dtype))


@pytest.mark.parametrize("rows", (1, 100, 5000))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_equal_samples_are_at_distance_zero(native, dtype, rows):
    case = gaussian(2, rows, rows, 20, 50, dtype=dtype, p=1.0)
    for y in (case.x, case.x[:, ::-1]):
        for output in replace(case, y=np.ascontiguousarray(y)).run(Kernels(native)):
            assert not output.any()


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_equal_terms_do_not_pile_up_their_rounding(native, dtype):
    x, y = (np.full((1, 60000, 3), value, dtype) for value in (0.1, 0.7))
    check(Kernels(native), Case(x, y, np.full((1, 2, 3), 0.57735, dtype), 1.0))
    x, y = (np.full((1, 3, 12288), value, dtype) for value in (0.1, 0.7))
    check(Kernels(native), Case(x, y, np.full((1, 2, 12288), 12288**-0.5, dtype), 2.0))


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_what_is_not_finite_poisons_its_entry_alone(native, dtype, bad):
    case = gaussian(3, 70, 65, 5, 20, dtype=dtype)
    want = case.run(Kernels(native))
    case.x[1, 60, 2] = bad
    for kernels, expected in ((Kernels(native), want), *weighted(native, case, want)):
        for output, before in zip(case.run(kernels), expected, strict=True):
            assert np.isnan(output[1]).all()
            assert output[[0, 2]].tobytes() == before[[0, 2]].tobytes()


def weighted(native, case, want):
    """The same with equal weights, given: another kernel, whose own results count as before."""
    weights = tuple(np.full(side.shape[:2], 1 / side.shape[1]) for side in (case.x, case.y))
    kernels = Kernels(native, weights)
    clean = replace(case, x=case.x.copy())
    clean.x[1] = 0
    outputs = clean.run(kernels)
    for got, expected in zip(outputs, want, strict=True):
        np.testing.assert_allclose(got[[0, 2]], expected[[0, 2]], rtol=2e-4, atol=1e-7)
    return [(kernels, outputs)]


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_weights(native, dtype):
    """A sample of weight k / total is k samples; of weight 0, none."""
    draw = np.random.default_rng(0)
    cases = [gaussian(2, 30, 41, 4, 20, dtype=dtype, p=2.0), grid(2, 30, 41, 4, 21, dtype=dtype, p=1.0)]
    for case in (*cases, projected(cases[1])):  # 21 directions, whose derivatives end where the gradient does
        counts = [draw.integers(0, 4, side.shape[1]) for side in (case.x, case.y)]
        x, y = (np.repeat(side, count, axis=1) for side, count in zip((case.x, case.y), counts, strict=True))
        weights = tuple(np.tile(count / count.sum(), (2, 1)) for count in counts)
        got = case.run(Kernels(native, weights))
        want = replace(case, x=x, y=y).run(Kernels(native))
        close = {"rtol": 1e-5 if dtype == "float32" else 1e-12, "atol": 1e-6 if dtype == "float32" else 1e-13}
        np.testing.assert_allclose(got[0], want[0], **close)
        if case.theta is not None:
            np.testing.assert_allclose(got[3], want[3], **close)
        for gradient, copies, count in ((got[1], want[1], counts[0]), (got[2], want[2], counts[1])):
            first = np.concatenate([[0], np.cumsum(count)])
            summed = np.stack([copies[:, a:b].sum(1) for a, b in itertools.pairwise(first)], 1)
            np.testing.assert_allclose(gradient, summed, **close)


@pytest.mark.parametrize("dtype", ("float64", "float32"))
@pytest.mark.parametrize("bad", (np.nan, np.inf, -1e-3))
def test_weights_that_are_none_poison_their_entry_alone(native, dtype, bad):
    case = gaussian(2, 30, 41, 4, 20, dtype=dtype)
    weights = tuple(np.full((2, count), 1 / count) for count in (30, 41))
    want = case.run(Kernels(native, weights))
    for side in (0, 1):
        spoilt = [side_weights.copy() for side_weights in weights]
        spoilt[side][1, 3] = bad
        for output, before in zip(case.run(Kernels(native, tuple(spoilt))), want, strict=True):
            assert np.isnan(output[1]).all()
            assert output[0].tobytes() == before[0].tobytes()


def test_a_sample_without_weight_may_be_at_any_distance(native):
    case = Case(np.array([[[-1e300], [0.0]]]), np.array([[[0.0], [1.0]]]), np.ones((1, 1, 1)), 2.0)
    value, *gradients = case.run(Kernels(native, (np.array([[0.0, 1.0]]), np.full((1, 2), 0.5))))
    assert value == 0.5
    assert [gradient.ravel().tolist() for gradient in gradients] == [[0, -1], [0, 1], [1]]


def test_equal_weights_normalised_by_sums_that_rounded_differently(native):
    draw = np.random.default_rng(0)
    for n in (2, 10, 77, 1000):
        x, weights = draw.standard_normal((1, n, 3)), draw.random((1, n))
        case = Case(x, x[:, ::-1], draw.standard_normal((1, 5, 3)), 1.0)
        scaled = weights / (1 + 4e-15), weights[:, ::-1].copy()
        for output in case.run(Kernels(native, tuple(w / weights.sum() for w in scaled))):
            assert not output.any()


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_any_split_gives_the_same_bits(native, dtype):
    draw = np.random.default_rng(0)
    for case in (gaussian(3, 150, 70, 20, 100, groups=3, dtype=dtype), gaussian(1, 20000, 3000, 2, 150, dtype=dtype)):
        weights = tuple(draw.dirichlet(np.ones(side.shape[1]), side.shape[0]) for side in (case.x, case.y))
        for given in ((None, None), weights):
            want = [output.tobytes() for output in case.run(Kernels(native, given))]
            for pieces, backwards in SPLITS:
                got = case.run(Kernels(native, given, pieces, backwards))
                assert [output.tobytes() for output in got] == want, (pieces, backwards)


@pytest.mark.parametrize("wanted", ("", "x", "y", "t", "xy", "xt", "yt"))
def test_only_what_is_asked(native, wanted):
    case = gaussian(2, 100, 70, 20, 60)
    want = dict(zip(" xyt", case.run(Kernels(native)), strict=True))
    for name, got in zip(" xyt", case.run(Kernels(native), wanted), strict=True):
        assert (got is not None) == (name in " " + wanted)
        if got is not None:
            assert got.tobytes() == want[name].tobytes()


# ---- every instruction set, as compiled and under sanitizers ----

SMALL_SET = """
import test_sliced_wasserstein_cpu_native as t
native = t.load_or_skip("sliced_wasserstein_cpu_native", t.SOURCES)
t.small_set(native)
print(native.isa())
"""


def small_set(native):
    for dtype in ("float64", "float32"):
        for rows in (1, 17, 64, 129, 1100):
            test_numbers_of_samples(native, dtype, rows)
        for directions, dim in ((1, 1), (33, 16), (49, 63), (3, 511)):
            test_panels(native, dtype, directions, dim)
        test_ties_go_by_their_index(native, dtype, 2.0)
        test_weights(native, dtype)
        test_what_is_not_finite_poisons_its_entry_alone(native, dtype, np.nan)
    test_only_what_is_asked(native, "yt")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", ("plain", *SANITIZERS))
def test_instruction_sets(native, variants, monkeypatch, variant, isa):
    run_small_set(SMALL_SET, variants, monkeypatch, variant, isa)


@pytest.fixture(scope="module", autouse=True)
def variants(native):
    with compiling("sliced_wasserstein_cpu_native", SOURCES, *SANITIZERS) as threads:
        yield threads
