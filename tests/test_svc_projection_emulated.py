"""Decides what the CUDA kernels of svc_projection must do, run by the emulator on numpy arrays.

The reference is in svc_projection_emulation.py; how the emulator schedules is decided in native/.
"""

from __future__ import annotations

import numpy as np
import pytest
from native.kernels import ORDERS, compiling, load_or_skip, output_of
from svc_projection_emulation import (
    CLIPPED,
    EMULATED,
    INSIDE,
    LAYOUTS,
    NONFINITE,
    SPECTRA,
    Weight,
    check,
    check_orders,
    mixed,
    project,
    weights_of,
)

SHAPES = ((40, 90), (33, 33), (1, 60))


@pytest.fixture(scope="module")
def emulated():
    return load_or_skip("svc_projection_emulated", EMULATED)


@pytest.fixture
def native(emulated):
    yield emulated
    emulated.configure()
    emulated.set_policy(512, 1 << 31, 2)


# ---- values ----


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_spectra(native, dtype, spectrum):
    check(native, weights_of(spectrum, SHAPES, dtype))


@pytest.mark.parametrize("spectrum", ("few above 1", "to 3.9", "cluster 0.99..1.01", "wide", "all exactly 1"))
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_sixteen_bits(native, dtype, spectrum):
    check(native, weights_of(spectrum, ((16, 40), (33, 33), (1, 60)), dtype))


@pytest.mark.parametrize("scale", (0.9999999, 1.1, 1.7))
@pytest.mark.parametrize("shape", ((1, 8192), (16, 6144), (33, 4096)))
def test_equal_terms_do_not_pile_up_their_rounding(native, shape, scale):
    check(native, [Weight(scale * np.ones(shape) / np.prod(shape) ** 0.5)])


@pytest.mark.parametrize(("m", "n"), [(70, 300), (65, 65), (3, 5000), (1, 1), (2, 2), (32, 64), (17, 600)])
def test_shapes(native, m, n):
    """More than a tile of each kind; more than a split, and splits longer than a chain of additions."""
    check(native, weights_of("half above 1", [(m, n)]))


@pytest.mark.parametrize("dtype", ("float32", "float64", "bfloat16"))
def test_layouts_give_the_same_bits(native, dtype):
    results = []
    for layout in LAYOUTS:
        weights = weights_of("few above 1", ((34, 45), (5, 70)), dtype, layout=layout)
        check(native, weights)
        results.append([weight.stored(weight.memory).tobytes() for weight in weights])
    assert results.count(results[0]) == len(LAYOUTS)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("bound", (0.3, 5.0, 1e-20, 1e20, 3e-60, 1e60))
def test_bounds(native, dtype, bound):
    if dtype == "float64" or 1e-30 < bound < 1e30:
        check(native, weights_of("few above 1", ((20, 33),), dtype, bound))


