"""Decides whether the CUDA emulator can be trusted: right kernels must pass everywhere, each planted fault be found.

The kernels are in native/planted_faults.cu; what the ops' own kernels must do is tested with each op.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
from types import ModuleType

import numpy as np
import pytest
from native import build

SOURCES = ("tests/native/planted_faults.cu", "tests/native/planted_faults_bindings.cpp")
ORDERS = ("forward", "reverse", "random:1", "random:2", "greedy", "greedy-reverse", "greedy-random:3")
RUNS = tuple(itertools.product(ORDERS, (0xFF, 0x00), ("late", "early")))

# Small integers in floats: every order of a sum gives the same bits, so a wrong schedule can't hide in rounding.
_random = np.random.default_rng(0)


def _integers(*shape: int) -> np.ndarray:
    return _random.integers(-8, 8, shape).astype(np.float32)


A, B, X, TILES, VALUES = _integers(19, 21), _integers(21, 13), _integers(5, 300), _integers(5, 256), _integers(200)
INDEX = _random.integers(0, 7, 200).astype(np.int32)


@functools.cache
def planted() -> ModuleType:
    try:
        return build.load("planted_faults", SOURCES)
    except build.NativeUnavailable as why:
        pytest.skip(str(why))


def run(kernel: str, fault: str = "none") -> np.ndarray:
    """The kernel's numbers with one fault planted; also called in the sanitized processes below."""
    module = planted()
    chosen = getattr(module.Fault, fault)
    if kernel == "matmul":
        return module.matmul(A, B, chosen)
    if kernel == "row_sums":
        return module.row_sums(X, chosen)
    if kernel == "smooth":
        return module.smooth(TILES, chosen)
    return np.concatenate(module.scatter_add(VALUES, INDEX, 7, chosen))


def expected(kernel: str) -> np.ndarray:
    if kernel == "matmul":
        return A @ B
    if kernel == "row_sums":
        return X.sum(axis=1)
    if kernel == "smooth":
        quads = TILES.reshape(-1, 64, 4)
        far, following = quads[:, ::-1], np.roll(quads, -1, axis=1)
        number = np.arange(1, len(quads) + 1, dtype=np.float32)[:, None]
        mine = far[..., 0] + far[..., 3] - following[..., 1] + following[..., 2] * number
        return (mine + mine.reshape(-1, 2, 32).sum(axis=2).repeat(32, axis=1)).sum(axis=0)
    return np.append(np.bincount(INDEX, VALUES, 7), 4)  # and the number of blocks


def wrong_runs(kernel: str, fault: str) -> set[tuple[str, int, str]]:
    wrong = set()
    for settings in RUNS:
        planted().configure(*settings)
        if not np.array_equal(run(kernel, fault), expected(kernel)):
            wrong.add(settings)
    return wrong


@pytest.mark.parametrize("kernel", ["matmul", "row_sums", "scatter_add", "smooth"])
def test_right_kernel_is_bitwise_the_same_in_every_run(kernel: str) -> None:
    assert wrong_runs(kernel, "none") == set()


def test_warp_and_block_exchanges_follow_the_cuda_manual() -> None:
    x = _random.integers(-50, 50, 40).astype(np.int32)
    bits = [int(v) & 0xFFFFFFFF for v in x]
    rows = []
    for thread in range(40):
        base, lane = thread // 32 * 32, thread % 32
        warp = range(base, min(base + 32, 40))
        segment, place = thread - lane % 8, lane % 8
        half = [t for t in warp if (t % 32 < 4) == (lane < 4)]
        row = [x[base + 3], x[segment + (place + 1) % 8], x[thread - 2 if place >= 2 else thread]]
        row += [x[thread + 3 if place + 3 < 8 else thread], x[base + (lane ^ 5)]]
        row += [sum(1 << t % 32 for t in warp if x[t] % 3 == 0), sum(1 << t % 32 for t in half if x[t] % 2 == 0)]
        row += [2 * any(x[t] == x[base] for t in half) + all(x[t] >= 0 for t in half)]
        row += [int((x % 2 != 0).sum()), 4 + int((x >= 0).all()), x.max()]
        lowest = (bits[thread] & -bits[thread]).bit_length()
        row += [bits[thread].bit_count() + 100 * lowest + 10000 * (32 - bits[thread].bit_length())]
        rows.append([int(value) & 0xFFFFFFFF for value in row])
    for settings in RUNS:
        planted().configure(*settings)
        assert np.array_equal(planted().warp_exchanges(x).astype(np.uint32), np.array(rows, np.uint32)), settings


@pytest.mark.parametrize("fault", ["no_barrier_before_read", "no_barrier_before_write"])
def test_missing_barrier_gives_wrong_numbers(fault: str) -> None:
    assert wrong_runs("matmul", fault)


def test_uninitialised_shared_read_shows_as_a_difference_between_poisons() -> None:
    assert wrong_runs("row_sums", "uninitialised_shared_read") == {run for run in RUNS if run[1] == 0xFF}


def test_short_wait_shows_when_copies_come_late() -> None:
    assert wrong_runs("smooth", "wait_one_stage_short") == {run for run in RUNS if run[2] == "late"}


