"""Decides what the CPU kernels of flow_warp must compute, without torch: values, and that any thread may do any part.

Called over ranges of units as threads would, on heap blocks of exact size (native/flow_warp_cpu_bindings.cpp); the
reference is in flow_warp_emulation.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flow_warp_emulation import EMULATED, FLOWS, GRADIENTS, MODES, PADDINGS, Case, assert_close, reference, summary
from native.kernels import DTYPES, ISAS, SANITIZERS, accumulate, compiling, load_or_skip, narrow, run_small_set, widen

SOURCES = (
    "csrc/flow_warp/flow_warp_cpu.cpp",
    "csrc/common/cpu_isa.cpp",
    "tests/native/flow_warp_cpu_bindings.cpp",
)
WHOLE = (1, False)  # one range
SPLITS = ((1, True), (2, True), (3, False), (7, True), (7, False), (10**4, True), (10**4, False))  # pieces, reversed
# Groups of 4 and of a cache line (16 floats, 8 doubles): less than one, exactly one, one and a rest, two.
CHANNELS = (1, 3, 4, 5, 8, 12, 16, 18, 20, 32)
# B, H, W, Ho, Wo: single rows and columns, around the 16 pixels of a vector, past the 128 of a block.
SHAPES = (
    *((1, 1, 5, 2, 5), (1, 6, 1, 6, 3), (2, 1, 1, 2, 2), (1, 1, 1, 7, 20), (2, 9, 4, 1, 1), (1, 12, 7, 3, 1)),
    *((1, 4, 15, 4, 16), (1, 5, 16, 3, 15), (2, 4, 17, 5, 17), (1, 3, 33, 2, 33), (1, 7, 16, 11, 33)),
    *((1, 3, 131, 3, 131), (2, 5, 6, 2, 131), (1, 4, 140, 9, 17), (1, 2, 128, 2, 129), (1, 40, 5, 23, 8)),
)


@pytest.fixture(scope="module")
def native():
    return load_or_skip("flow_warp_cpu_native", SOURCES)


def results(native, case, how=WHOLE, asked=GRADIENTS):
    return {"out": case.forward(native, *how), **case.backward(native, *how, asked=asked)}


def check(case, got):
    expected = reference(case)
    for name, values in got.items():
        own = case.dtype if name in ("out", "image", "painted") else accumulate(case.dtype).__name__
        assert_close(name, values, expected[name], summary(case), own)


def assert_same_bits(got, expected, what):
    for name, values in got.items():
        assert values.tobytes() == expected[name].tobytes(), f"{name}: {what}"


# ---- values ----


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_modes_and_channels(native, dtype, last, channels):
    for number, (mode, padding, blend) in enumerate(itertools.product(MODES, PADDINGS, (True, False))):
        sizes = ((2, channels, 7, 9, 6, 19), (1, channels, 6, 18, 9, 16))[(number // 2 + channels) % 2]
        kind = FLOWS[(number + channels) % len(FLOWS)]
        case = Case(dtype, last, mode, padding, blend, sizes, kind, seed=number)
        check(case, results(native, case))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", (False, True))
def test_shapes_and_flows(native, last, shape):
    draw = np.random.default_rng(SHAPES.index(shape))
    for padding, kind in itertools.product(PADDINGS, FLOWS):
        dtype, mode, blend = draw.choice(DTYPES), draw.choice(MODES, p=(0.8, 0.2)), draw.random() < 0.6
        sizes = (shape[0], int(draw.choice((3, 4, 5, 16, 20, 32))), *shape[1:])
        case = Case(str(dtype), last, str(mode), padding, bool(blend), sizes, kind)
        check(case, results(native, case))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("channels", (3, 16))
def test_values_that_are_not_finite_stay_where_they_count(native, channels, last, padding):
    for kind, dtype in itertools.product(("whole", "zero", "random", "far", "broken"), ("float32", "bfloat16")):
        case = Case(dtype, last, "bilinear", padding, kind != "random", (1, channels, 8, 19, 8, 19), kind)
        draw = np.random.default_rng(5)
        for name in ("image", "grad_out", "painted"):
            array = widen(case.arrays[name], dtype)
            array[draw.random(array.shape) < 0.02] = draw.choice([np.inf, -np.inf, np.nan])
            case.arrays[name] = narrow(array, dtype)
        check(case, results(native, case))


@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_as_the_cuda_kernels(native, dtype, last):
    emulated = load_or_skip("flow_warp_emulated", EMULATED)
    for number, (mode, padding, channels) in enumerate(itertools.product(MODES, PADDINGS, (3, 16, 20))):
        sizes, kind = (2, channels, 7, 9, 6, 19), ("random", "far", "broken")[(number + number // 3) % 3]
        case = Case(dtype, last, mode, padding, True, sizes, kind, seed=number)
        cuda = {"out": case.forward(emulated), **case.backward(emulated, True, 0xFF)}
        for name, got in results(native, case).items():
            own = dtype if name in ("out", "image", "painted") else accumulate(dtype).__name__
            assert_close(name, got, widen(cuda[name], own), summary(case), own)


# ---- who does what ----


@pytest.mark.parametrize("channels", (3, 12, 16, 20, 32))
@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_split_into_ranges_gives_the_same_bits(native, dtype, last, channels):
    for number, (padding, kind) in enumerate(itertools.product(PADDINGS, ("smooth", "random", "far", "broken"))):
        sizes = ((2, channels, 11, 18, 13, 21), (1, channels, 23, 7, 6, 17), (2, channels, 5, 16, 29, 5))[number % 3]
        case = Case(dtype, last, MODES[number % 5 == 4], padding, number % 7 > 2, sizes, kind)
        whole = results(native, case)
        for how in SPLITS:
            assert_same_bits(results(native, case, how), whole, f"{how} {summary(case)}")


@pytest.mark.parametrize("wide", (None, 0, -1))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_slides_both_ways(native, dtype, wide):
    """Each row of the output reads around one row of the image, up and down by what a window of 16 rows just holds,
    or no longer does; one row reads 30 of them, which is no concern of the other rows' windows."""
    centers = np.array((22, 19, 27, 32, 37, 22, 17, 32))
    case = Case(dtype, False, sizes=(1, 3, 48, 5, 8, 4))
    case.arrays["flow"][:, 1] = (centers + 0.5 - np.arange(8))[:, None]
    if wide is not None:
        case.arrays["flow"][:, 1, wide] += (-13, 13, 0, 0)
    whole = results(native, case)
    check(case, whole)
    for how in SPLITS:
        assert_same_bits(results(native, case, how), whole, how)


