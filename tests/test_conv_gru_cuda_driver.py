"""Decides what the loop over time of conv_gru on CUDA must compute: it runs whole here, on CPU tensors, with torch's
convolutions and the emulated kernels, against autograd through the plain loop in float64.

The kernels alone are tested in test_conv_gru_emulated.py.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from conv_gru_cuda_calls import ERROR, NEEDS, Call, Kernels, close
from conv_gru_emulation import EMULATED, kept_channels, packed
from native.kernels import load_or_skip

from vgkernels import conv_gru_cuda


@pytest.fixture(scope="module")
def native():
    return load_or_skip("conv_gru_emulated", EMULATED)


@pytest.fixture(scope="module", autouse=True)
def exact_convolutions():
    """Without oneDNN, whose backward of volumes in bfloat16 returns what its memory held before (torch 2.13)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the arrays are tiny, and the machine may be shared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flags() asks for TF32 on GPUs of Intel
        without = torch.backends.mkldnn.flags(enabled=False)
        without.__enter__()
    yield
    without.__exit__(None, None, None)
    torch.set_num_threads(threads)


def check(native, call, checkpoint=True):
    """Everything that a call computes, with gates kept and computed again, against the plain loop."""
    kernels = Kernels(native)
    output, h, gates = call.forward(kernels)
    n = gates[:, 2, ..., : call.channels].unflatten(2, call.size).movedim(-1, 2)
    expected_output, expected_h, expected = call.plain(n > 0 if call.dtype.itemsize == 2 and not call.tanh else None)
    state = torch.float64 if call.dtype == torch.float64 else torch.float32
    assert (output.dtype, h.dtype, gates.dtype) == (call.dtype, state, call.dtype)
    pixels = int(np.prod(call.size))
    assert gates.shape == (call.steps, 3, call.batch, pixels, kept_channels(call.channels))
    assert all(result.is_contiguous() for result in (output, h, gates))
    close(output, expected_output, "output", call)
    close(h, expected_h, "h_T", call)
    again, h_again, none = call.forward(kernels, keep=False)
    assert torch.equal(again, output)
    assert torch.equal(h_again, h)
    assert none.shape == (0,)
    needs = call.needs()
    for kept in (gates, None) if checkpoint else (gates,):
        found = call.backward(kernels, output, kept, needs)
        for name in NEEDS:
            if name not in needs:
                assert found[name].shape == (0,)
                continue
            assert found[name].dtype == (state if name == "h0" else call.dtype)
            assert found[name].shape == call.tensors[name].shape
            assert found[name].is_contiguous()
            close(found[name], expected[name], f"{name}, gates {'kept' if kept is not None else 'again'}", call)
    return kernels


SHAPES = (
    {},
    {"steps": 1, "batch": 1, "channels": 3, "inputs": 1},
    {"size": (1, 1), "channels": 16},
    {"size": (3, 2, 4), "channels": 8},
    {"kernel": 1, "channels": 3},
    {"kernel": 5, "size": (2, 7), "channels": 4},
    {"size": (2, 3, 1), "kernel": 1, "channels": 17, "batch": 1},
)
OPTIONS = (
    {},
    {"tanh": True, "h0": False, "bias": False},
    {"reverse": True, "h0": False},
    {"lengths": [1, 3], "bias": False},
    {"lengths": [2, 0], "reverse": True, "tanh": True},
)


def with_options(native, shape, dtype, relu_apart=False):
    """All the calls of a shape; returns the calls of kernels that they made.

    relu_apart: gates computed again have other bits, so that some arguments of the ReLU come to be across zero.
    """
    calls = []
    for options in OPTIONS:
        options = dict(options)
        if "lengths" in options:
            options["lengths"] = options["lengths"][: shape.get("batch", 2)]
        call = Call(**shape, **options, dtype=dtype)
        calls += check(native, call, checkpoint=call.tanh or not relu_apart).calls
    return calls


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_library_stage(native, shape, dtype):
    assert not any(weight for _, weight in with_options(native, shape, dtype))


