"""Decides what the CUDA kernels of sliced_wasserstein must do, run by the emulator on numpy arrays.

The reference is in sliced_wasserstein_emulation.py; how the emulator schedules is decided in native/.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from native.kernels import ORDERS, compiling, load_or_skip, output_of
from sliced_wasserstein_emulation import (
    EMULATED,
    Case,
    check,
    check_orders,
    gaussian,
    grid,
    projected,
    small_cases,
)

SHAPES = (  # B, N, M, D, L, G
    (1, 1, 1, 1, 1, 1),
    (2, 5, 5, 3, 4, 1),
    (6, 33, 33, 8, 5, 3),
    (2, 40, 17, 8, 70, 1),
    (1, 300, 300, 100, 3, 1),
    (1, 7, 1000, 4, 3, 1),
    (1, 65, 1, 68, 2, 1),
    (2, 63, 65, 7, 129, 2),
)
SMALL = {"chunk_bytes": 3000, "sort_threads": 32, "piece": 32}


@pytest.fixture(scope="module")
def emulated():
    return load_or_skip("sliced_wasserstein_emulated", EMULATED)


@pytest.fixture
def native(emulated):
    yield emulated
    emulated.configure()
    emulated.set_policy()


# ---- values and gradients ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("make", (gaussian, grid))
def test_values_and_gradients(native, make, dtype, shape):
    check(native, make(*shape, dtype=dtype))


@pytest.mark.parametrize("p", (1.0, 1.5, 3.0))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_powers(native, dtype, p):
    for make, shape in itertools.product((gaussian, grid), ((2, 33, 33, 8, 3, 1), (1, 20, 90, 5, 3, 1))):
        check(native, make(*shape, dtype=dtype, p=p))


@pytest.mark.parametrize("shape", SHAPES)
def test_products_without_tensor_cores(native, shape):
    native.set_policy(tensor_cores=False)
    check(native, gaussian(*shape))


def test_samples_that_are_not_aligned(native):
    """Copies of 4 bytes in place of 16 bring the same bits."""
    case = gaussian(2, 40, 30, 8, 5)
    aligned = check(native, case)
    for got, expected in zip(check(native, case, shift=4), aligned, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("policy", ({}, SMALL))
def test_samples_that_are_projected_already(native, policy, dtype):
    native.set_policy(**policy)
    for shape in ((3, 40, 40, 33, 33), (1, 150, 70, 5, 5), (1, 3, 1, 1, 1)):
        check(native, projected(grid(*shape, dtype=dtype)))


def test_each_gradient_alone_has_the_bits_of_all_together(native):
    for case in (gaussian(2, 40, 30, 8, 5), gaussian(1, 30, 40, 5, 3)):
        together = case.run(native)
        for index, name in enumerate("xyt", 1):
            alone = case.run(native, name)
            assert [output is not None for output in alone] == [True, *(other == name for other in "xyt")]
            np.testing.assert_array_equal(alone[index], together[index])


# ---- sorting ----


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("n", (2, 31, 127, 128, 129, 255, 256, 257, 511, 513, 1024, 1025, 2049, 4095, 4097, 8193, 9000))
def test_sizes_of_a_sort(native, dtype, n):
    native.set_policy(tensor_cores=False)  # which the emulator is slow with
    check(native, gaussian(1, n, n, 1, 1, dtype=dtype, seed=n), exact_order=False)
    check(native, grid(1, n, max(1, n // 3), 2, 1, dtype=dtype, seed=n, levels=n))


@pytest.mark.parametrize("n", (127, 128, 129, 255, 256, 257, 300, 511, 512, 513, 600, 1025))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_runs_that_are_merged(native, dtype, n):
    """The order is total: however a row is cut into runs, its bits are the same."""
    case = grid(1, n, 400, 2, 2, dtype=dtype, seed=n, levels=n // 4)
    native.set_policy(tensor_cores=False)
    whole = case.run(native)
    native.set_policy(tensor_cores=False, sort_threads=32)
    for got, expected in zip(check(native, case), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_far_more_samples_than_a_block_sorts(native):
    native.set_policy(tensor_cores=False)
    check(native, grid(1, 65537, 65537, 1, 1, levels=1 << 20))
    check(native, grid(1, 20000, 40001, 1, 1, dtype="float64", levels=1 << 20))


@pytest.mark.parametrize("policy", ({}, SMALL))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_ties_are_taken_in_the_order_of_the_samples(native, dtype, policy):
    """With 0 levels all samples are zero; zeros are of both signs, which projections keep but by products lose."""
    native.set_policy(tensor_cores=False, **policy)
    for levels, (n, m) in itertools.product((0, 1, 2), ((700, 700), (700, 301), (129, 1030))):
        case = grid(1, n, m, 3, 2, dtype=dtype, levels=levels)
        case.y += 0.25
        check(native, case)
        check(native, projected(case))
        case = grid(1, n, m, 2, 2, dtype=dtype, levels=levels)
        case.x[:, ::2][case.x[:, ::2] == 0] = 0.0
        check(native, Case(case.x, case.y + 0.25, None))


# ---- guarantees ----


@pytest.mark.parametrize("tensor_cores", (True, False))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("p", (1.0, 2.0, 1.5))
def test_the_same_samples_are_at_distance_zero(native, p, dtype, tensor_cores):
    """Also in another order, also where some samples are equal."""
    native.set_policy(tensor_cores=tensor_cores)
    x = gaussian(2, 90, 1, 20, 7, dtype=dtype).x
    x[:, 20:40] = x[:, :20]
    theta = gaussian(1, 1, 1, 20, 7, dtype=dtype).theta
    shuffled = x[:, np.random.default_rng(1).permutation(90)]
    for y in (x, shuffled):
        for output in Case(x, y, theta, p).run(native):
            assert not output.any()


@pytest.mark.parametrize("tensor_cores", (True, False))
@pytest.mark.parametrize(("n", "dim"), [(3, 128), (3, 768), (700, 8)])
def test_equal_terms_do_not_pile_up_their_rounding(native, n, dim, tensor_cores):
    """All terms of a projection are equal, and all samples, so that every rounding goes one way."""
    native.set_policy(tensor_cores=tensor_cores)
    for scale, p in ((1.0, 2.0), (1.1, 2.0), (1.37, 2.0), (1.7, 1.0), (1.9999, 3.0)):
        check(native, constant(n, dim, scale, p))


def test_equal_samples_do_not_pile_up_their_rounding(native):
    """80000 equal terms of one direction, which in chains of floats, one a thread, are 3.4e-6 off."""
    x = np.full((1, 80000, 1), 1.7, np.float32)
    y = np.float32(0.3) * x[:, ::2]
    value, *_ = Case(x, y, None).run(native, "")
    np.testing.assert_allclose(value, [(float(x[0, 0, 0]) - float(y[0, 0, 0])) ** 2], rtol=2e-7)


def constant(n, dim, scale, p):
    x = np.full((1, n, dim), scale, np.float32)
    return Case(x, np.float32(0.3) * x[:, : n // 2 + 1], np.full((1, 1, dim), 1 / dim**0.5, np.float32), p)


@pytest.mark.parametrize("tensor_cores", (True, False))
def test_value_in_many_dimensions(native, tensor_cores):
    native.set_policy(tensor_cores=tensor_cores)
    for case in (gaussian(1, 6, 5, 12288, 2), constant(3, 12288, 1.37, 2.0)):
        (value, *_), (expected, *_) = case.run(native, ""), case.expected()
        np.testing.assert_allclose(value, expected, rtol=2e-6)


@pytest.mark.parametrize("tensor_cores", (True, False))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_long_sums_are_cut_into_pieces(native, dtype, tensor_cores):
    """By the shape of one entry: it has the same bits alone as among others."""
    for pieces in ({"piece": 32}, {"piece": 32, "wanted_blocks": 7}, {"piece": 64, "chunk_bytes": 1 << 18}):
        native.set_policy(tensor_cores=tensor_cores, **pieces)
        case = gaussian(3, 150, 200, 132, 3, dtype=dtype)
        before = native.launches()
        outputs = check(native, case)
        assert native.launches() - before > 4 + 7
        alone = Case(case.x[1:2], case.y[1:2], case.theta, case.p)
        for together, by_itself in zip(outputs, alone.run(native), strict=True):
            np.testing.assert_array_equal(together[1:2], by_itself)


def test_chunks_do_not_change_the_value(native):
    """Nor the gradient to the projections; those to the samples are summed over chunks."""
    for make, shape in ((gaussian, (2, 20, 15, 8, 130)), (grid, (5, 9, 9, 3, 7))):
        case = make(*shape)
        whole = check(native, case)
        for chunk_bytes in (1, 3000, 70 * 36 * 4, 130 * 36 * 4):
            native.set_policy(chunk_bytes=chunk_bytes)
            outputs = check(native, case)
            np.testing.assert_array_equal(outputs[0], whole[0])
            np.testing.assert_array_equal(outputs[3], whole[3])


def test_workspace_is_that_of_a_chunk(native):
    """A chunk's values, its keys, at most twice as wide, and as much again where runs are merged; parts of sums."""
    chunk = 32 << 20
    for n, directions in ((64, 128), (1024, 512), (8192, 512), (16384, 2048), (65536, 512)):
        for dtype, gradients in itertools.product(("float32", "float64"), (False, True)):
            wide = 2 if gradients else 1  # of a key, in values
            merges = n > 512 * 64 // (wide * np.dtype(dtype).itemsize)
            most = chunk * (1 + wide * (2 if merges else 1) + 1) + 256 * directions * 8 + (1 << 12)
            assert native.workspace(dtype, [256, n, n, 12288, directions, 1], gradients) <= most
    for directions in (64, 512):  # with so many samples, 1 / 64 of the directions
        bytes_of_sample = 4 + 2 * 8
        most = directions // 64 * (2 << 24) * bytes_of_sample + (4 << 20)  # and parts of sums
        assert native.workspace("float32", [1, 1 << 24, 1 << 24, 8, directions, 1], True) <= most
    for dim, most in ((8, 1 << 16), (12288, 8 << 20)):  # less than a chunk where the call is small
        assert native.workspace("float32", [1, 64, 64, dim, 2, 1], True) <= most


