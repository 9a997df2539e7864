"""Decides what the CPU kernels of svc_projection must compute, without torch, and that any thread may do any part.

Called over ranges of units as threads would, on heap blocks of exact size (native/svc_projection_cpu_bindings.cpp); the
spectra and the definition are in svc_projection_emulation.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from native.kernels import ISAS, SANITIZERS, compiling, load_or_skip, run_small_set
from svc_projection_emulation import CLIPPED, INSIDE, LAYOUTS, NONFINITE, SPECTRA, Weight, check, project, weights_of

SOURCES = (
    "csrc/svc_projection/svc_projection_cpu.cpp",
    "csrc/common/cpu_isa.cpp",
    "tests/native/svc_projection_cpu_bindings.cpp",
)
SPLITS = ((1, True), (2, False), (3, True), (7, False), (10**4, True))  # pieces, reversed
# Around the strips of 16 and 8, the reflections of 16, and several panels of columns (1536 for 64 rows of float32).
SHAPES = ((1, 1), (1, 40), (2, 2), (15, 17), (16, 16), (17, 40), (33, 33), (48, 100))
LARGE = ((64, 1600), (70, 2900))
SOME = ((1, 3), (17, 40), (33, 33))


@pytest.fixture(scope="module")
def native():
    return load_or_skip("svc_projection_cpu_native", SOURCES)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_hard_spectra(native, dtype, layout, spectrum):
    check(native, weights_of(spectrum, SHAPES, dtype, layout=layout))


@pytest.mark.parametrize("spectrum", ("few above 1", "half above 1"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_panels(native, layout, spectrum):
    for dtype in ("float64", "float32"):
        check(native, weights_of(spectrum, LARGE, dtype, layout=layout))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_16_bits(native, dtype, spectrum):
    weights = weights_of(spectrum, ((20, 70), (33, 33), (64, 700)), dtype)
    assert (project(native, weights)[:, 3] == 1).all()
    for weight in weights:
        assert np.linalg.norm(weight.stored(weight.memory), 2) <= 1 + 2.0**-8
    once = [weight.memory.copy() for weight in weights]
    assert (project(native, weights)[:, 0] == INSIDE).all()
    assert [weight.memory.tobytes() for weight in weights] == [memory.tobytes() for memory in once]


@pytest.mark.parametrize("dtype", ("float64", "float32", "bfloat16"))
def test_any_split_in_any_company_gives_the_same_bits(native, dtype):
    def fresh():
        shapes = ((70, 2900), (17, 40))
        return [w for kind in ("few above 1", "half above 1", "wide") for w in weights_of(kind, shapes, dtype)]

    def call(weights, pieces=1, reverse=False):
        report = native.project(dtype, [weight.argument() for weight in weights], False, 0xFF, pieces, reverse)
        return [report[i].tobytes() + weight.memory.tobytes() for i, weight in enumerate(weights)]

    whole = call(fresh())
    for pieces, reverse in SPLITS:
        assert call(fresh(), pieces, reverse) == whole, (pieces, reverse)
    assert [call([weight])[0] for weight in fresh()] == whole


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("dtype", ("float64", "float32", "float16"))
def test_a_bad_number_stops_all_writes(native, dtype, bad):
    for skip, states in ((False, [INSIDE, NONFINITE, INSIDE]), (True, [CLIPPED, NONFINITE, CLIPPED])):
        weights = weights_of("half above 1", ((17, 40), (33, 33), (48, 100)), dtype)
        values = weights[1].values.copy()
        values[20, 7] = bad
        weights[1] = Weight(values, dtype)
        assert project(native, weights, skip)[:, 0].tolist() == states
        assert [weight.untouched for weight in weights] == [state != CLIPPED for state in states]


@pytest.mark.parametrize("bound", (1e-30, 1e-7, 1e-3, 3.7, 1e5, 1e12))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_bounds(native, dtype, bound):
    for spectrum in ("few above 1", "half at 1 +- 1e-3", "wide", "all inside"):
        check(native, weights_of(spectrum, ((33, 70),), dtype, bound))


@pytest.mark.parametrize("scale", (1e3, 1e7, 1e25))  # the last one: its Gram matrix overflows in float32
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_far_outside(native, dtype, scale):
    (weight,) = weights_of("cluster 0.99..1.01", ((17, 40),))
    check(native, [Weight(scale * weight.values, dtype)])


@pytest.mark.parametrize("scale", (0.9999999, 1.1, 2.3))
@pytest.mark.parametrize("shape", ((1, 1000), (1, 40000), (2, 8192), (16, 6144), (33, 4096), (128, 512), (300, 301)))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_equal_terms_do_not_pile_up_their_rounding(native, dtype, shape, scale):
    """Sums of equal terms round the same way each time: constant weights, and those after Adam's first step."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], shape)
    check(native, [Weight(scale * v / np.linalg.norm(v, 2), dtype) for v in (np.ones(shape), signs)])


def test_what_is_inside_is_reported_by_an_upper_bound(native):
    (weight,) = weights_of("few above 1", ((17, 40),))
    small = Weight(0.01 * weight.values)
    ((state, clipped, largest, certified),) = project(native, [small])
    assert (state, clipped, certified, small.untouched) == (INSIDE, 0, 1, True)
    assert np.linalg.norm(small.values, 2) <= largest <= 0.1  # ||G||_F^(1/2), not merely the bound


# ---- every instruction set, as compiled and under sanitizers ----

SMALL_SET = """
import test_svc_projection_cpu_native as t
native = t.load_or_skip("svc_projection_cpu_native", t.SOURCES)
t.small_set(native)
print(native.isa())
"""


def small_set(native):
    for spectrum, layout in itertools.product(SPECTRA, LAYOUTS):
        for dtype in ("float64", "float32"):
            check(native, weights_of(spectrum, SOME, dtype, layout=layout))
    test_16_bits(native, "bfloat16", "few above 1")
    test_any_split_in_any_company_gives_the_same_bits(native, "float32")
    test_a_bad_number_stops_all_writes(native, "float32", np.nan)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", ("plain", *SANITIZERS))
def test_instruction_sets(native, variants, monkeypatch, variant, isa):
    run_small_set(SMALL_SET, variants, monkeypatch, variant, isa)


@pytest.fixture(scope="module", autouse=True)
def variants(native):
    with compiling("svc_projection_cpu_native", SOURCES, *SANITIZERS) as threads:
        yield threads