@pytest.mark.parametrize("channels", (3, 16, 20))
@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_asked_gradients_are_computed(native, dtype, last, channels):
    for padding, blend in itertools.product(PADDINGS, (True, False)):
        case = Case(dtype, last, "bilinear", padding, blend, (2, channels, 7, 9, 6, 19))
        whole = results(native, case)
        for count in range(5 if blend else 3):
            for asked in itertools.combinations(GRADIENTS if blend else GRADIENTS[:2], count):
                for how in (WHOLE, (3, True)):
                    got = case.backward(native, *how, asked=asked)
                    assert tuple(got) == asked
                    assert_same_bits(got, whole, f"{asked} {how} {summary(case)}")


# ---- every instruction set, as compiled and under sanitizers ----

SMALL_SET = """
import sys
import test_flow_warp_cpu_native as t
native = t.load_or_skip("flow_warp_cpu_native", t.SOURCES)
t.small_set(native)
print(native.isa())
"""


def small_set(native):
    """Every dtype, layout and number of channels once, on the shapes, paddings and flows in turn."""
    for number, (dtype, last, channels) in enumerate(itertools.product(DTYPES, (False, True), CHANNELS)):
        shape = SHAPES[number % len(SHAPES)]
        padding, kind = PADDINGS[number % 3], FLOWS[number // 3 % len(FLOWS)]
        case = Case(
            dtype, last, MODES[number % 5 == 4], padding, number % 4 > 0, (shape[0], channels, *shape[1:]), kind
        )
        whole = results(native, case)
        check(case, whole)
        assert_same_bits(results(native, case, (3, True)), whole, summary(case))
        for asked in GRADIENTS:
            assert_same_bits(case.backward(native, 2, False, asked=(asked,)), whole, summary(case))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", ("plain", *SANITIZERS))
def test_instruction_sets(native, variants, monkeypatch, variant, isa):
    run_small_set(SMALL_SET, variants, monkeypatch, variant, isa)


@pytest.fixture(scope="module", autouse=True)
def variants(native):
    with compiling("flow_warp_cpu_native", SOURCES, *SANITIZERS) as threads:
        yield threads