def test_a_power_of_two_in_bound_and_weight_only_shifts_exponents(native):
    results = []
    for bound in (1.0, 2.0**-9, 2.0**12):
        weights = weights_of("half above 1", ((20, 33),), "float32", bound)
        project(native, weights)
        results.append((weights[0].memory / np.float32(bound)).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("scale", (1e5, 1e9, 1e17, 3e36))
def test_far_above_the_bound(native, scale):
    """Beyond the guarantee's 1e2, also where the squares overflow float32: the bound holds, which is certified."""
    weights = weights_of("few above 1", ((12, 20),), "float32")
    weights = [Weight(weights[0].values * scale)]
    report = project(native, weights)
    values = np.linalg.svd(weights[0].stored(weights[0].memory), compute_uv=False)
    assert report[0, 0] == CLIPPED
    if report[0, 3] == 1:
        assert values[0] <= 1 + 4e-6
    else:
        assert scale > 1e12
    assert abs(report[0, 2] / scale / np.linalg.svd(weights[0].values / scale, compute_uv=False)[0] - 1) < 0.011


def test_what_one_projection_leaves_is_projected_again_or_reported(native):
    """In float64 the wide spectrum's rounding is above the tolerance: the second projection is of sizes near 1."""
    results = []
    for rounds in (0, 1, 2):
        native.set_policy(512, 1 << 31, rounds)
        weights = weights_of("wide", ((40, 90),), "float64")
        report = project(native, weights)
        results.append((np.linalg.svd(weights[0].memory, compute_uv=False)[0] - 1, report[0, 3]))
        assert report[0, 0] == CLIPPED
    assert results[0] == (pytest.approx(99), 0)
    assert results[1][1] == 0
    assert 1e-13 < results[1][0] < 1e-10
    assert results[2][1] == 1
    assert results[2][0] < 1e-13


def test_strips_narrow_as_the_matrix_grows(native):
    results = []
    for shared in (1 << 31, 40 * 16 * 4, 40 * 4):
        native.set_policy(512, shared, 2)
        weights = weights_of("few above 1", ((40, 70), (3, 50)))
        check(native, weights)
        results.append(weights[0].memory.tobytes())
    assert len(set(results)) == 1
    native.set_policy(512, 40 * 4 - 1, 2)
    with pytest.raises(RuntimeError, match="too many rows"):
        project(native, weights_of("few above 1", ((40, 70),)))


def test_strips_of_many_rows_fit_the_device(native):
    """32 columns of 912 rows in float64 are more than a block's shared memory. Zeros: the rest of the work is none."""
    native.set_policy(512, 1 << 31, 1)
    assert project(native, [Weight(np.zeros((912, 1)), "float64")])[0, 0] == INSIDE


# ---- many layers ----


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_layers_do_not_see_each_other(native, dtype):
    together = mixed(dtype)
    report = project(native, together, skip=True)
    for weight, row in zip(together, report, strict=True):
        alone = Weight(weight.values, dtype, weight.bound, weight.layout)
        np.testing.assert_array_equal(project(native, [alone], skip=True)[0], row)
        assert alone.memory.tobytes() == weight.memory.tobytes()


def test_sums_in_more_parts_than_a_layer_has_matrices(native):
    """8 parts of each sum, in the place of 4 matrices: they still end before the next layer's place begins."""
    native.set_policy(16, 1 << 31, 2)
    check(native, weights_of("few above 1", ((9, 128), (70, 128), (9, 128)), "float64"))


def test_more_layers_than_a_launch_has_parameters_for(native):
    weights = weights_of("few above 1", [(1 + i % 5, 5 + i) for i in range(60)])
    check(native, weights)


def test_the_launches_do_not_depend_on_the_data(native):
    counts = set()
    for spectrum in ("all inside", "few above 1", "wide"):
        before = native.launches()
        project(native, weights_of(spectrum, ((5, 8),)))
        counts.add(native.launches() - before)
    assert len(counts) == 1
    assert counts.pop() <= 350
    before = native.launches()
    native.project("float32", [], False, 0)
    assert native.launches() == before


# ---- what is not finite ----


@pytest.mark.parametrize("dtype", ("float32", "float64", "float16"))
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_nothing_changes_where_anything_is_not_finite(native, dtype, value):
    weights = weights_of("to 3.9", ((9, 12), (6, 8)), dtype) + weights_of("all inside", ((4, 5),), dtype)
    broken = weights[1].values.copy()
    broken[3, 2] = value
    weights[1] = Weight(broken, dtype)
    report = project(native, weights)
    assert all(weight.untouched for weight in weights)
    assert report[:, 0].tolist() == [CLIPPED, NONFINITE, INSIDE]
    assert report[:, 3].tolist() == [0, 0, 1]
    assert np.isnan(report[1, 2])
    report = project(native, weights, skip=True)
    assert [weight.untouched for weight in weights] == [False, True, True]
    assert report[:, 3].tolist() == [1, 0, 1]
    for i in (0, 2):
        weights[i].check(report[i], native.tolerance(dtype, len(weights[i].values)))


def test_a_float64_matrix_above_1e75_counts_as_not_finite(native):
    weights = [Weight(np.full((2, 3), value), "float64") for value in (1e74, 2e75, 1e200)]
    assert project(native, weights)[:, 0].tolist() == [CLIPPED, NONFINITE, NONFINITE]
    assert all(weight.untouched for weight in weights)


def test_zeros_are_inside(native):
    weights = [Weight(np.zeros((3, 5)), dtype="float32"), Weight(np.full((3, 5), -1e-44))]
    report = project(native, weights)
    assert report[:, 0].tolist() == [INSIDE, INSIDE]
    assert all(weight.untouched for weight in weights)


# ---- against the plain torch version ----


def test_the_tables_are_those_of_python(native):
    pytest.importorskip("torch")
    from vgkernels import svc_projection_sign as sign

    rows, root, numbers = native.coefficients()
    np.testing.assert_allclose(rows, sign.sign_rows(), rtol=1e-9)
    np.testing.assert_allclose(root, sign.root_rows(), rtol=1e-9)
    python = [sign.WIDE, sign.LEAST_BOUND, sign.LARGEST_BOUND, sign.LARGEST_TRACE, sign.ROUNDS, sign.SIGN_STEPS]
    python += [sign.SIGN_STEPS_FLOAT, sign.SIGN_STEPS_WIDE, sign.RESOLUTION, *sign.SQUARINGS.values()]
    assert numbers == python


def test_the_tables_do_what_they_say(native):
    rows, root, _ = native.coefficients()
    for steps, least in ((26, 8e-15), (20, 9e-11), (13, 1e-6)):
        x = np.geomspace(least, 2, 100001)
        for a, b, c, t in rows[-steps:]:
            y = x * x - t
            x = x * (a + b * y + c * y * y)
            assert x.max() < 2
        assert abs(x - 1).max() < 1e-14
    for first, (_, _, u) in enumerate(root):
        y = np.geomspace(1, u, 100001)
        for b, c, _ in root[first:]:
            r = y * y - 1
            y = y * (1 + b * r + c * r * r)
            assert y[0] == 1
        assert abs(y - 1).max() < 1e-14


@pytest.fixture
def torch():
    """One thread: for (20, 33) more of them only wait for each other."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ("float32", "float64", "bfloat16"))
def test_same_as_in_torch(native, torch, dtype):
    from vgkernels.svc_projection_sign import project_by_sign

    for spectrum in SPECTRA:
        (weight,) = weights_of(spectrum, ((20, 33),), dtype, 0.7)
        before = torch.from_numpy(weight.memory.copy())
        before = before.view(torch.bfloat16) if dtype == "bfloat16" else before
        tolerance = native.tolerance(dtype, 20)
        result, row = project_by_sign(before, 0.7, tolerance)
        report = project(native, [weight])[0]
        assert (result is before) == (row[0] == INSIDE)
        difference = np.abs(weight.stored(weight.memory) - result.double().numpy()).max()
        assert difference <= (2 * tolerance if dtype == "bfloat16" else 1e-6 if dtype == "float32" else 1e-12)
        assert report[[0, 3]].tolist() == row[[0, 3]].tolist(), spectrum
        assert abs(report[2] - row[2]) < 1e-5


# ---- every order; sanitizers, on small shapes ----


@pytest.mark.parametrize("dtype", ("float32", "float64", "bfloat16"))
def test_every_order_gives_the_same_bits(native, dtype):
    native.set_policy(16, 34 * 16 * 4, 2)  # several splits and strips
    check_orders(native, dtype, ORDERS if dtype == "float32" else ORDERS[2:6:3])


SANITIZED = """
import svc_projection_emulation as t
from native import build
native = build.load("svc_projection_emulated", t.EMULATED)
native.set_policy(16, 34 * 16 * 4, {rounds})
for dtype in {dtypes}:
    t.check_orders(native, dtype, {orders}, {layers})
print("came to the end")
"""


@pytest.mark.parametrize(
    ("variant", "dtypes", "orders", "rounds", "layers"),
    [
        ("asan", ("float32", "float64", "float16"), ORDERS[:1], 2, slice(None)),
        ("tsan", ("float32",), ORDERS[4:5], 1, slice(0, 2)),
    ],
)
def test_sanitizers_are_silent(variants, variant, dtypes, orders, rounds, layers):
    variants[variant].join()
    code = SANITIZED.format(dtypes=dtypes, orders=orders, rounds=rounds, layers=layers)
    assert output_of(variant, code) == "came to the end"


@pytest.fixture(scope="module", autouse=True)
def variants(emulated):
    with compiling("svc_projection_emulated", EMULATED, "asan", "tsan") as threads:
        yield threads
