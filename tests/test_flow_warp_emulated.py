"""Decides what the CUDA kernels of flow_warp must compute, run by the emulator on numpy arrays: values, in every order.

The reference is in flow_warp_emulation.py, the sort and the sanitizers in test_flow_warp_emulated_sort.py; how the
emulator schedules is decided in native/.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flow_warp_emulation import (
    EMULATED,
    FLOWS,
    GRADIENTS,
    MODES,
    PADDINGS,
    Case,
    assert_close,
    check_emulated,
    policy,
    reference,
    reset,
    summary,
)
from native.kernels import DTYPES, ORDERS, load_or_skip, narrow, widen


@pytest.fixture(scope="module")
def emulated():
    return load_or_skip("flow_warp_emulated", EMULATED)


@pytest.fixture
def native(emulated):
    yield emulated
    reset(emulated)


# ---- values, in every order ----

SIZES = ((2, 5, 7, 9, 6, 11), (1, 8, 13, 6, 13, 6), (2, 16, 5, 34, 9, 33), (1, 3, 8, 8, 17, 5), (1, 4, 1, 7, 3, 4))
TEMPLATES = list(itertools.product(DTYPES, (False, True), MODES, PADDINGS, (False, True), (False, True)))


@pytest.mark.parametrize(("dtype", "last", "mode", "padding", "blend", "wide"), TEMPLATES)
def test_every_template_in_every_order(native, dtype, last, mode, padding, blend, wide):
    policy(native, wide=wide, atomics_below=10**6)
    number = TEMPLATES.index((dtype, last, mode, padding, blend, wide))
    sizes, kind = SIZES[number % len(SIZES)], FLOWS[number % len(FLOWS)]
    orders = [ORDERS[2 * i + (i + number) % 2] for i in range(4)]  # every schedule, the poisons in turn
    check_emulated(native, Case(dtype, last, mode, padding, blend, sizes, kind, seed=number), orders)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("last", (False, True))
def test_flows(native, kind, padding, last):
    policy(native, atomics_below=10**6)
    sizes = ((2, 4, 9, 12, 9, 12), (1, 1, 1, 5, 2, 5), (1, 2, 6, 1, 6, 3), (1, 3, 1, 1, 2, 2))
    for number, (mode, size) in enumerate(itertools.product(MODES, sizes)):
        dtype = ("float32", "float64")[(number + number // 4) % 2]
        check_emulated(native, Case(dtype, last, mode, padding, True, size, kind), ORDERS[:1])


@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("channels", (1, 3, 4, 8, 17, 64, 260))
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(native, dtype, channels, last):
    policy(native, blocks=3, atomics_below=10**6)  # 3 blocks: planes are cut into slices
    check_emulated(native, Case(dtype, last, sizes=(1, channels, 6, 7, 5, 9), seed=channels), ORDERS[:3])


@pytest.mark.parametrize(("last", "dtype"), [(False, "float32"), (True, "float32"), (True, "bfloat16")])
def test_several_blocks_along_every_axis(native, last, dtype):
    policy(native, blocks=40, atomics_below=10**6)
    check_emulated(native, Case(dtype, last, sizes=(2, 8, 35, 67, 41, 70), flow_kind="smooth"), ORDERS[1:3])


def test_many_channels_of_tall_images(native):
    """32 lanes a pixel leave 8 pixels for a block, fewer than a column has."""
    policy(native, atomics_below=10**6)
    check_emulated(native, Case("float32", True, sizes=(1, 128, 17, 3, 19, 2)), ORDERS[:1])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("last", (False, True))
def test_values_that_are_not_finite_stay_where_they_count(native, last, padding):
    for kind, dtype in itertools.product(("whole", "random", "far", "broken"), ("float32", "bfloat16")):
        case = Case(dtype, last, "bilinear", padding, kind != "random", (1, 4, 8, 9, 8, 9), kind)
        draw = np.random.default_rng(5)
        for name in ("image", "grad_out", "painted"):
            array = widen(case.arrays[name], dtype)
            array[draw.random(array.shape) < 0.02] = draw.choice([np.inf, -np.inf, np.nan])
            case.arrays[name] = narrow(array, dtype)
        policy(native, atomics_below=10**6)
        check_emulated(native, case, ORDERS[:1])


@pytest.mark.parametrize("mode", MODES)
def test_clamped_and_nearest_flow_gradients_are_exactly_zero(native, mode):
    for padding, value in itertools.product(("border", "reflection"), (np.inf, np.nan, 1.0)):
        case = Case("float32", False, mode, padding, False, (1, 2, 4, 6, 4, 6), "zero")
        case.arrays["image"][:] = value
        if mode == "bilinear":  # x: beyond the edge (border) or on it; y: on row 0
            case.arrays["flow"][:, 0] = -np.arange(6) - (2 if padding == "border" else 0)
            case.arrays["flow"][:, 1] = -np.arange(4)[:, None]
        assert not case.backward(native, True, 0xFF, asked=("flow",))["flow"].any()


def test_flow_gradient_is_one_sided_on_a_sample(native):
    case = Case("float64", False, "bilinear", "border", False, (1, 1, 4, 5, 4, 5), "zero")
    grad = case.backward(native, True, 0xFF, asked=("flow",))["flow"]
    image, g = case.arrays["image"][0, 0], case.arrays["grad_out"][0, 0]
    expected = np.zeros((4, 5))
    expected[:, 1:-1] = (g * np.roll(image, -1, 1) - g * image)[:, 1:-1]
    np.testing.assert_allclose(grad[0, 0], expected, atol=1e-14)


@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_are_those_of_the_forward(native, padding, last):
    """Central differences of sum(out * grad_out) along one random direction of all inputs, away from the kinks."""
    case = Case("float64", last, "bilinear", padding, True, (2, 3, 7, 8, 6, 9), "random", seed=3)
    grads = case.backward(native, True, 0xFF)
    draw = np.random.default_rng(8)
    start = {name: case.arrays[name].copy() for name in GRADIENTS}
    step = {name: draw.standard_normal(start[name].shape) for name in GRADIENTS}
    sums = []
    for h in (1e-6, -1e-6):
        for name in GRADIENTS:
            case.arrays[name] = start[name] + h * step[name]
        sums.append((case.forward(native) * case.arrays["grad_out"]).sum())
    expected = sum((grads[name] * step[name]).sum() for name in GRADIENTS)
    assert abs((sums[0] - sums[1]) / 2e-6 - expected) < 1e-6 * (1 + abs(expected))


# ---- which work is done ----


@pytest.mark.parametrize("deterministic", (True, False))
@pytest.mark.parametrize("last", (False, True))
def test_only_the_asked_gradients_are_computed(native, last, deterministic):
    policy(native, atomics_below=10**6)
    case = Case("float32", last, sizes=(1, 4, 5, 6, 7, 8))
    whole = case.backward(native, deterministic, 0xFF)
    launches = {}
    for count in range(5):
        for asked in itertools.combinations(GRADIENTS, count):
            before = native.launches()
            got = case.backward(native, deterministic, 0xFF, asked=asked)
            launches[asked] = native.launches() - before
            for name in asked:
                if deterministic or name != "image":
                    assert got[name].tobytes() == whole[name].tobytes(), (name, asked)
    assert launches[()] == 0
    assert all(launches[asked] == 1 for asked in launches if asked and "image" not in asked)  # no sort
    assert launches[("image",)] == (6 if deterministic else 1)  # keys, 3 of the one pass, entries, gather
    assert launches[GRADIENTS] == launches[("image",)] + 1


def test_the_choice_between_gather_and_scatter(native):
    for dtype, channels, sorts in (("float32", 31, False), ("float32", 32, True), ("float64", 33, True)):
        before = native.launches()
        Case(dtype, sizes=(1, channels, 3, 4, 3, 4)).backward(native, False, 0xFF, asked=("image",))
        assert native.launches() - before == (6 if sorts else 1)


@pytest.mark.parametrize(("dtype", "deterministic"), list(itertools.product(("float32", "bfloat16"), (True, False))))
def test_small_scratch_takes_the_images_in_groups(native, dtype, deterministic):
    """One by one, in groups of two and all five at once. The arrays hold a sixth, which stays as it is."""
    case = Case(dtype, True, sizes=(6, 8, 6, 7, 5, 9))
    expected = reference(case)["image"][:5]
    policy(native, atomics_below=10**6)
    case.sizes = (1, *case.sizes[1:])
    case.backward(native, deterministic, 0xFF, asked=("image",))
    one, results = case.workspace, []
    case.sizes = (5, *case.sizes[1:])
    for images in (0, 1, 2, 100):
        policy(native, scratch=images * one, atomics_below=10**6)
        results.append(case.backward(native, deterministic, 0xFF, asked=("image",))["image"])
        assert case.workspace <= min(max(images, 1), 5) * one
    if deterministic:
        assert len({result.tobytes() for result in results}) == 1
    for result in results:
        assert (result[5] == 77).all()
        assert_close("image", result[:5], expected, summary(case), dtype)


@pytest.mark.parametrize("zero", range(6))
def test_empty_sizes_launch_nothing_and_leave_zeros(native, zero):
    sizes = [2, 3, 4, 5, 6, 7]
    sizes[zero] = 0
    case = Case("float32", blend=False, sizes=tuple(sizes), flow_kind="zero")
    before = native.launches()
    if zero not in (2, 3):
        case.forward(native)
    grads = case.backward(native, True, 0xFF)
    assert native.launches() == before
    assert not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize("axis", range(6))
def test_sizes_beyond_32_bits_are_refused(native, axis):
    sizes = [1] * 6
    sizes[axis] = 2**31
    assert "every size below 2^31" in native.refusal(sizes)


@pytest.mark.parametrize("sizes", [(1, 1, 2**16, 2**15, 1, 1), (1, 1, 1, 1, 2**16, 2**15)])
def test_lists_of_more_than_32_bits_are_refused(native, sizes):
    assert "fewer than 2^31 pixels" in native.refusal(sizes)


@pytest.mark.parametrize(
    ("sizes", "long"),
    [
        ((1, 1, 1, 1, 2**15, 2**14), False),
        ((1, 1, 1, 1, 2**15, 2**15), True),  # of the flow, which has two channels
        ((1, 1, 2**15, 2**15, 1, 1), True),
        ((2, 3, 2**15, 2**14, 1, 1), True),
        ((2, 3, 1, 1, 2**15, 2**14), True),
        ((2, 3, 2**14, 2**14, 2**14, 2**14), False),
    ],
)
def test_elements_beyond_32_bits_get_longer_indices(native, sizes, long):
    assert native.index_bytes(sizes) == (8 if long else 4)


# ---- against the op: the same numbers as the CPU kernels and the reference ----


@pytest.mark.parametrize("dtype", ("float64", "float32"))
@pytest.mark.parametrize("last", (False, True))
def test_same_as_the_op_on_the_cpu(native, last, dtype):
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("vgkernels")
    for mode, padding, kind in itertools.product(MODES, PADDINGS, ("smooth", "random", "whole", "far", "broken")):
        case = Case(dtype, last, mode, padding, True, (2, 5, 7, 9, 6, 11), kind)
        got = {"out": case.forward(native), **case.backward(native, True, 0xFF)}
        format = torch.channels_last if last else torch.contiguous_format
        inputs = [torch.from_numpy(case.arrays[name]).contiguous(memory_format=format) for name in GRADIENTS]
        for function in (ops.flow_warp_blend, ops.flow_warp_blend_reference):
            out = function(*(tensor.requires_grad_() for tensor in inputs), mode=mode, padding_mode=padding)
            grads = torch.autograd.grad(out, inputs, torch.from_numpy(case.arrays["grad_out"]), allow_unused=True)
            expected = dict(zip(GRADIENTS, grads, strict=True), out=out.detach())
            for name, tensor in expected.items():
                values = np.zeros(got[name].shape) if tensor is None else tensor.numpy().astype(np.float64)
                assert_close(name, got[name], values, f"{function.__name__} {summary(case)}", dtype)