# ---- numbers at the edge ----


def test_the_emulated_tensor_core_cuts_what_a_float_does_not_hold(native):
    """1 + 3 / 4 of an ulp: the pessimistic model, under which the figures above hold."""
    x = np.array([[[1, 1.5 * 2.0**-24, 0, 0]]], np.float32)
    case = Case(x, 0 * x, np.ones((1, 1, 4), np.float32), 1.0)
    assert case.run(native, "")[0][0] == 1
    native.set_policy(tensor_cores=False)
    assert case.run(native, "")[0][0] == 1 + 2.0**-23


NAN = np.uint32(0x7FFFFFFF).view(np.float32)  # the device's own


@pytest.mark.parametrize("tensor_cores", (True, False))
@pytest.mark.parametrize("value", (NAN, -np.nan, np.inf, -np.inf, 3e38))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_what_is_not_finite_stays_in_its_entry(native, dtype, value, tensor_cores):
    """3e38 is finite, its projection is not."""
    native.set_policy(tensor_cores=tensor_cores)
    if dtype == "float64":
        value = np.uint64(0x7FFFFFFFFFFFFFFF).view(np.float64) if value is NAN else value * (1e270 if value > 1 else 1)
    for sample, entry in (("x", 1), ("y", 2)):
        case = gaussian(3, 140, 130, 8, 4, dtype=dtype)
        case.theta[:, :, 3] = 1e3
        whole = case.run(native)
        getattr(case, sample)[entry, 77, 3] = value
        others = [b for b in range(3) if b != entry]
        for output, before in zip(case.run(native), whole, strict=True):
            assert np.isnan(output[entry]).all()
            np.testing.assert_array_equal(output[others], before[others])