@pytest.mark.parametrize("size", ((1, 1), (4, 3), (2, 1, 3)), ids=str)
def test_one_channel(native, size):
    """In float64: otherwise a gradient of three numbers is mostly the rounding of its terms."""
    for steps, kernel in ((1, 3), (3, 1)):
        shape = {"steps": steps, "batch": 1, "channels": 1, "inputs": 1, "size": size, "kernel": kernel}
        with_options(native, shape, torch.float64)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "shape",
    (
        {"channels": 8},
        {"channels": 24, "size": (3, 5), "steps": 4},
        {"channels": 16, "kernel": 5, "inputs": 3, "steps": 2},
        {"channels": 8, "kernel": 1, "steps": 1, "batch": 1},
        {"channels": 8, "size": (2, 3, 4)},
    ),
    ids=str,
)
def test_gemm_stage(native, monkeypatch, shape, dtype):
    monkeypatch.setenv("VGKERNELS_CONV_GRU_CUDA", "gemm")
    calls = with_options(native, shape, dtype)
    assert all(weight for name, weight in calls if name != "conv_gru_candidate_backward_")


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "shape", ({"channels": 32, "steps": 2}, {"channels": 32, "kernel": 1, "size": (5, 7)}), ids=str
)
def test_persistent_stage(native, monkeypatch, shape, dtype):
    monkeypatch.setenv("VGKERNELS_CONV_GRU_CUDA", "persistent")
    names = {name for name, _ in with_options(native, shape, dtype, relu_apart=True)}
    assert names == {
        "conv_gru_persistent_",
        "conv_gru_persistent_backward_",
        "conv_gru_reset_update_",  # gates again, of all steps at once
        "conv_gru_candidate_",
    }


def test_nothing_past_the_end_counts(native):
    """Not even NaN, in values and gradients, with gates kept and computed again."""
    results = []
    for rest in (0.0, float("nan")):
        call, kernels = Call(lengths=[1, 3]), Kernels(native)
        call.tensors["x"][1:, 0] = rest
        output, h, gates = call.forward(kernels)
        results.append([output, h])
        for kept in (gates, None):
            results[-1] += call.backward(kernels, output, kept).values()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_two_launches_a_step(native):
    call, kernels = Call(steps=4), Kernels(native)
    output, _, gates = call.forward(kernels)
    assert [name for name, _ in kernels.calls] == ["conv_gru_reset_update_", "conv_gru_candidate_"] * 4
    kernels.calls.clear()
    call.backward(kernels, output, gates, ("x",))
    steps = ["conv_gru_candidate_backward_", "conv_gru_reset_backward_"] * 4
    assert [name for name, _ in kernels.calls] == steps
    kernels.calls.clear()
    call.backward(kernels, output, None)
    again = ["conv_gru_reset_update_", "conv_gru_candidate_"]
    assert [name for name, _ in kernels.calls] == [*again, *steps, "conv_gru_candidate_backward_"]


def test_only_what_is_asked_for(native):
    """Every subset, whose bits are those of all together."""
    call, kernels = Call(lengths=[2, 3]), Kernels(native)
    output, _, gates = call.forward(kernels)
    for kept in (gates, None):
        together = call.backward(kernels, output, kept)
        for count, needs in ((n, s) for n in range(len(NEEDS)) for s in itertools.combinations(NEEDS, n)):
            found = call.backward(kernels, output, kept, needs)
            assert len(needs) == count
            for name in NEEDS:
                assert torch.equal(found[name], together[name]) if name in needs else found[name].shape == (0,)


def test_arguments_are_left_alone(native):
    call, kernels = Call(dtype=torch.float32), Kernels(native)
    before = {name: tensor.clone() for name, tensor in call.tensors.items() if tensor is not None}
    output, _, gates = call.forward(kernels)
    gates[..., call.channels :] = 0  # the padding, which may hold NaN
    kept = output.clone(), gates.clone(), *(grad.clone() for grad in call.grads)
    call.backward(kernels, output, gates)
    assert all(torch.equal(call.tensors[name], tensor) for name, tensor in before.items())
    for after, tensor in zip((output, gates, *call.grads), kept, strict=True):
        assert torch.equal(after, tensor)


@pytest.mark.parametrize("stage", ("library", "gemm"))
def test_any_layout_of_the_arguments(native, monkeypatch, stage):
    """Strided, expanded and misaligned ones give the bits of packed ones."""
    monkeypatch.setenv("VGKERNELS_CONV_GRU_CUDA", stage)
    call, kernels = Call(channels=8, dtype=torch.bfloat16, lengths=[1, 3]), Kernels(native)
    call.grads = call.grads[0][:1, :, :1].expand(3, -1, 8, -1, -1), call.grads[1][:, :1].expand(-1, 8, -1, -1)
    output, h, gates = call.forward(kernels)
    together = call.backward(kernels, output, gates)
    for name in ("x", "h0", "weight_ih", "weight_hh", "bias"):
        call.tensors[name] = strided(call.tensors[name])
    call.grads = tuple(strided(grad) for grad in call.grads)
    for place in (strided, misaligned):
        call.tensors["x"], call.grads = place(call.tensors["x"]), (place(call.grads[0]), call.grads[1])
        for found, expected in zip(call.forward(kernels), (output, h, gates), strict=True):
            np.testing.assert_array_equal(found[..., :8].float(), expected[..., :8].float())
        for name, found in call.backward(kernels, place(output), gates).items():
            assert torch.equal(found, together[name])