def test_early_refill_shows_only_when_a_warp_runs_ahead_and_copies_come_early() -> None:
    found = wrong_runs("smooth", "no_barrier_after_last_read")
    assert found and all(order.startswith("greedy") and copy == "early" for order, _, copy in found)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "barrier_in_branch",
            r"divergent synchronisation: thread \d+ waits in __syncthreads at .*\.cu:\d+",
        ),
        ("half_warp_shuffle", r"thread \d+ .*__shfl_xor_sync at .*\.cu:\d+.* in block \(\d, 0, 0\)"),
    ],
)
def test_divergence_is_refused_with_thread_and_line_and_leaves_no_trace(order: str, fault: str, said: str) -> None:
    planted().configure(order)
    with pytest.raises(RuntimeError, match=said):
        run("row_sums", fault)
    assert np.array_equal(run("row_sums"), expected("row_sums"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        ("outside_own_mask", r"is not in its own mask in __ballot_sync at"),
        ("disagreeing_masks", r"disagreeing masks: thread \d+ waits in __syncwarp at"),
        ("lane_has_returned", r"returned.* __shfl_sync at"),
        ("two_primitives", r"divergent synchronisation: .*(__ballot_sync.*__shfl_sync|__shfl_sync.*__ballot_sync)"),
        ("warp_and_block", r"divergent synchronisation: thread 0 waits in __syncwarp at .*32 of 32 threads wait"),
    ],
)
def test_lanes_out_of_step_are_refused(order: str, misuse: str, said: str) -> None:
    planted().configure(order)
    with pytest.raises(RuntimeError, match=said):
        planted().misuse(getattr(planted().Misuse, misuse))


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "said"),
    [
        ((0, 1, 1), (1, 1, 1), 0, "invalid grid"),
        ((1, 65536, 1), (1, 1, 1), 0, "invalid grid"),
        ((1, 1, 65536), (1, 1, 1), 0, "invalid grid"),
        ((1, 1, 1), (1025, 1, 1), 0, "invalid block"),
        ((1, 1, 1), (32, 32, 2), 0, "invalid block"),
        ((1, 1, 1), (1, 1, 65), 0, "invalid block"),
        ((1, 1, 1), (1, 0, 1), 0, "invalid block"),
        ((1, 1, 1), (1, 1, 1), 48 * 1024 + 1, "49153 bytes of dynamic shared memory"),
    ],
)
def test_launch_limits_of_the_device(grid: tuple, block: tuple, shared_bytes: int, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        planted().empty_launch(grid, block, shared_bytes)
    planted().empty_launch((2, 3, 2), (64, 4, 4), 48 * 1024)


def test_dynamic_shared_memory_above_48_kib_must_be_asked_for() -> None:
    one = (1, 1, 1)
    assert planted().raise_shared_limit(227 * 1024) and not planted().raise_shared_limit(228 * 1024)
    planted().empty_launch(one, one, 227 * 1024)
    assert planted().raise_shared_limit(48 * 1024)
    with pytest.raises(RuntimeError, match="bytes of dynamic shared memory"):
        planted().empty_launch(one, one, 48 * 1024 + 1)


def test_misaligned_copy_is_refused() -> None:
    shifted = np.zeros(TILES.size + 1, np.float32)[1:].reshape(TILES.shape)
    with pytest.raises(RuntimeError, match=r"cp\.async of an address that is not a multiple of 16"):
        planted().smooth(shifted, planted().Fault.none)


@pytest.mark.parametrize("settings", [("sideways", 0, "late"), ("random:", 0, "late"), ("greedyx", 0, "late")])
def test_unknown_schedule_is_refused(settings: tuple[str, int, str]) -> None:
    with pytest.raises(ValueError):
        planted().configure(*settings)


def sanitized(variant: str, *todo: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        build.build("planted_faults", SOURCES, variant)
        calls = "".join(
            f"module.configure('forward', 0, '{c}'); run{pair}\n" for pair in todo for c in ("late", "early")
        )
        code = f"from test_emulator import planted, run\nmodule = planted()\n{calls}print('came to the end')"
        return build.run_sanitized(variant, code)
    except build.NativeUnavailable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_sanitizers_are_silent_on_right_kernels(variant: str) -> None:
    done = sanitized(variant, *((kernel, "none") for kernel in ("matmul", "row_sums", "scatter_add", "smooth")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "came to the end\n", "")


@pytest.mark.parametrize(("kernel", "fault"), [("matmul", "no_bound_check"), ("row_sums", "shared_overflow")])
def test_asan_finds_writes_out_of_bounds(kernel: str, fault: str) -> None:
    done = sanitized("asan", (kernel, fault))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and f"in {kernel}_kernel" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("matmul", "no_barrier_before_read"),
        ("matmul", "no_barrier_before_write"),
        ("scatter_add", "no_atomic"),
        ("scatter_add", "blocks_share_a_word"),
        ("smooth", "no_barrier_after_last_read"),
    ],
)
def test_tsan_finds_races_inside_and_between_blocks(kernel: str, fault: str) -> None:
    done = sanitized("tsan", (kernel, fault))
    assert done.returncode == 66
    assert "data race" in done.stderr and f"{kernel}_kernel" in done.stderr, done.stderr
