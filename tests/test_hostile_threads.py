"""16 Python threads call each op 200 times, forward and backward, on the same tensors: the serial call's bits."""

import threading
from collections.abc import Iterator

import pytest
import torch
from hostile_calls import CALLS, same_bits

THREADS = 16


@pytest.fixture
def torch_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Of small calls many, one thread each; of large ones fewer, each of which wants more threads than there are.
@pytest.mark.parametrize(("torch_threads", "times"), [(1, 200), (3, 2)], indirect=["torch_threads"])
@pytest.mark.parametrize("name", CALLS)
def test_threads_give_the_serial_bits(name: str, torch_threads: int, times: int) -> None:
    call, large = CALLS[name], torch_threads > 1
    seeds = range(2)
    inputs = [call.tensors(seed, large) for seed in seeds]
    want = [call.run(call.tensors(seed, large)) for seed in seeds]
    start, wrong = threading.Barrier(THREADS), []

    def work(number: int) -> None:
        start.wait()
        for i in range(times):
            which = (number + i) % len(seeds)  # neighbours work on other tensors, and on the same
            own = {k: t.clone() for k, t in inputs[which].items()} if call.in_place else inputs[which]
            try:
                if not same_bits(call.run(own), want[which]):
                    wrong.append((number, i, "other bits"))
            except Exception as error:
                wrong.append((number, i, repr(error)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of {THREADS * times}, the first: {wrong[0]}"