def test_a_direction_that_is_not_finite(native):
    """The gradients to the other directions do not notice it."""
    case = gaussian(2, 20, 30, 8, 4, groups=2)
    whole = case.run(native)
    case.theta[1, 2, 5] = np.nan
    value, grad_x, grad_y, grad_theta = case.run(native)
    assert np.isnan(value).tolist() == [False, True]
    assert np.isnan(grad_x[1]).all()
    assert np.isnan(grad_y[1]).all()
    np.testing.assert_array_equal(grad_x[0], whole[1][0])
    np.testing.assert_array_equal(grad_theta[0], whole[3][0])
    assert np.isnan(grad_theta[1, 2]).all()
    np.testing.assert_array_equal(grad_theta[1, [0, 1, 3]], whole[3][1, [0, 1, 3]])


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_small_and_large_numbers(native, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([[[3], [-2], [0.0], [-0.0]]], dtype) * tiny
    y = np.array([[[1], [5], [-1]]], dtype) * tiny
    value, *_ = Case(x, y, None, 1.0).run(native)
    assert value[0] in (tiny, 2 * tiny)  # 19 / 12 of it
    large = np.finfo(dtype).max / 16
    x, y = np.array([[[large], [-large]]], dtype), np.array([[[large / 2], [0.0]]], dtype)
    check(native, Case(x, y, None, 1.0))


# ---- launches ----


def test_the_launches_do_not_depend_on_the_data(native):
    counts = set()
    native.set_policy(**SMALL)
    for case in (gaussian(1, 300, 200, 8, 5), grid(1, 300, 200, 8, 5, levels=0)):
        case.x[0, 3, 2] = 0.5
        before = native.launches()
        case.run(native)
        counts.add(native.launches() - before)
    assert len(counts) == 1
    native.set_policy()
    before = native.launches()
    gaussian(1, 300, 200, 8, 5).run(native, "")
    assert native.launches() - before == 4
    native.set_policy(chunk_bytes=1)  # which still makes at most 64 chunks: so many roundings have a gradient's sums
    before = native.launches()
    gaussian(1, 3, 3, 4, 200).run(native, "")
    assert native.launches() - before == 3 * 50 + 1


def test_what_is_refused(native):
    assert "no weights" in native.refusal([1, 2, 2, 1, 1, 1], True)
    assert "below 2^31" in native.refusal([1, 1 << 31, 2, 1, 1, 1], False)
    assert native.refusal([0, 2, 2, 1, 1, 1], False) is None


# ---- every order; sanitizers, on small shapes ----

SETTINGS = ({"sort_threads": 32, "chunk_bytes": 3000}, {"sort_threads": 32, "piece": 32, "tensor_cores": False})
COPIES = tuple((*order, copies) for order, copies in zip(ORDERS, itertools.cycle(("late", "early")), strict=False))


def test_every_order_gives_the_same_bits(native):
    check_orders(native, small_cases(), COPIES, SETTINGS)


SANITIZED = """
import sliced_wasserstein_emulation as t
from native import build
native = build.load("sliced_wasserstein_emulated", t.EMULATED)
cases = t.small_cases()
t.check_orders(native, cases, {orders}, {settings}[1:])
t.check_orders(native, {{name: cases[name] for name in ("aligned", "not aligned")}}, {orders}, {settings}[:1])
print("came to the end")
"""


@pytest.mark.parametrize(("variant", "orders"), [("asan", COPIES[:2]), ("tsan", COPIES[-1:])])
def test_sanitizers_are_silent(variants, variant, orders):
    variants[variant].join()
    assert output_of(variant, SANITIZED.format(orders=orders, settings=SETTINGS)) == "came to the end"


@pytest.fixture(scope="module", autouse=True)
def variants(emulated):
    with compiling("sliced_wasserstein_emulated", EMULATED, "asan", "tsan") as threads:
        yield threads
