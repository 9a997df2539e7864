"""Forked and spawned children: no op hangs there, and each gives its parent's bits, forward and backward.

Decides how children are made and how long one may take; what they call is in hostile_calls.py.
"""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hostile_calls import CALLS, same_bits
from op_suite import needs_native
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import vgkernels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
SECONDS = 60  # after which a child counts as hanging; all of its calls take one or two


@pytest.fixture(autouse=True)
def a_parent_with_threads() -> Iterator[None]:
    """OpenMP has threads that a forked child will not have, also where there is one processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.ones(1 << 20).sin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks with threads
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than processors
        yield
    torch.set_num_threads(before)


def in_fork(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """What `work` returns in a child; fails where that raises, dies or hangs."""
    read, write = os.pipe()
    child = fork()
    if child == 0:
        try:
            answer = pickle.dumps((work(), None))
        except BaseException:
            answer = pickle.dumps((None, traceback.format_exc()))
        with contextlib.suppress(BaseException), os.fdopen(write, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(write)
    answer, end = b"", time.monotonic() + SECONDS
    while select.select([read], [], [], max(0, end - time.monotonic()))[0]:
        if not (part := os.read(read, 1 << 20)):
            break
        answer += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child hung or died: {os.waitstatus_to_exitcode(status)}"
    result, error = pickle.loads(answer)
    assert error is None, error
    return result


def numbers(tensors: list[Tensor]) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]  # a tensor would travel through shared memory


def run(name: str) -> list[Tensor]:
    return CALLS[name].run(CALLS[name].tensors(large=True))


@pytest.mark.parametrize("name", CALLS)
def test_fork_after_use(name: str) -> None:
    want, tensors = run(name), CALLS[name].tensors(large=True)  # made here: torch alone would hang in the child
    got, threads = in_fork(lambda: (numbers(CALLS[name].run(tensors)), torch.get_num_threads()))
    assert same_bits([torch.from_numpy(array) for array in got], want)
    assert threads == 1
    assert same_bits(run(name), want)  # the parent has its threads still
    assert torch.get_num_threads() == 4


# What packing calls backward is torch's alone, which hangs in such a child like any large torch op.
@pytest.mark.parametrize("name", [k for k, call in CALLS.items() if call.gradients and k != "pack_conv_gru_weights"])
def test_fork_between_forward_and_backward(name: str) -> None:
    call = CALLS[name]
    want, tensors = run(name), call.tensors(large=True)
    result = call.op(**tensors)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    gradients = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape) for out in outputs]
    got = in_fork(lambda: numbers(list(torch.autograd.grad(outputs, list(tensors.values()), gradients))))
    assert same_bits([torch.from_numpy(array) for array in got], want[len(outputs) :])


def test_a_child_that_calls_none_keeps_its_threads() -> None:
    assert in_fork(torch.get_num_threads) == 4


def test_fork_of_a_fork_and_of_another_thread() -> None:
    want, call = run("flow_warp"), CALLS["flow_warp"]
    tensors = call.tensors(large=True)
    got = in_fork(lambda: in_fork(lambda: numbers(call.run(tensors))))
    assert same_bits([torch.from_numpy(array) for array in got], want)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(in_fork(lambda: numbers(call.run(tensors)))))
    thread.start()
    thread.join()
    assert same_bits([torch.from_numpy(array) for array in answers[0]], want)


@needs_native
@pytest.mark.parametrize("name", ["flow_warp", "svc_projection_", "sliced_wasserstein", "conv_gru without gradients"])
def test_fork_by_c(name: str) -> None:
    """The interpreter doesn't know, and so torch's products don't; the kernels do."""
    call = CALLS[name]
    tensors = {k: t.detach() for k, t in call.tensors(large=True).items()}
    before = {k: t.clone() for k, t in tensors.items()}

    def forward() -> list[Any]:
        result = call.op(**tensors)
        return numbers([*tensors.values()] if result is None else [result] if isinstance(result, Tensor) else [*result])

    got = in_fork(forward, ctypes.PyDLL(None).fork)
    assert all(torch.equal(before[k], tensors[k]) for k in before)
    assert same_bits([torch.from_numpy(a) for a in got], [torch.from_numpy(a) for a in forward()])


def by_name(pipe: Any) -> None:
    vgkernels.random_projections(1, 1)  # the first op: from here on a forked child's torch has one thread
    pipe.send([(name, numbers(run(name))) for name in CALLS])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str) -> None:
    want = {name: run(name) for name in CALLS}
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=by_name, args=(there,))
    process.start()
    try:
        assert here.poll(SECONDS), "the child hangs"
        for name, arrays in here.recv():
            assert same_bits([torch.from_numpy(array) for array in arrays], want[name]), name
        process.join(SECONDS)
        assert process.exitcode == 0
    finally:
        process.kill()


class EveryCall(Dataset):
    """Item i: the bits of call i, computed in the worker."""

    def __len__(self) -> int:
        return len(CALLS)

    def __getitem__(self, i: int) -> tuple[str, list[Any]]:
        name = list(CALLS)[i]
        return name, numbers(CALLS[name].run(CALLS[name].tensors()))


def collate(items: list[tuple[str, list[Any]]]) -> list[tuple[str, list[Any], list[Any]]]:
    """Each item, and the same call once more, in collate_fn."""
    return [(name, arrays, numbers(run(name))) for name, arrays in items]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [2, 4])
def test_data_loader(method: str, workers: int) -> None:
    want = {name: (CALLS[name].run(CALLS[name].tensors()), run(name)) for name in CALLS}
    loader = DataLoader(
        EveryCall(),
        batch_size=2,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=method,
        timeout=2 * SECONDS,
    )
    seen = []
    for batch in loader:
        for name, *both in batch:
            seen.append(name)
            for arrays, wanted in zip(both, want[name], strict=True):
                assert same_bits([torch.from_numpy(array) for array in arrays], wanted), name
    assert seen == list(CALLS)