def misaligned(tensor):
    """(T, B, C, ...) with channels innermost, as the kernels have them, but off any multiple of 16 bytes."""
    turned = tensor.movedim(2, -1)
    return tensor.new_empty(tensor.numel() + 1)[1:].view(turned.shape).copy_(turned).movedim(-1, 2)


def strided(tensor):
    """The same numbers, dims in another order, beginning off any multiple of 16 bytes."""
    turned = tensor.movedim(0, -1)
    memory = tensor.new_zeros(2 * tensor.numel() + 1)[1::2][: tensor.numel()]
    return memory.view(turned.shape).copy_(turned).movedim(-1, 0)


def test_no_steps_and_no_clips(native):
    for dtype in (torch.float32, torch.bfloat16):
        call, kernels = Call(steps=0, dtype=dtype), Kernels(native)
        output, h, gates = call.forward(kernels)
        assert (output.shape, gates.shape) == ((0, 2, 5, 4, 3), (0, 3, 2, 12, 16))
        assert torch.equal(h, call.tensors["h0"])
        assert not torch.equal(call.forward(kernels, h0=None)[1], h)
        found = call.backward(kernels, output, gates)
        assert torch.equal(found["h0"], call.grads[1])
        assert not any(found[name].any() for name in ("weight_ih", "weight_hh", "bias"))
        assert not kernels.calls
        call = Call(batch=0, dtype=dtype)
        output, h, gates = call.forward(kernels)
        assert (output.shape, h.shape) == ((3, 0, 5, 4, 3), (0, 5, 4, 3))
        for kept in (gates, None):
            found = call.backward(kernels, output, kept)
            assert not any(found[name].any() for name in NEEDS)
            assert all(found[name].shape == call.tensors[name].shape for name in NEEDS)


def test_autocast_changes_nothing(native):
    call, kernels = Call(dtype=torch.float32), Kernels(native)
    output, _, gates = call.forward(kernels)
    expected = call.backward(kernels, output, gates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call.forward(kernels)[0], output)
        found = call.backward(kernels, output, gates)
    assert all(torch.equal(found[name], expected[name]) for name in NEEDS)


def test_packed_columns():
    for maps, channels, taps in ((1, 8, (3, 3)), (2, 8, (1, 1)), (2, 40, (3, 3)), (1, 136, (1, 1, 1)), (2, 72, (5,))):
        weight = torch.randn(maps * channels, 3, *taps)
        expected = packed(weight.movedim(1, -1).numpy(), maps)
        np.testing.assert_array_equal(conv_gru_cuda.pack(weight, maps).numpy(), expected)


@pytest.mark.parametrize(
    ("wanted", "dtype", "channels", "error"),
    (
        ("cudnn", torch.float32, 8, "one of library, gemm, persistent, got cudnn"),
        ("gemm", torch.float32, 8, "float16 or bfloat16 and channels"),
        ("gemm", torch.float16, 12, "got torch.float16 and 12 channels"),
        ("persistent", torch.float16, 16, "multiples of 32 for VGKERNELS_CONV_GRU_CUDA=persistent, got"),
    ),
)
def test_a_stage_that_cannot_take_the_call(monkeypatch, wanted, dtype, channels, error):
    monkeypatch.setenv("VGKERNELS_CONV_GRU_CUDA", wanted)
    call = Call(dtype=dtype, channels=channels)
    with pytest.raises(ValueError, match=error):
        call.forward(None)


def test_no_untried_stage_is_a_default(monkeypatch):
    monkeypatch.delenv("VGKERNELS_CONV_GRU_CUDA", raising=False)
    for dtype, channels in itertools.product(ERROR, (8, 5)):
        call = Call(dtype=dtype, channels=channels)
        assert conv_gru_cuda.stage(call.tensors["x"], call.tensors["weight_hh"]) == "library"


@pytest.mark.parametrize("empty", ({"size": (0, 3)}, {"inputs": 0}, {"size": (2, 0, 3)}), ids=str)
def test_empty_maps_are_refused(empty):
    with pytest.raises(ValueError, match=r"conv_gru: expected x with (H|Cin) > 0"):
        Call(**empty).forward(None)
