"""Decides what conv_gru's persistent CUDA kernels must do, run by the emulator on numpy arrays.

The reference is in conv_gru_persistent_emulation.py; the grid's barrier itself is proven in test_emulator_grid.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conv_gru_persistent_emulation import EMULATED, check, check_orders, gaussian, gradients_into, small_cases
from native.kernels import ORDERS, compiling, load_or_skip, narrow, output_of, widen

from vgkernels import conv_gru_persistent

MAPS = ((1, 1), (4, 4), (5, 7), (8, 8))
COPIES = tuple((*order, copies) for order, copies in zip(ORDERS, itertools.cycle(("late", "early")), strict=False))


@pytest.fixture(scope="module")
def emulated():
    return load_or_skip("conv_gru_persistent_emulated", EMULATED)


@pytest.fixture
def native(emulated):
    emulated.set_device()
    yield emulated
    emulated.configure()
    emulated.set_device()


def check_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- values and gradients ----


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("kernel", (1, 3, 5))
@pytest.mark.parametrize("size", MAPS)
def test_values_and_gradients(native, size, kernel, dtype):
    steps = 2 if size == (8, 8) else 3
    check(native, gaussian(steps, 3, *size, 32, kernel, dtype, tanh=size[0] % 2 == 0, seed=kernel))


@pytest.mark.parametrize(("channels", "resident"), [(64, 8), (96, 12)])
def test_more_channels_than_are_copied_at_once(native, channels, resident):
    """Three chunks refill the first one's place."""
    native.set_device(resident, resident)
    check(native, gaussian(2, 2, 4, 4, channels, 3))


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("tanh", (False, True))
def test_lengths(native, tanh, reverse):
    """A clip's state stays from its end on, and what comes after can't be seen, not even what is not finite."""
    lengths = np.array([4, 2, 0, 1])
    case = gaussian(4, 4, 3, 4, 32, 3, lengths=lengths, tanh=tanh, reverse=reverse)
    output, h_T, _, *gradients = check(native, case)
    for clip, length in enumerate(lengths):
        last = narrow(h_T[clip] if not reverse else case.h0[clip], "bfloat16")
        assert (output[length:, clip] == last).all()
        assert not widen(gradients[1], "bfloat16")[length:, clip].any()
        case.xg[length:, clip] = narrow(np.nan, "bfloat16")
    *same, gates = case.run(native)
    check_same(same, (output, h_T))
    check_same(case.run_backward(native, gradients_into(case), case.past(output), gates), gradients)
    np.testing.assert_array_equal(h_T[2], case.h0[2])


def test_lengths_beyond_the_last_step(native):
    case = gaussian(2, 2, 2, 2, 32, 1)
    whole = check(native, case)
    case.lengths = np.array([2, 1 << 40])
    check_same(check(native, case), whole)


def test_many_steps(native):
    """relu, whose state may grow."""
    check(native, gaussian(24, 1, 2, 3, 32, 3, "float16"))


def test_gates_need_not_be_kept(native):
    case = gaussian(3, 2, 4, 4, 32, 3)
    check_same(case.run(native, keep=False)[:2], case.run(native)[:2])


def test_no_steps_and_no_clips(native):
    for steps, batch in ((0, 2), (2, 0)):
        case = gaussian(steps, batch, 2, 2, 32, 3)
        output, h_T, gates = case.run(native)
        np.testing.assert_array_equal(h_T, case.h0)
        given = gradients_into(case), case.past(output)[:steps], gates
        np.testing.assert_array_equal(case.run_backward(native, *given)[0], given[0][1])


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_what_is_not_finite_stays_in_its_clip(native, value):
    case = gaussian(2, 4, 3, 3, 32, 3)
    whole = case.run(native)
    case.xg[0, 2, 1, 1, 2 * 32 + 5] = narrow(value, "bfloat16")
    output, h_T, _ = case.run(native)
    assert not np.isfinite(widen(output[0, 2, 1, 1, 5], "bfloat16"))
    assert np.isnan(h_T[2]).any()
    others = [0, 1, 3]
    check_same((output[:, others], h_T[others]), (whole[0][:, others], whole[1][others]))


