"""The work of test_hostile_memory.py, in a process of its own: every allocation fails once, and ten thousand calls.

Decides what counts as survived. `python hostile_memory.py failing NAME...` has native/failing_memory.cpp preloaded;
`growth NAME:CALLS...` hasn't. Either prints a line of JSON for each call.
"""

import contextlib
import ctypes
import gc
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from hostile_calls import CALLS, Call, same_bits

import vgkernels

# With kernels of ours at their heart: there, other threads' allocations fail too.
KERNELS = ("flow_warp", "flow_warp_blend", "svc_projection", "svc_projection_", "SingularValueClipping",
           "sliced_wasserstein", "conv_gru", "conv_gru without gradients")  # fmt: skip


def failing(call: Call, large: bool, all_after: bool) -> dict[str, Any]:
    """The n-th allocation of a call fails, n = 1, 2, ... until there are no more."""
    memory = ctypes.CDLL(None)  # with the preloaded one
    tensors = call.tensors(large=large)
    before = [tensor.detach().clone() for tensor in tensors.values()]
    want = call.run({k: t.clone() for k, t in tensors.items()} if call.in_place else tensors)
    n, errors = 0, {}
    for n in range(1, 100_000):
        error, got = None, None
        memory.vg_arm(n, all_after)
        try:
            got = call.op(**tensors) if call.in_place else call.run(tensors)
        except (RuntimeError, MemoryError) as caught:
            error = caught
        failures = memory.vg_disarm()
        if error is None:
            got = [t.detach().clone() for t in tensors.values()] if call.in_place else got
            if not same_bits(got, want[-len(got) :]):
                return {"failed": f"allocation {n} of {call.name} failed in silence, and the result is wrong"}
            if not failures:
                break
            tensors = call.tensors(large=large)  # a failure that was made up for
            continue
        if not failures:
            return {"failed": f"{call.name} raised though no allocation failed: {error!r}"}
        errors[re.sub(r"\d+", "N", f"{type(error).__name__}: {error}".splitlines()[0])] = n
        del error
        if not same_bits([tensor.detach() for tensor in tensors.values()], before):
            return {"failed": f"allocation {n} of {call.name} failed, and its arguments were changed"}
        again = call.run({k: t.clone() for k, t in tensors.items()} if call.in_place else tensors)
        if not same_bits(again, want):
            return {"failed": f"allocation {n} of {call.name} failed, and the next call was wrong"}
    return {"allocations": n - 1, "errors": errors}


def failing_late() -> dict[str, Any]:
    """In 16 bits matrices are written and measured several times: where that stops halfway they are clipped all the
    same, and the report says that it is not certain."""
    memory, bound = ctypes.CDLL(None), 0.5
    weights = [torch.randn(24, 40, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3)]
    refused = uncertain = 0
    for n in range(1, 1000):
        own = [weight.clone() for weight in weights]
        memory.vg_arm(n, True)
        try:
            report = vgkernels.svc_projection_(own, bound)
        except (RuntimeError, MemoryError):
            memory.vg_disarm()
            refused += 1
            if uncertain or not all(torch.equal(a, b) for a, b in zip(own, weights, strict=True)):
                return {"failed": f"allocation {n} failed, and weights were changed"}
            continue
        failures = memory.vg_disarm()
        largest = max(float(torch.linalg.matrix_norm(weight.double(), 2)) for weight in own)
        if not largest <= bound * 1.02:
            return {"failed": f"allocation {n} failed in silence, and {largest} is above the bound {bound}"}
        if not failures:
            return {"refused": refused, "uncertain": uncertain}
        uncertain += not all(report.certified)
    return {"failed": "there is no end of allocations"}


def library_range() -> tuple[int, int]:
    """Where _C lies in this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "_C.abi3.so" in line]
    ends = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    return min(end[0] for end in ends), max(end[1] for end in ends)


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(call: Call, calls: int) -> dict[str, Any]:
    """Bytes that the process has grown by over so many calls, after a tenth as many."""
    tensors = call.tensors()

    def run() -> None:
        call.run({k: t.clone() for k, t in tensors.items()} if call.in_place else tensors)

    for _ in range(calls // 10):
        run()
    before = resident()
    for _ in range(calls):
        run()
    return {"grown": resident() - before}


def refused() -> Call:
    """Calls that raise: from Python's checks, from the library's, and from what a kernel finds."""
    image, flow = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5).double()
    x, filters = torch.randn(2, 1, 3, 4, 4), [torch.randn(6, channels, 3, 3) for channels in (3, 2)]
    ops = torch.ops.vgkernels
    attempts = (
        lambda: vgkernels.flow_warp(image, flow[0]),
        lambda: vgkernels.svc_projection_([image, image / 0]),
        lambda: vgkernels.svc_projection(image / 0),
        lambda: ops.flow_warp(image, flow, None, None, "bilinear", "border"),
        lambda: ops.sliced_wasserstein(x[0], x[0], x, None, None, 2.0),
        lambda: ops.conv_gru(x, None, *filters, x, None, None, False, False, False, 0),
    )

    def all_refused() -> None:
        for attempt in attempts:
            with contextlib.suppress(ValueError, RuntimeError):
                attempt()
                raise SystemExit("a bad call was not refused")

    return Call("refused", {}, {}, all_refused, gradients=False)


def main(what: str, *arguments: str) -> None:
    calls = CALLS if what == "failing" else {**CALLS, "refused": refused()}
    if what == "failing":
        memory = ctypes.CDLL(None)
        memory.vg_ours(*map(ctypes.c_void_p, library_range()))
        memory.vg_arm.argtypes = ctypes.c_int64, ctypes.c_bool
        print(json.dumps({"name": "late", **failing_late()}), flush=True)
        for name in arguments:
            for large in (False, True) if name in KERNELS else (False,):
                torch.set_num_threads(3 if large else 1)
                for all_after in (False, True):
                    report = failing(calls[name], large, all_after)
                    print(json.dumps({"name": name, "large": large, "all_after": all_after, **report}), flush=True)
    else:
        torch.set_num_threads(1)
        for argument in arguments:
            name, _, count = argument.partition(":")
            print(json.dumps({"name": name, **growth(calls[name], int(count))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
