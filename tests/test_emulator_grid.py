"""Decides whether the emulated barrier of a whole grid can be trusted: each planted fault must be found, nothing else.

The kernel is in native/planted_grid_faults.cu; barriers of blocks and warps are proven in test_emulator.py.
"""

from __future__ import annotations

import itertools
import subprocess

import numpy as np
import pytest
from native import build
from native.kernels import load_or_skip

SOURCES = ("tests/native/planted_grid_faults.cu", "tests/native/planted_grid_faults_bindings.cpp")
ORDERS = ("forward", "reverse", "random:1", "random:2", "greedy", "greedy-reverse", "greedy-random:3")
ROUNDS = 4
X = np.random.default_rng(0).integers(-8, 8, (8, 64)).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    for _ in range(ROUNDS):
        x = x + np.roll(x, -1, axis=1) + np.roll(x, -1, axis=0)
    return x


def run(fault: str = "none", blocks: int = 3) -> np.ndarray:
    """Also called in the sanitized processes below."""
    module = load_or_skip("planted_grid_faults", SOURCES)
    return module.relax(X[:blocks], ROUNDS, getattr(module.GridFault, fault))


@pytest.fixture(scope="module")
def planted():
    module = load_or_skip("planted_grid_faults", SOURCES)
    yield module
    module.configure()


def wrong_orders(planted, fault: str, poison: int = 0xFF, blocks: int = 3) -> set[str]:
    wrong = set()
    for order in ORDERS:
        planted.configure(order, poison)
        result = planted.relax(X[:blocks], ROUNDS, getattr(planted.GridFault, fault))
        if not np.array_equal(result, expected(X[:blocks])):
            wrong.add(order)
    return wrong


@pytest.mark.parametrize(("blocks", "poison"), tuple(itertools.product((1, 2, 3, 8), (0xFF, 0x00))))
def test_right_kernel_is_bitwise_the_same_in_every_order(planted, blocks: int, poison: int) -> None:
    assert wrong_orders(planted, "none", poison, blocks) == set()


def test_missing_grid_barrier_gives_wrong_numbers_where_a_block_runs_ahead(planted) -> None:
    assert wrong_orders(planted, "no_grid_barrier") >= {"greedy", "greedy-reverse", "greedy-random:3"}


def test_block_barriers_and_shared_memory_are_each_blocks_own(planted) -> None:
    assert wrong_orders(planted, "no_block_barrier")
    planted.configure("greedy-reverse", 0xFF)
    assert np.isnan(run("no_block_barrier")).any()  # poison, not what another block has written


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("block_returns", r"of block 1 returned, but thread \d+ of block \d waits for it in grid_sync at .*\.cu:\d+"),
        ("block_skips_one", r"of block 1 returned, but thread \d+ of block \d waits for it in grid_sync at .*\.cu:\d+"),
        ("thread_returns", r"of block 1 returned, but thread \d+ of block \d waits for it in grid_sync at .*\.cu:\d+"),
        ("two_lines", r"divergent synchronisation: thread \d+ of block \d waits in grid_sync at .* comes to grid_sync"),
        ("half_a_block", r"divergent synchronisation: .*(__syncthreads.*grid_sync|grid_sync.*__syncthreads)"),
        ("counter_in_use", r"grid_sync's counter is 4 after 1 rounds of 3 blocks"),
        ("two_counters", r"grid_sync's counter is 1 after 1 rounds of 3 blocks"),
        ("not_cooperative", r"grid_sync at .*\.cu:\d+ in a launch that is not cooperative"),
    ],
)
def test_misuse_is_refused_and_leaves_no_trace(planted, order: str, fault: str, said: str) -> None:
    planted.configure(order)
    with pytest.raises(RuntimeError, match=said):
        run(fault)
    assert np.array_equal(run(), expected(X[:3]))


def test_a_grid_that_can_not_be_resident_is_refused(planted) -> None:
    with pytest.raises(RuntimeError, match="cooperative launch of 9 blocks, of which 8 can be resident"):
        planted.relax(np.zeros((9, 64), np.float32), ROUNDS, planted.GridFault.none)


def sanitized(variant: str, fault: str) -> subprocess.CompletedProcess[str]:
    try:
        build.build("planted_grid_faults", SOURCES, variant)
        return build.run_sanitized(
            variant, f"from test_emulator_grid import run\nrun('{fault}')\nprint('came to the end')"
        )
    except build.NativeUnavailable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_sanitizers_are_silent_on_the_right_kernel(variant: str) -> None:
    done = sanitized(variant, "none")
    assert (done.returncode, done.stdout, done.stderr) == (0, "came to the end\n", "")


@pytest.mark.parametrize("fault", ["no_grid_barrier", "no_block_barrier"])
def test_tsan_finds_races_between_blocks_and_inside(fault: str) -> None:
    done = sanitized("tsan", fault)
    assert done.returncode == 66
    assert "data race" in done.stderr and "relax_kernel" in done.stderr, done.stderr
