"""Decides what the CUDA kernels of flow_warp must compute, run by the emulator on numpy arrays: values, order, bounds.

The reference is the op's formulas in numpy's float64; how the emulator schedules is decided in native/.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from native import build

SOURCES = (
    "csrc/flow_warp/flow_warp_cuda.cu",
    "csrc/flow_warp/flow_warp_backward_cuda.cu",
    "csrc/flow_warp/flow_warp_sort_cuda.cu",
    "tests/native/flow_warp_bindings.cpp",
)
SCHEDULES = ("forward", "reverse", "random:7", "greedy-reverse")
ORDERS = tuple(itertools.product(SCHEDULES, (0xFF, 0x00)))
DTYPES = ("float64", "float32", "float16", "bfloat16")
MODES = ("bilinear", "nearest")
PADDINGS = ("border", "zeros", "reflection")
FLOWS = ("smooth", "random", "zero", "whole", "far", "huge", "broken", "one cell")
# Rounding of a result of size 1: one unit of the last place for 16-bit storage, sums of at most 1e3 terms else.
TOLERANCE = {"float64": 2e-14, "float32": 5e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}
GRADIENTS = ("image", "flow", "mask", "painted")


@pytest.fixture(scope="module")
def native():
    try:
        return build.load("flow_warp_emulated", SOURCES)
    except build.NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def defaults(request):
    yield
    if "native" in request.fixturenames:
        module = request.getfixturevalue("native")
        module.configure()
        policy(module)


def policy(native, wide=False, scratch=64 << 20, blocks=528, atomics_below=32):
    native.set_policy(0 if wide else 2**31 - 2**20, scratch, blocks, atomics_below)


# ---- storage: every array the kernels see is of the dtype's own bits ----


def accumulate(dtype):
    return np.float64 if dtype == "float64" else np.float32


def narrow(values, dtype):
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(dtype)
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def widen(stored, dtype):
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def lay(array, last):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if last else array)


def unlay(array, last):
    return array.transpose(0, 3, 1, 2) if last else array


# ---- one call ----


@dataclass
class Case:
    dtype: str = "float32"
    last: bool = False  # channels_last
    mode: str = "bilinear"
    padding: str = "border"
    blend: bool = True
    sizes: tuple[int, ...] = (2, 5, 7, 9, 6, 11)  # B, C, H, W, Ho, Wo
    flow_kind: str = "random"
    seed: int = 0
    arrays: dict = field(default_factory=dict)

    def __post_init__(self):
        B, C, H, W, Ho, Wo = self.sizes
        draw = np.random.default_rng(self.seed)
        self.arrays = {
            "image": narrow(draw.standard_normal((B, C, H, W)), self.dtype),
            "flow": make_flow(self.flow_kind, self.sizes, draw).astype(accumulate(self.dtype)),
            "mask": draw.choice([0.0, 0.25, 0.7, 1.0], (B, 1, Ho, Wo)).astype(accumulate(self.dtype)),
            "painted": narrow(draw.standard_normal((B, C, Ho, Wo)), self.dtype),
            "grad_out": narrow(draw.standard_normal((B, C, Ho, Wo)), self.dtype),
        }

    def common(self):
        a = self.arrays
        blended = (a["mask"], lay(a["painted"], self.last)) if self.blend else (None, None)
        return (
            self.dtype,
            self.sizes,
            self.last,
            self.mode,
            self.padding,
            lay(a["image"], self.last),
            a["flow"],
            *blended,
        )

    def forward(self, native):
        out = np.full_like(lay(self.arrays["painted"], self.last), poison_of(self.dtype))
        native.forward(*self.common(), out)
        return unlay(out, self.last)

    def backward(self, native, deterministic, asked=GRADIENTS, poison=0xFF):
        a = self.arrays
        asked = [name for name in asked if self.blend or name in ("image", "flow")]
        grads = {name: np.full_like(lay(a[name], self.last and name in ("image", "painted")), 77) for name in asked}
        native.backward(
            *self.common(),
            lay(a["grad_out"], self.last),
            *(grads.get(name) for name in GRADIENTS),
            deterministic,
            poison,
        )
        return {name: unlay(grad, self.last and name in ("image", "painted")) for name, grad in grads.items()}


def poison_of(dtype):
    return 0x7FC1 if dtype == "bfloat16" else np.nan


def make_flow(kind, sizes, draw):
    B, *_, Ho, Wo = sizes
    y, x = np.mgrid[0:Ho, 0:Wo]
    if kind == "smooth":
        plane = np.stack([1.3 + np.sin(x / 5 + y / 7), -0.6 + np.cos(x / 6 - y / 4)])
        return np.broadcast_to(plane, (B, 2, Ho, Wo)).copy()
    if kind == "zero":
        return np.zeros((B, 2, Ho, Wo))
    if kind == "whole":
        return draw.integers(-2, 3, (B, 2, Ho, Wo)).astype(float)
    if kind == "one cell":  # every pixel reads (0.25, 0.5)
        return np.broadcast_to(np.stack([0.25 - x, 0.5 - y]), (B, 2, Ho, Wo)).copy()
    random = draw.uniform(-3, 3, (B, 2, Ho, Wo))
    if kind == "far":
        return random * 40
    if kind == "huge":
        return random * 1e30
    if kind == "broken":
        values = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 0.5, -1.0, 0.0])
        return np.where(draw.random((B, 2, Ho, Wo)) < 0.5, draw.choice(values, (B, 2, Ho, Wo)), random)
    return random


# ---- the formulas, in float64 from the stored inputs ----


def axis(position, n, mode, padding):
    """The first tap, the fraction and d position / d flow of each position along an axis of n samples."""
    position = position.astype(np.float64)
    last = n - 1
    slope = np.ones_like(position)
    with np.errstate(invalid="ignore"):
        if padding == "zeros":
            x = np.clip(np.nan_to_num(position, nan=-5.0), -5, n + 5)
        else:
            x = np.nan_to_num(position, nan=0.0, posinf=np.inf, neginf=-np.inf)
            if padding == "reflection":
                usable = np.isfinite(x) & (last > 0)
                folded = np.fmod(np.abs(np.where(usable, x, 0.0)), max(2 * last, 1))
                slope = np.where(x < 0, -1.0, 1.0) * np.where(folded > last, -1.0, 1.0)
                x = np.where(usable, np.where(folded > last, 2 * last - folded, folded), 0.0)
            slope = np.where((x > 0) & (x < last), slope, 0.0)
            x = np.clip(x, 0, last)
    if mode == "nearest":
        return np.rint(x).astype(int), np.zeros_like(x), np.zeros_like(x)
    cell = np.floor(x).astype(int)
    if padding != "zeros" and n > 1:
        cell = np.minimum(cell, n - 2)
    return cell, x - cell, slope


def select(coefficient, values):
    """coefficient * values, and 0 where the coefficient is, whatever the value."""
    return np.where(coefficient == 0, 0.0, coefficient * np.where(coefficient == 0, 0.0, values))


def reference(case):
    B, C, H, W, Ho, Wo = case.sizes
    image, painted, g = (widen(case.arrays[name], case.dtype) for name in ("image", "painted", "grad_out"))
    flow, mask = case.arrays["flow"], case.arrays["mask"].astype(np.float64)
    if not case.blend:
        mask = np.zeros_like(mask)
    with np.errstate(all="ignore"):
        x, fx, x_slope = axis(np.arange(Wo, dtype=flow.dtype) + flow[:, 0], W, case.mode, case.padding)
        y, fy, y_slope = axis(np.arange(Ho, dtype=flow.dtype)[:, None] + flow[:, 1], H, case.mode, case.padding)
        warped, grad_image = np.zeros_like(painted), np.zeros_like(image)
        grad_x, grad_y = np.zeros((B, Ho, Wo)), np.zeros((B, Ho, Wo))
        batch, channel = np.arange(B)[:, None, None, None], np.arange(C)[None, :, None, None]
        for row, column in itertools.product((0, 1), (0, 1)):
            inside = (y + row >= 0) & (y + row < H) & (x + column >= 0) & (x + column < W)
            at_y, at_x = np.clip(y + row, 0, H - 1)[:, None], np.clip(x + column, 0, W - 1)[:, None]
            wy, wx = (fy if row else 1 - fy), (fx if column else 1 - fx)
            value = image[batch, channel, at_y, at_x]
            warped += select(np.where(inside, wy * wx, 0)[:, None], value)
            dots = (g * value).sum(1)
            grad_x += select(np.where(inside & (x_slope != 0), wy if column else -wy, 0), dots)
            grad_y += select(np.where(inside & (y_slope != 0), wx if row else -wx, 0), dots)
            part = select(np.where(inside, wy * wx, 0)[:, None], (1 - mask) * g)
            part = np.where(inside[:, None] & ((wy * wx)[:, None] != 0), part, 0)
            np.add.at(grad_image, (batch, channel, at_y, at_x), part)
        keep = (1 - mask)[:, 0]
        return {
            "out": (1 - mask) * warped + mask * painted if case.blend else warped,
            "image": grad_image,
            "flow": np.stack([select(x_slope, keep * grad_x), select(y_slope, keep * grad_y)], 1),
            "mask": (g * (painted - warped)).sum(1, keepdims=True),
            "painted": mask * g,
        }


def assert_close(name, got, expected, case, dtype):
    got = widen(got, dtype)
    tolerance = TOLERANCE[dtype if name in ("out", "image", "painted") else accumulate(dtype).__name__]
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=f"{name} of {case}")
    scale = 1 + np.abs(expected[finite]).max(initial=0) if tolerance < 1e-4 else np.abs(expected[finite]) + 1e-2
    error = np.abs(got[finite] - expected[finite])
    assert (error <= tolerance * scale).all(), f"{name} of {case}: error {error.max()}"


def summary(case):
    return f"{case.dtype} last={case.last} {case.mode} {case.padding} {case.blend=} {case.sizes} {case.flow_kind}"


def check(native, case, orders=ORDERS):
    """Forward, deterministic and atomic backward against the formulas; the first two bitwise equal in every order."""
    expected = reference(case)
    digests = set()
    for schedule, poison in orders:
        native.configure(schedule, poison)
        out = case.forward(native)
        gather = case.backward(native, True, poison=poison)
        digests.add(b"".join(array.tobytes() for array in (out, *gather.values())))
        scatter = case.backward(native, False, poison=poison)
        if len(digests) == 1 and (schedule, poison) == orders[0]:
            assert_close("out", out, expected["out"], summary(case), case.dtype)
            for name, got in gather.items():
                own = case.dtype if name in ("image", "painted") else accumulate(case.dtype).__name__
                assert_close(name, got, expected[name], summary(case), own)
        assert_close("image", scatter["image"], expected["image"], f"atomic {summary(case)}", case.dtype)
        for name in set(gather) - {"image"}:
            assert scatter[name].tobytes() == gather[name].tobytes(), f"{name} of {summary(case)}"
    assert len(digests) == 1, f"order or poison changes the bits of {summary(case)}"


# ---- values, in every order ----

SIZES = ((2, 5, 7, 9, 6, 11), (1, 8, 13, 6, 13, 6), (2, 16, 5, 34, 9, 33), (1, 3, 8, 8, 17, 5), (1, 4, 1, 7, 3, 4))
TEMPLATES = list(itertools.product(DTYPES, (False, True), MODES, PADDINGS, (False, True), (False, True)))


@pytest.mark.parametrize(("dtype", "last", "mode", "padding", "blend", "wide"), TEMPLATES)
def test_every_template_in_every_order(native, dtype, last, mode, padding, blend, wide):
    policy(native, wide=wide, atomics_below=10**6)
    number = TEMPLATES.index((dtype, last, mode, padding, blend, wide))
    sizes, kind = SIZES[number % len(SIZES)], FLOWS[number % len(FLOWS)]
    check(native, Case(dtype, last, mode, padding, blend, sizes, kind, seed=number))


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("last", (False, True))
def test_flows(native, kind, padding, last):
    policy(native, atomics_below=10**6)
    for mode, dtype in itertools.product(MODES, ("float32", "float64")):
        for sizes in ((2, 4, 9, 12, 9, 12), (1, 1, 1, 5, 2, 5), (1, 2, 6, 1, 6, 3), (1, 3, 1, 1, 2, 2)):
            check(native, Case(dtype, last, mode, padding, True, sizes, kind), ORDERS[:1])


@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("channels", (1, 3, 4, 8, 17, 64, 260))
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(native, dtype, channels, last):
    policy(native, blocks=3, atomics_below=10**6)  # 3 blocks: planes are cut into slices
    check(native, Case(dtype, last, sizes=(1, channels, 6, 7, 5, 9), seed=channels), ORDERS[:3])


@pytest.mark.parametrize(("last", "dtype"), [(False, "float32"), (True, "float32"), (True, "bfloat16")])
def test_several_blocks_along_every_axis(native, last, dtype):
    policy(native, blocks=40, atomics_below=10**6)
    check(native, Case(dtype, last, sizes=(2, 8, 35, 67, 41, 70), flow_kind="smooth"), ORDERS[1:3])


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
        check(native, case, ORDERS[:1])


@pytest.mark.parametrize("mode", MODES)
def test_clamped_and_nearest_flow_gradients_are_exactly_zero(native, mode):
    for padding, value in itertools.product(("border", "reflection"), (np.inf, np.nan, 1.0)):
        case = Case("float32", False, mode, padding, False, (1, 2, 4, 6, 4, 6), "zero")
        case.arrays["image"][:] = value
        if mode == "bilinear":  # x: beyond the edge (border) or on it; y: on row 0
            case.arrays["flow"][:, 0] = -np.arange(6) - (2 if padding == "border" else 0)
            case.arrays["flow"][:, 1] = -np.arange(4)[:, None]
        assert not case.backward(native, True, ("flow",))["flow"].any()


def test_flow_gradient_is_one_sided_on_a_sample(native):
    case = Case("float64", False, "bilinear", "border", False, (1, 1, 4, 5, 4, 5), "zero")
    grad = case.backward(native, True, ("flow",))["flow"]
    image, g = case.arrays["image"][0, 0], case.arrays["grad_out"][0, 0]
    expected = np.zeros((4, 5))
    expected[:, 1:-1] = (g * np.roll(image, -1, 1) - g * image)[:, 1:-1]
    np.testing.assert_allclose(grad[0, 0], expected, atol=1e-14)


@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_are_those_of_the_forward(native, padding, last):
    """Central differences of sum(out * grad_out) along one random direction of all inputs, away from the kinks."""
    case = Case("float64", last, "bilinear", padding, True, (2, 3, 7, 8, 6, 9), "random", seed=3)
    grads = case.backward(native, True)
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
    whole = case.backward(native, deterministic)
    launches = {}
    for count in range(5):
        for asked in itertools.combinations(GRADIENTS, count):
            before = native.launches()
            got = case.backward(native, deterministic, asked)
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
        Case(dtype, sizes=(1, channels, 3, 4, 3, 4)).backward(native, False, ("image",))
        assert native.launches() - before == (6 if sorts else 1)


@pytest.mark.parametrize(("dtype", "deterministic"), list(itertools.product(("float32", "bfloat16"), (True, False))))
def test_small_scratch_takes_the_images_in_groups(native, dtype, deterministic):
    case = Case(dtype, True, sizes=(5, 8, 6, 7, 5, 9))
    results = []
    for scratch in (64 << 20, 40 << 10, 0):
        policy(native, scratch=scratch, atomics_below=10**6)
        results.append(case.backward(native, deterministic, ("image",))["image"])
    if deterministic:
        assert len({result.tobytes() for result in results}) == 1
    for result in results:
        assert_close("image", result, reference(case)["image"], summary(case), dtype)


@pytest.mark.parametrize("zero", range(6))
def test_empty_sizes_launch_nothing_and_leave_zeros(native, zero):
    sizes = [2, 3, 4, 5, 6, 7]
    sizes[zero] = 0
    case = Case("float32", blend=False, sizes=tuple(sizes), flow_kind="zero")
    before = native.launches()
    if zero not in (2, 3):
        case.forward(native)
    grads = case.backward(native, True)
    assert native.launches() == before
    assert not any(grad.any() for grad in grads.values())


# ---- the sort ----


@pytest.mark.parametrize("pixels", (1, 2047, 2048, 2049, 5000))
@pytest.mark.parametrize("grid", ((3, 4), (40, 50), (300, 260)))
def test_sort_is_stable_and_the_ranges_fit(native, pixels, grid):
    """1, 2 and 3 passes of 8 bits; one below, at and above a tile; two images; the same in every order."""
    H, W = grid
    draw = np.random.default_rng(pixels)
    flow = draw.uniform(-3, max(H, W), (2, 2, 1, pixels)).astype(np.float32)
    flow[:, 0] -= np.arange(pixels, dtype=np.float32)
    flow[1, :, :, pixels // 3 : pixels // 2] = np.nan
    sizes = (2, 1, H, W, 1, pixels)
    x, _, _ = axis(np.arange(pixels, dtype=np.float32) + flow[:, 0, 0], W, "bilinear", "zeros")
    y, _, _ = axis(flow[:, 1, 0], H, "bilinear", "zeros")
    reads = (x >= -1) & (x < W) & (y >= -1) & (y < H)
    key = np.where(reads, (y + 1) * (W + 1) + x + 1, (H + 1) * (W + 1))
    for schedule, poison in ORDERS if pixels < 3000 and H < 300 else ORDERS[::3]:
        native.configure(schedule, poison)
        order, ranges = native.cell_lists(sizes, "zeros", flow, poison)
        for b in range(2):
            expected = np.argsort(key[b], kind="stable")
            np.testing.assert_array_equal(order[b][: reads[b].sum()], expected[: reads[b].sum()])
            counts = np.bincount(key[b], minlength=(H + 1) * (W + 1) + 1)[:-1]
            np.testing.assert_array_equal(ranges[b][:, 1] - ranges[b][:, 0], counts)
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            np.testing.assert_array_equal(ranges[b][counts > 0, 0], starts[counts > 0])


def test_all_pixels_in_one_cell(native):
    policy(native, atomics_below=10**6)
    for last in (False, True):
        check(native, Case("float32", last, sizes=(1, 4, 5, 6, 50, 90), flow_kind="one cell"), ORDERS[2:4])


# ---- against the op: the same numbers as the CPU kernels and the reference ----


@pytest.mark.parametrize("function", ("flow_warp_blend", "flow_warp_blend_reference"))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
@pytest.mark.parametrize("last", (False, True))
def test_same_as_the_op_on_the_cpu(native, last, dtype, function):
    torch = pytest.importorskip("torch")
    op = getattr(pytest.importorskip("vgkernels"), function)
    for mode, padding, kind in itertools.product(MODES, PADDINGS, ("smooth", "random", "whole", "far", "broken")):
        case = Case(dtype, last, mode, padding, True, (2, 5, 7, 9, 6, 11), kind)
        format = torch.channels_last if last else torch.contiguous_format
        inputs = [torch.from_numpy(case.arrays[name]).contiguous(memory_format=format) for name in GRADIENTS]
        out = op(*(tensor.requires_grad_() for tensor in inputs), mode=mode, padding_mode=padding)
        grads = torch.autograd.grad(out, inputs, torch.from_numpy(case.arrays["grad_out"]), allow_unused=True)
        expected = dict(zip(GRADIENTS, grads, strict=True), out=out.detach())
        got = {"out": case.forward(native), **case.backward(native, True)}
        for name, tensor in expected.items():
            values = np.zeros(got[name].shape) if tensor is None else tensor.numpy().astype(np.float64)
            assert_close(name, got[name], values, f"{function} {summary(case)}", dtype)


# ---- sanitizers, on small shapes ----

SANITIZED = """
import itertools
from native import build
import test_flow_warp_emulated as t
native = build.load("flow_warp_emulated", t.SOURCES)
for dtype, last, size in itertools.product({dtypes}, (False, True), {sizes}):
    for padding, wide in (("border", False), ("zeros", True), ("reflection", False)):
        t.policy(native, wide=wide, blocks=3, atomics_below=10**6)
        kind = "broken" if padding == "reflection" else "smooth"
        t.check(native, t.Case(dtype, last, "bilinear", padding, True, size, kind), {orders})
"""


@pytest.mark.parametrize(
    ("variant", "dtypes", "sizes", "orders"),
    [
        ("asan", DTYPES, ((2, 8, 5, 7, 6, 9), (1, 3, 4, 1, 5, 33), (1, 17, 1, 6, 3, 4)), ORDERS[:1]),
        ("tsan", ("float32", "bfloat16"), ((1, 8, 5, 7, 9, 9), (1, 3, 4, 6, 5, 33)), ORDERS[2:3]),
    ],
)
def test_sanitizers_are_silent(native, variants, variant, dtypes, sizes, orders):
    variants.join()
    done = build.run_sanitized(variant, SANITIZED.format(dtypes=dtypes, sizes=sizes, orders=orders))
    assert done.returncode == 0 and "ERROR" not in done.stderr and "WARNING" not in done.stderr, done.stderr[-4000:]
    assert "runtime error" not in done.stderr, done.stderr[-4000:]


@pytest.fixture(scope="module", autouse=True)
def variants(native):
    """Compiles the sanitized modules while the other tests run."""

    def compile_all():
        for variant in ("asan", "tsan"):
            build.build("flow_warp_emulated", SOURCES, variant)

    thread = threading.Thread(target=compile_all)
    thread.start()
    yield thread
    thread.join()
