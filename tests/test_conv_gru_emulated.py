"""Decides what the CUDA kernels of conv_gru must do, one launch at a time, run by the emulator on numpy arrays.

The reference is in conv_gru_emulation.py; how the emulator schedules is decided in native/.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conv_gru_emulation import EMULATED, KERNELS, Launch, check_orders, misaligned, small_launches
from native.kernels import DTYPES, ORDERS, compiling, load_or_skip, narrow, output_of

HALVES = ("float16", "bfloat16")
LARGE = (1, (32, 19), 40)  # fills the emulated device with large tiles: pixels and columns that are not whole ones


@pytest.fixture(scope="module")
def emulated():
    return load_or_skip("conv_gru_emulated", EMULATED)


@pytest.fixture
def native(emulated):
    yield emulated
    emulated.configure()


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


# ---- gates after a convolution that is done ----


@pytest.mark.parametrize("channels", (1, 3, 5, 8, 12, 16, 24, 40))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates(native, kernel, dtype, channels):
    for tanh, lengths in itertools.product((False, True), (None, [0, 1, 2, 5])):
        Launch(kernel, dtype, 4, (3, 5), channels, tanh=tanh, lengths=lengths).check(native)
    Launch(kernel, dtype, 1, (2, 3, 1), channels, lengths=[2]).check(native)
    Launch(kernel, dtype, 70, (5, 4), channels, lengths=[t % 4 for t in range(70)]).check(native)


@pytest.mark.parametrize("taps", (0, 3))
def test_arrays_that_may_be_absent(native, kernel, taps):
    for dtype in HALVES if taps else DTYPES:
        Launch(kernel, dtype, 2, (3, 5), 8, taps, optional=False).check(native)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_are_not_aligned(native, kernel, dtype):
    """One number at a time gives the bits of vectors."""
    launch = Launch(kernel, dtype, 2, (3, 5), 16, lengths=[1, 2])
    aligned = launch.check(native)
    for name, array in launch.check(native, misaligned).items():
        np.testing.assert_array_equal(array, aligned[name])


def test_no_product_means_zeros(native):
    """The first step of a backward has no gradient from a later one."""
    launch = Launch("candidate_backward", "float32", 2, (3, 5), 6)
    launch.arrays["operand"][:] = 0
    zeros = launch.check(native)
    launch.arrays["operand"] = None
    for name, array in launch.run(native).items():
        np.testing.assert_array_equal(array, zeros[name])


# ---- convolution and gates ----


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("batch", "size", "channels", "taps"),
    (
        (1, (1, 1), 8, 1),
        (1, (1, 1), 8, 3),
        (2, (4, 4), 8, 3),
        (3, (5, 7), 24, 3),
        (2, (8, 8), 16, 1),
        (1, (3, 9), 16, 5),
        (2, (6, 11), 72, 3),
        (2, (2, 3), 8, 7),
        (2, (3, 4, 5), 8, 3),
        (1, (5, 2, 3), 24, 1),
    ),
)
def test_convolution_and_gates(native, kernel, dtype, batch, size, channels, taps):
    Launch(kernel, dtype, batch, size, channels, taps, lengths=[2, 1, 3][:batch]).check(native)


@pytest.mark.parametrize("dtype", HALVES)
def test_large_tiles(native, kernel, dtype):
    Launch(kernel, dtype, *LARGE, taps=1, tanh=True).check(native)


def test_border_values_stay_outside(native, kernel):
    """What lies beyond a map is zero, not its neighbour in memory: a clip's numbers do not depend on other clips."""
    for taps, size in ((3, (4, 5)), (5, (2, 3)), (3, (2, 3, 2))):
        launch = Launch(kernel, "float16", 3, size, 8, taps)
        alone = launch.run(native)
        launch.arrays["operand"][[0, 2]] = np.nan
        for name in set(launch.expected()):
            np.testing.assert_array_equal(launch.run(native)[name][1], alone[name][1])


def test_padding_of_gates_is_not_read(native, kernel):
    launch = Launch(kernel, "bfloat16", 2, (3, 5), 8, 3)
    before = launch.run(native)
    for gate in "rzn":
        launch.arrays[gate][..., 8:] = narrow(np.nan, "bfloat16")
    after = launch.run(native)
    for name in launch.expected():
        np.testing.assert_array_equal(after[name][..., :8], before[name][..., :8])


