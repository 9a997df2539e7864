"""Decides what the sort in the CUDA kernels of flow_warp must give, and that sanitizers find nothing in any of them.

Run by the emulator on numpy arrays; values are in test_flow_warp_emulated.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from flow_warp_emulation import EMULATED, Case, axis, check_emulated, policy, reset
from native.kernels import DTYPES, ORDERS, compiling, load_or_skip, output_of


@pytest.fixture(scope="module")
def emulated():
    return load_or_skip("flow_warp_emulated", EMULATED)


@pytest.fixture
def native(emulated):
    yield emulated
    reset(emulated)


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
            assert not ranges[b][counts == 0].any()  # not what was there, though all of one poison is as empty
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            np.testing.assert_array_equal(ranges[b][counts > 0, 0], starts[counts > 0])


def test_all_pixels_in_one_cell(native):
    policy(native, atomics_below=10**6)
    for last in (False, True):
        check_emulated(native, Case("float32", last, sizes=(1, 4, 5, 6, 50, 90), flow_kind="one cell"), ORDERS[2:4])


# ---- sanitizers, on small shapes ----

SANITIZED = """
import itertools
import flow_warp_emulation as t
from native import build
native = build.load("flow_warp_emulated", t.EMULATED)
for dtype, last, size in itertools.product({dtypes}, (False, True), {sizes}):
    for padding, wide in (("border", False), ("zeros", True), ("reflection", False)):
        t.policy(native, wide=wide, blocks=3, atomics_below=10**6)
        kind = "broken" if padding == "reflection" else "smooth"
        t.check_emulated(native, t.Case(dtype, last, "bilinear", padding, True, size, kind), {orders})
print("came to the end")
"""


@pytest.mark.parametrize(
    ("variant", "dtypes", "sizes", "orders"),
    [
        ("asan", DTYPES, ((2, 8, 5, 7, 6, 9), (1, 3, 4, 1, 5, 33), (1, 17, 1, 6, 3, 4)), ORDERS[:1]),
        ("tsan", ("float32", "bfloat16"), ((1, 8, 5, 7, 9, 9), (1, 3, 4, 6, 5, 33)), ORDERS[2:3]),
    ],
)
def test_sanitizers_are_silent(variants, variant, dtypes, sizes, orders):
    variants[variant].join()
    code = SANITIZED.format(dtypes=dtypes, sizes=sizes, orders=orders)
    assert output_of(variant, code) == "came to the end"


@pytest.fixture(scope="module", autouse=True)
def variants(emulated):
    with compiling("flow_warp_emulated", EMULATED, "asan", "tsan") as threads:
        yield threads