def test_gradients_are_those_of_the_plain_loop(native):
    """Of the gates' sums, which are those of xg, and of h0: what the formulas above must be right about."""
    case = gaussian(4, 3, 3, 4, 32, 3, "float16", lengths=[4, 2, 3], tanh=True)
    output, _, gates = case.run(native)
    grads = gradients_into(case)
    grad_h, grad_rz, grad_n = case.run_backward(native, grads, case.past(output), gates)

    xg, weight = (torch.tensor(widen(array, "float16")) for array in (case.xg, case.weight))
    start = torch.tensor(case.h0, dtype=torch.float64).requires_grad_()
    xg = xg.requires_grad_()
    h, total = start, 0.0
    for step in range(4):
        r, z, n = xg[step].movedim(-1, 1).split(32, 1)
        before = h.movedim(-1, 1)
        r, z = (
            torch.sigmoid(x + torch.conv2d(before, w, padding=1)) for x, w in ((r, weight[:32]), (z, weight[32:64]))
        )
        n = torch.tanh(n + torch.conv2d(r * before, weight[64:], padding=1))
        alive = torch.tensor(case.alive(step))
        h = torch.where(alive, (n + z * (before - n)).movedim(1, -1), h)
        total = total + (h * torch.tensor(widen(grads[0][step], "float16"))).sum()
    (total + (h * torch.tensor(grads[1])).sum()).backward()
    wanted = xg.grad.numpy(), start.grad.numpy()
    got = np.concatenate([widen(grad_rz, "float16"), widen(grad_n, "float16")], -1), grad_h
    for one, other in zip(got, wanted, strict=True):
        assert np.abs(one - other).max() <= 2e-3 * np.abs(other).max()


# ---- how the work is cut ----


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_blocks_do_not_change_bits(native, dtype):
    """More clips in a block, warps with more tiles, a smaller last block, one without clips."""
    case = gaussian(2, 3, 5, 7, 32, 3, dtype, lengths=[2, 1, 2])
    native.set_device(12, 12)
    alone = check(native, case)
    assert native.plan(case.dtype, case.sizes)[:2] == [1, 3]
    native.set_device()
    assert native.plan(case.dtype, case.sizes)[:2] == [2, 2]
    for cut in ((0, 0, 0), (0, 5, 1), (0, 4, 2), (0, 2, 4)):
        check_same(check(native, case, cut=cut), alone)
    native.set_device(8, 12)
    check_same(check(native, case, cut=(1, 3, 2)), alone)


def test_more_pixels_than_two_tiles_a_warp_hold(native):
    case = gaussian(1, 1, 15, 18, 32, 1)
    assert native.plan(case.dtype, case.sizes)[2:4] == [8, 4]
    check(native, case)


def test_plan(native):
    """The design's table, for a device with 227 KiB of shared memory."""
    native.set_device(132, 8)

    def plan(channels, batch, size, kernel=3):
        return native.plan("bfloat16", [2, batch, channels, size, size, kernel])

    for channels, size in ((64, 20), (64, 16), (128, 16), (256, 8), (384, 8), (480, 8), (512, 8)):
        weights = 432 * channels
        clips, clip_blocks, warps, tiles, shared = plan(channels, 2, size)
        assert (clips, clip_blocks, warps, shared) == (1, 2, 8, weights + 128 * size**2)
        assert tiles * warps * 16 >= size**2 and (tiles == 1 or tiles * warps * 8 < size**2)
    assert plan(256, 8, 8)[:2] == [2, 4]
    assert plan(256, 9, 8)[:2] == [3, 3]
    assert plan(512, 10, 4)[:2] == [5, 2]
    for sizes, why in (
        ((512, 4, 8), "room for its weights and pixels"),
        ((640, 1, 4), "room for its weights and pixels"),
        ((2048, 1, 1, 1), "fewer multiprocessors"),
        ((64, 1, 23), "512 pixels"),
        ((48, 1, 4), "multiple of 32"),
    ):
        with pytest.raises(RuntimeError, match=why):
            plan(*sizes)
    with pytest.raises(RuntimeError, match="16-bit"):
        native.plan("float32", [2, 1, 32, 4, 4, 3])


def test_one_launch_does_all_steps(native):
    before = native.launches()
    gaussian(5, 2, 2, 2, 32, 3).run(native)
    assert native.launches() - before == 2  # one packs the weights


# ---- the call from Python ----


