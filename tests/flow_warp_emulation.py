"""Decides what flow_warp must compute, in numpy's float64, and how tests call its kernels torch-free on numpy arrays.

A Case is one call; `reference` are the op's formulas. Serves the emulated CUDA kernels and the CPU kernels, both built
by native/build.py; what is tried on them is decided in test_flow_warp_emulated*.py and test_flow_warp_cpu_native.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from native.kernels import ORDERS, accumulate, narrow, widen

EMULATED = (
    "csrc/flow_warp/flow_warp_cuda.cu",
    "csrc/flow_warp/flow_warp_backward_cuda.cu",
    "csrc/flow_warp/flow_warp_sort_cuda.cu",
    "tests/native/flow_warp_bindings.cpp",
)
MODES = ("bilinear", "nearest")
PADDINGS = ("border", "zeros", "reflection")
FLOWS = ("smooth", "random", "zero", "whole", "far", "huge", "broken", "one cell")
# Rounding of a result of size 1: one unit of the last place for 16-bit storage, sums of at most 1e3 terms else.
TOLERANCE = {"float64": 2e-14, "float32": 5e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}
GRADIENTS = ("image", "flow", "mask", "painted")


def reset(native):
    """The emulator and the launchers' policy as they are without a test's wishes."""
    native.configure()
    policy(native)


def policy(native, wide=False, scratch=64 << 20, blocks=528, atomics_below=32):
    native.set_policy(0 if wide else 2**31 - 2**20, scratch, blocks, atomics_below)


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
    workspace: int | None = None  # bytes that the last backward on CUDA took

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

    def forward(self, native, *how):
        """`how` is what the module's forward takes besides: nothing (emulator), or pieces and reversed (CPU)."""
        out = np.full_like(lay(self.arrays["painted"], self.last), poison_of(self.dtype))
        native.forward(*self.common(), out, *how)
        return unlay(out, self.last)

    def backward(self, native, *how, asked=GRADIENTS):
        """`how`: deterministic and the workspace's poison (emulator), or pieces and reversed (CPU)."""
        a = self.arrays
        asked = [name for name in asked if self.blend or name in ("image", "flow")]
        grads = {name: np.full_like(lay(a[name], self.last and name in ("image", "painted")), 77) for name in asked}
        arrays = lay(a["grad_out"], self.last), *(grads.get(name) for name in GRADIENTS)
        self.workspace = native.backward(*self.common(), *arrays, *how)
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
        values = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 2.0**31, -(2.0**31), 0.5, -1.0, 0.0])
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


def check_emulated(native, case, orders=ORDERS):
    """Forward, deterministic and atomic backward against the formulas; the first two bitwise equal in every order."""
    expected = reference(case)
    digests = set()
    for schedule, poison in orders:
        native.configure(schedule, poison)
        out = case.forward(native)
        gather = case.backward(native, True, poison)
        digests.add(b"".join(array.tobytes() for array in (out, *gather.values())))
        scatter = case.backward(native, False, poison)
        if len(digests) == 1 and (schedule, poison) == orders[0]:
            assert_close("out", out, expected["out"], summary(case), case.dtype)
            for name, got in gather.items():
                own = case.dtype if name in ("image", "painted") else accumulate(case.dtype).__name__
                assert_close(name, got, expected[name], summary(case), own)
        assert_close("image", scatter["image"], expected["image"], f"atomic {summary(case)}", case.dtype)
        for name in set(gather) - {"image"}:
            assert scatter[name].tobytes() == gather[name].tobytes(), f"{name} of {summary(case)}"
    assert len(digests) == 1, f"order or poison changes the bits of {summary(case)}"