# ---- numbers at the edge ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tanh", (False, True))
def test_what_is_not_finite_stays_in_its_place(native, dtype, tanh):
    """NaN comes through relu, and large arguments saturate."""
    launch = Launch("candidate", dtype, 1, (1, 3), 5, tanh=tanh)
    operand = launch.arrays["operand"]
    operand[0, 0, 0, 0], operand[0, 0, 1, 1] = narrow(np.nan, dtype), narrow(np.inf, dtype)
    operand[0, 0, 2, 2] = narrow(-np.inf, dtype)
    n = launch.run(native)["n"]
    assert np.isnan(n[0, 0, 0, 0])
    assert (n[0, 0, 1, 1], n[0, 0, 2, 2]) == ((1, -1) if tanh else (np.inf, 0))
    assert np.isfinite(n[0]).sum() >= 3 * 5 - 2
    launch = Launch("reset_update", dtype, 1, (1, 3), 5)
    operand = launch.arrays["operand"]
    operand[0, 0, 0, 0], operand[0, 0, 1, 1] = narrow(-np.inf, dtype), narrow(np.inf, dtype)
    operand[0, 0, 2, 2] = narrow(np.nan, dtype)
    r = launch.run(native)["r"]
    assert (r[0, 0, 0, 0], r[0, 0, 1, 1]) == (0, 1)
    assert np.isnan(r[0, 0, 2, 2])


def test_what_is_not_finite_stays_under_its_taps(native, kernel):
    """A product of 72 numbers is taken 64 at a time: what is fetched besides must not count, not even 0 * NaN."""
    launch = Launch(kernel, "float16", 1, (7, 4), 8, 3)
    before, finite = launch.run(native), launch.arrays["operand"].copy()
    launch.arrays["operand"][0, 3, 0] = np.nan  # seen from rows 2 to 4
    after = launch.run(native)
    launch.arrays["operand"], launch.arrays["weight"][0, 0, 0] = finite, np.nan  # seen by channel 0
    of_weight = launch.run(native)
    for name in launch.expected():
        rows = (slice(None), [0, 1, 5, 6])
        np.testing.assert_array_equal(after[name][rows], before[name][rows])
        np.testing.assert_array_equal(of_weight[name][..., 1:8], before[name][..., 1:8])


def test_a_frozen_clip_notices_nothing(native):
    """Neither NaN in its frames nor what its gates would be."""
    for kernel in ("candidate", "candidate_backward"):
        launch = Launch(kernel, "float32", 2, (2, 2), 4, lengths=[1, 5], step=1)
        launch.arrays["xg"][0], launch.arrays["z"][0], launch.arrays["n"][0] = np.nan, np.nan, np.nan
        got = launch.run(native)
        if kernel == "candidate":
            np.testing.assert_array_equal(got["h_state"][0], launch.arrays["h_state"][0])
            np.testing.assert_array_equal(got["output"][0], launch.arrays["h_state"][0])
        else:
            assert not got["grad_n"][0].any()
            assert not got["grad_rz"][0, ..., 4:].any()
            assert np.isfinite(got["grad_h"]).all()


# ---- launches ----


def test_one_launch_each(native, kernel):
    for launch in (Launch(kernel, "float32", 2, (3, 5), 6), Launch(kernel, "float16", 2, (3, 5), 8, 3)):
        before = native.launches()
        launch.run(native)
        assert native.launches() == before + 1
    before = native.launches()
    Launch(kernel, "float32", 0, (3, 5), 6).run(native)
    assert native.launches() == before


def test_what_is_refused(native, kernel):
    for arguments, reason in (
        (("float32", 2, (3, 5), 8, 3), "float16 or bfloat16"),
        (("float16", 2, (3, 5), 12, 3), "multiples of 8"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            Launch(kernel, *arguments).run(native)
    launch = Launch(kernel, "float16", 2, (3, 5), 8, 3)
    with pytest.raises(RuntimeError, match="aligned"):
        launch.run(native, misaligned)
    for size, value, reason in (
        ("batch", 1 << 28, "too many elements"),
        ("inputs", 1 << 30, "too many elements"),
        ("channels", 1 << 23, "too many channels"),
    ):
        launch = Launch(kernel, "float16", 2, (3, 5), 8, 3)
        setattr(launch, size, value)  # said, but not there: it is refused before an array is touched
        with pytest.raises(RuntimeError, match=reason):
            launch.run(native)


# ---- every order; sanitizers, on small shapes ----

COPIES = tuple((*order, copies) for order, copies in zip(ORDERS, itertools.cycle(("late", "early")), strict=False))


def test_every_order_gives_the_same_bits(native):
    check_orders(native, small_launches(), COPIES)


SANITIZED = """
import conv_gru_emulation as t
from native import build
native = build.load("conv_gru_emulated", t.EMULATED)
t.check_orders(native, t.small_launches(), {orders})
print("came to the end")
"""


@pytest.mark.parametrize(("variant", "orders"), [("asan", COPIES[:2]), ("tsan", COPIES[-1:])])
def test_sanitizers_are_silent(variants, variant, orders):
    variants[variant].join()
    assert output_of(variant, SANITIZED.format(orders=orders)) == "came to the end"


@pytest.fixture(scope="module", autouse=True)
def variants(emulated):
    with compiling("conv_gru_emulated", EMULATED, "asan", "tsan") as threads:
        yield threads
