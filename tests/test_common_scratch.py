"""Decides which blocks of scratch stay with the process: which is handed out again, which go where there are too many.

That memory stays within its limit, and between calls of an op, is in test_kept_scratch.py.
"""

from __future__ import annotations

import os

import pytest
from native.kernels import compiling, load_or_skip, output_of

SOURCES = ("tests/native/kept_scratch.cpp",)
MIB = 1 << 20
LIMIT = 64  # MiB
NONE = (0, 0)


@pytest.fixture(scope="module")
def native():
    os.environ["VGKERNELS_KEEP_SCRATCH"] = str(LIMIT)  # read at the first use
    module = load_or_skip("kept_scratch", SOURCES)
    module.take(0)
    del os.environ["VGKERNELS_KEEP_SCRATCH"]
    return module


def give(native, *sizes):
    """Blocks of as many MiB, given one after the other."""
    blocks = [(native.fresh(size * MIB), size * MIB) for size in sizes]
    for block in blocks:
        native.give(*block)
    return blocks


def empty(native):
    give(native, LIMIT + 1)  # all others go before it, and it goes too


def check(native):
    empty(native)
    assert native.take(MIB) == native.take(LIMIT * MIB) == NONE
    (block,) = give(native, 8)
    assert native.take(9 * MIB) == native.take(3 * MIB) == NONE  # too small, more than twice as large
    assert native.take(4 * MIB) == block
    assert native.take(8 * MIB) == NONE

    small, middle, large = give(native, 4, 10, 30)
    assert [native.take(size * MIB) for size in (10, 30, 4)] == [middle, large, small]
    first, second = give(native, 4, 4)
    assert [native.take(4 * MIB) for _ in range(3)] == [second, first, NONE]  # the latest is warm

    blocks = give(native, 30, 30, 30)  # the first goes
    assert [native.take(30 * MIB) for _ in range(3)] == [blocks[2], blocks[1], NONE]
    blocks = give(native, *[4] * 9)  # more than are kept
    assert [native.take(4 * MIB) for _ in range(9)] == [*blocks[:0:-1], NONE]
    blocks = give(native, 2, *range(5, 12))  # as many as are kept
    assert native.take(2 * MIB) == blocks[0]
    assert native.take(11 * MIB) == blocks[-1]
    empty(native)
    assert native.take(9 * MIB) == NONE

    native.scratch(MIB)  # small scratch is malloc's
    assert native.take(MIB) == NONE
    address = native.scratch(6 * MIB)
    assert native.scratch(6 * MIB) == address
    assert native.take(6 * MIB)[0] == address
    empty(native)


def test_which_blocks_are_kept(native):
    check(native)


ASAN = """
import os
import test_common_scratch as t
os.environ["VGKERNELS_KEEP_SCRATCH"] = str(t.LIMIT)
t.check(t.load_or_skip("kept_scratch", t.SOURCES))
print("came to the end")
"""


@pytest.mark.parametrize("variant", ("asan",))
def test_no_block_is_used_or_freed_twice(variants, variant):
    variants[variant].join()
    assert output_of(variant, ASAN) == "came to the end"


@pytest.fixture(scope="module", autouse=True)
def variants(native):
    with compiling("kept_scratch", SOURCES, "asan") as threads:
        yield threads