class Kernels:
    """The torch ops, by the emulator."""

    def __init__(self, native):
        self.native = native

    @staticmethod
    def array(tensor):
        if tensor is None:
            return None
        assert tensor.is_contiguous()
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        return bits.detach().numpy()

    def sizes(self, output, weight):
        steps, batch, height, width, channels = output.shape
        return [steps, batch, channels, height, width, weight.shape[-1]]

    def conv_gru_persistent_(self, xg, h, weight, lengths, output, gates, tanh, reverse):
        inputs, outputs = [xg, weight, lengths], [h, output, gates]
        arrays = [list(map(self.array, tensors)) for tensors in (inputs, outputs)]
        name = str(xg.dtype).removeprefix("torch.")
        self.native.forward(name, self.sizes(output, weight), *arrays, tanh, reverse, [0, 0, 0], 0xFF)

    def conv_gru_persistent_backward_(
        self, grad_output, past, gates, weight, lengths, grad_h, grad_rz, grad_n, tanh, reverse
    ):
        inputs, outputs = [grad_output, past, gates, weight, lengths], [grad_h, grad_rz, grad_n]
        arrays = [list(map(self.array, tensors)) for tensors in (inputs, outputs)]
        name = str(past.dtype).removeprefix("torch.")
        self.native.backward(name, self.sizes(past, weight), *arrays, tanh, reverse, [0, 0, 0], 0xFF)


def test_python_passes_each_array_to_its_place(native):
    case = gaussian(2, 3, 3, 4, 32, 3, "float16", lengths=[2, 0, 1], tanh=True, reverse=True)
    output, h_T, gates = case.run(native)
    grads, past = gradients_into(case), case.past(output)
    wanted = case.run_backward(native, grads, past, gates)
    kernels = Kernels(native)
    weight = torch.tensor(case.weight.astype(np.float32)).half().movedim(1, -1).contiguous().movedim(-1, 1)
    h, lengths = torch.tensor(case.h0), torch.tensor(case.lengths)
    filled, kept = torch.empty(output.shape, dtype=torch.float16), torch.empty(gates.shape, dtype=torch.float16)
    conv_gru_persistent.all_steps(
        kernels, torch.tensor(case.xg), h, weight, lengths, filled, kept, case.tanh, case.reverse
    )
    check_same((filled.numpy(), h.numpy(), kept.numpy()), (output, h_T, gates))
    grad_h = torch.tensor(grads[1])
    grad_rz, grad_n = torch.empty(*output.shape[:-1], 64, dtype=torch.float16), torch.empty_like(filled)
    conv_gru_persistent.all_steps_backward(
        kernels,
        torch.tensor(grads[0]),
        torch.tensor(past),
        kept,
        weight,
        lengths,
        grad_h,
        grad_rz,
        grad_n,
        case.tanh,
        case.reverse,
    )
    check_same((grad_h.numpy(), grad_rz.numpy(), grad_n.numpy()), wanted)


def test_what_python_knows_can_not_be():
    weight = torch.empty(96, 32, 3, 3)
    for x, channels in ((torch.empty(2, 1, 4, 5, 5), 32), (torch.empty(2, 1, 4, 5, 5).half(), 48)):
        assert conv_gru_persistent.can_not(x, weight[:, :1].expand(-1, channels, -1, -1)) is not None
    assert conv_gru_persistent.can_not(torch.empty(2, 1, 4, 3, 5, 5).half(), weight) is not None
    assert conv_gru_persistent.can_not(torch.empty(2, 1, 4, 5, 5).half(), weight) is None


# ---- every order; sanitizers, on small shapes ----


def test_every_order_gives_the_same_bits(native):
    check_orders(native, small_cases(), COPIES, cut=(0, 3, 1))


SANITIZED = """
import conv_gru_persistent_emulation as t
from native import build
native = build.load("conv_gru_persistent_emulated", t.EMULATED)
native.set_device()
t.check_orders(native, t.small_cases(), {orders}, cut=(0, 2, 1))
print("came to the end")
"""


@pytest.mark.parametrize(("variant", "orders"), [("asan", COPIES[:2]), ("tsan", COPIES[-1:])])
def test_sanitizers_are_silent(variants, variant, orders):
    variants[variant].join()
    assert output_of(variant, SANITIZED.format(orders=orders)) == "came to the end"


@pytest.fixture(scope="module", autouse=True)
def variants(emulated):
    with compiling("conv_gru_persistent_emulated", EMULATED, "asan", "tsan") as threads:
        yield threads
