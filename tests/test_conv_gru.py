"""conv_gru: the suite, the definition, the laws of the recurrence.

Derivatives and what is kept for them are in test_conv_gru_derivatives.py, hard numbers and sizes in
test_conv_gru_numbers.py, the cache of packed weights in test_conv_gru_packing.py, the module in
test_conv_gru_module.py, imports of weights in test_conv_gru_weights.py.
"""

import doctest
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from conv_gru_samples import (
    LOW_PRECISION_ERROR,
    ROUNDED_PRODUCTS_ERROR,
    SAMPLES,
    TOLERANCE,
    ConvGRUSuite,
    arguments,
    close,
    definition,
    lengths,
    make,
    normal,
    without_bias,
    without_ours,
)
from op_suite import LOW_PRECISION, Sample, needs_native, ulp, with_tensors
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import vgkernels
from vgkernels import _native, conv_gru, conv_gru_reference

BOTH = [conv_gru, conv_gru_reference]


class TestConvGRU(ConvGRUSuite):
    # The output is rounded once; gradients pass through gates that were kept in 16 bits. On CUDA so do products.
    def test_low_precision_is_float32_rounded_once(self, sample: Sample, device: str) -> None:
        for dtype in LOW_PRECISION:
            case = self.cast(sample, dtype, device)
            on_cuda = _native.runs_cuda_kernels(case.tensors["x"].device)
            want = self.run(self.reference, self.cast(case, torch.float32, device))
            for function in (self.call, self.reference):
                got = self.run(function, case)
                assert got["out"].dtype == dtype
                error = (got["out"].float() - want["out"]).abs()
                bound = ROUNDED_PRODUCTS_ERROR if function == self.call and on_cuda else LOW_PRECISION_ERROR
                if function == self.call and on_cuda:
                    assert error.max() <= bound * want["out"].abs().max()
                else:
                    assert (error <= TOLERANCE[torch.float32]["out"] + ulp(want["out"], dtype)).all()
                for k in case.tensors:
                    assert got[k].dtype == case.tensors[k].dtype
                    error = (got[k].float() - want[k]).abs().max()
                    assert error <= bound * want[k].abs().max(), k

    def test_layouts(self, sample: Sample, device: str) -> None:
        super().test_layouts(without_bias(sample), device)  # which has one dim

    # Autocast rounds the arguments, once, and only them.
    def test_autocast(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)

        def rounded(sample: Sample) -> Tensor:
            tensors = {k: t if k == "h0" else t.bfloat16() for k, t in sample.tensors.items()}
            return self.call(replace(sample, tensors=tensors))

        want = self.run(rounded, case)
        on_cuda = _native.runs_cuda_kernels(case.tensors["x"].device)
        bound = ROUNDED_PRODUCTS_ERROR if on_cuda else LOW_PRECISION_ERROR
        for function in (self.call, self.reference):
            with torch.autocast(device, dtype=torch.bfloat16):
                got = self.run(function, case)
            assert got["out"].dtype == torch.bfloat16
            for k in want:
                assert got[k].dtype == want[k].dtype
                if function == self.call:
                    assert torch.equal(got[k], want[k])
                else:
                    assert (got[k] - want[k]).abs().max() <= bound * want[k].abs().max()
        wide = self.cast(sample, torch.float64, device)
        want = self.run(self.call, wide)
        with torch.autocast(device, dtype=torch.bfloat16):
            got = self.run(self.call, wide)
        assert all(torch.equal(got[k], want[k]) for k in want)

    # The batch is not dim 0 of all arguments, as it is in the other ops; the reference unrolls its loop over steps.
    @needs_native
    def test_compile_dynamic(self, device: str) -> None:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        case = self.cast(self.samples[0], torch.float64, device)
        compiled = torch.compile(
            lambda *t: self.call(with_tensors(case, t)).sin(), fullgraph=True, backend=counter, dynamic=True
        )
        compiles = set()
        for batch, steps in ((11, 5), (13, 6), (19, 7)):
            grown = resized(case, batch, steps)
            eager = self.run(lambda s: self.call(s).sin(), grown)
            self.assert_close(self.run(lambda s: compiled(*s.tensors.values()), grown), eager, torch.float64)
            compiles.add(counter.frame_count)
        assert len(compiles) == 1

    @needs_native
    def test_export(self, device: str) -> None:
        case = self.cast(self.samples[0], torch.float32, device)
        batch, steps = torch.export.Dim("batch", max=64), torch.export.Dim("steps", max=64)

        class Call(torch.nn.Module):
            def forward(self, x: Tensor, h0: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Any:
                return conv_gru(x, h0, weight_ih, weight_hh, bias)

        dims = {"x": {0: steps, 1: batch}, "h0": {0: batch}, "weight_ih": None, "weight_hh": None, "bias": None}
        program = torch.export.export(Call(), tuple(case.tensors.values()), dynamic_shapes=dims)
        grown = tuple(resized(case, 3, 4).tensors.values())
        torch.testing.assert_close(program.module()(*grown), conv_gru(*grown), rtol=0, atol=0)


def resized(sample: Sample, batch: int, steps: int) -> Sample:
    """Of other numbers of clips and steps, by repetition."""
    clips = torch.arange(batch) % 2
    tensors = dict(sample.tensors)
    tensors["x"] = tensors["x"][torch.arange(steps) % 3][:, clips]
    tensors["h0"] = tensors["h0"][clips]
    return replace(sample, tensors=tensors)


# ---- the definition ----


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@pytest.mark.parametrize("function", BOTH)
def test_agrees_with_the_definition(function: Any, sample: Sample) -> None:
    given = arguments(sample)
    output, h_T = function(**without_ours(given, function))
    want = definition(**given)
    close((output, h_T), want[:2])
    assert output.is_contiguous() and h_T.is_contiguous()


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_steps(dtype: torch.dtype, function: Any) -> None:
    for h0 in (True, False):
        given = arguments(make("", 0, 2, 2, 3, 4, 3, h0=h0), dtype)
        leaves = {k: t.requires_grad_() for k, t in given.items() if isinstance(t, Tensor)}
        output, h_T = function(**{**given, **leaves})
        assert output.shape == (0, 2, 3, 4, 3)
        assert output.dtype == dtype
        assert h_T.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(h_T, leaves["h0"].detach()) if h0 else not h_T.any()
        assert h0 is False or h_T.data_ptr() != leaves["h0"].data_ptr()
        (output.sum() + h_T.cos().sum()).backward()
        for k, leaf in leaves.items():
            if k == "h0":
                close(leaf.grad, -leaf.detach().sin(), 1e-6)
            else:
                assert leaf.grad is None or not leaf.grad.any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_lengths_of_any_integer_dtype(dtype: torch.dtype) -> None:
    given = arguments(next(s for s in SAMPLES if s.name == "lengths"))
    for function in BOTH:
        got = function(**{**given, "lengths": given["lengths"].to(dtype)})
        close(got, function(**given), 0)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_h0_in_16_bits_or_in_float32(dtype: torch.dtype, function: Any) -> None:
    given = arguments(SAMPLES[0], dtype)
    narrow = given["h0"].to(dtype).requires_grad_()
    got = function(**{**given, "h0": narrow})
    close(got, function(**{**given, "h0": narrow.detach().float()}), 0)
    got[1].sum().backward()
    assert narrow.grad.dtype == dtype


WINOGRAD_CANNOT = [
    ("float64", make("", 2, 1, 1, 2, 3, 3), torch.float64),
    ("k = 1", make("", 2, 1, 1, 2, 3, 3, k=1), torch.float32),
    ("k = 5", make("", 2, 1, 1, 2, 3, 3, k=5), torch.float32),
]


@pytest.mark.parametrize(("what", "sample", "dtype"), WINOGRAD_CANNOT, ids=[name for name, *_ in WINOGRAD_CANNOT])
def test_winograd_is_refused_where_it_cannot_be(what: str, sample: Sample, dtype: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=f"^conv_gru: expected algorithm 'auto' or 'direct' for {what}, got 'winograd'$"
    ):
        conv_gru(**{**arguments(sample, dtype), "algorithm": "winograd"})


# ---- laws ----


def drawn(*shape: int, activation: str = "relu", **options: Any) -> dict[str, Any]:
    return arguments(make("", *shape, activation=activation, **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_two_calls_are_one(reverse: bool, dtype: torch.dtype) -> None:
    given = arguments(make("", 7, 2, 3, 5, 6, 5, reverse=reverse), dtype)
    for function in BOTH:
        output, h_T = function(**given)
        first, second = (given["x"][3:], given["x"][:3]) if reverse else (given["x"][:3], given["x"][3:])
        early, state = function(**{**given, "x": first})
        late, last = function(**{**given, "x": second, "h0": state})
        atol = 0 if function is conv_gru else TOLERANCE[torch.float32]["out"]
        close(torch.cat([late, early] if reverse else [early, late]), output, atol)
        close(last, h_T, atol)


@pytest.mark.parametrize("function", BOTH)
def test_an_update_gate_of_1_keeps_the_state(function: Any) -> None:
    given = drawn(4, 2, 3, 5, 4, 6)
    given["bias"][5:10] = 1e4
    output, h_T = function(**given)
    assert torch.equal(output, given["h0"].expand_as(output))
    assert torch.equal(h_T, given["h0"])
    given["bias"][5:10] = -1e4  # and of 0 forgets it
    given["h0"] = given["h0"].relu()
    given["weight_hh"][10:] = 0
    once = function(**{**given, "x": given["x"][3:], "h0": None})[1]
    close(function(**given)[1], once)


@pytest.mark.parametrize("function", BOTH)
def test_a_pointwise_kernel_is_a_cell_at_each_pixel(function: Any) -> None:
    given = drawn(4, 2, 3, 5, 3, 2, activation="tanh", k=1)
    w_ih, w_hh = (given[k].flatten(1) for k in ("weight_ih", "weight_hh"))
    h = given["h0"].movedim(1, -1)
    for x in given["x"].movedim(2, -1):
        of_x = x @ w_ih.T + given["bias"]
        r, z = torch.sigmoid(of_x[..., :10] + h @ w_hh[:10].T).split(5, -1)
        n = torch.tanh(of_x[..., 10:] + (r * h) @ w_hh[10:].T)  # reset before the product, unlike torch.nn.GRU
        h = z * h + (1 - z) * n
    close(function(**given)[1], h.movedim(-1, 1))


@pytest.mark.parametrize("function", BOTH)
def test_clips_are_independent(function: Any) -> None:
    given = drawn(4, 5, 3, 4, 4, 5, lengths=lengths(4, 2, 0, 3, 4))
    output, h_T = function(**given)
    for b in range(5):
        one = {"x": given["x"][:, b : b + 1], "h0": given["h0"][b : b + 1], "lengths": given["lengths"][b : b + 1]}
        close(function(**{**given, **one}), (output[:, b : b + 1], h_T[b : b + 1]))


@pytest.mark.parametrize("function", BOTH)
def test_reverse_is_forwards_on_the_flipped_clip(function: Any) -> None:
    given = drawn(5, 3, 2, 4, 4, 3)
    output, h_T = function(**{**given, "x": given["x"].flip(0)})
    close(function(**given, reverse=True), (output.flip(0), h_T))
    given["lengths"] = lengths(5, 2, 0)
    output, h_T = function(**given, reverse=True)
    for b, length in enumerate(given["lengths"].tolist()):
        alone = {"x": given["x"][:length, b : b + 1].flip(0), "h0": given["h0"][b : b + 1], "lengths": None}
        want, last = function(**{**given, **alone})
        close(output[:length, b : b + 1], want.flip(0))
        close(h_T[b : b + 1], last)
        assert torch.equal(output[length:, b], given["h0"][b].expand(5 - length, -1, -1, -1))


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_past_the_end_counts(reverse: bool, function: Any) -> None:
    found = []
    for fill in (0.0, float("nan"), float("inf")):
        given = drawn(4, 3, 2, 3, 4, 3, reverse=reverse, lengths=lengths(4, 1, 2))
        for b, length in enumerate((4, 1, 2)):
            given["x"][length:, b] = fill
        leaves = {k: given[k].requires_grad_() for k in ("x", "h0", "weight_ih", "weight_hh", "bias")}
        output, h_T = function(**{**given, **leaves})
        grads = torch.autograd.grad((output * normal(*output.shape)).sum() + h_T.sin().sum(), list(leaves.values()))
        found.append((output, h_T, *grads))
        assert not any(grads[0][length:, b].any() for b, length in enumerate((4, 1, 2)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_docstrings() -> None:
    for thing in (conv_gru, vgkernels.ConvGRU, vgkernels.pack_conv_gru_weights):
        report = doctest.testmod(sys.modules[thing.__module__])
        assert report.attempted >= 2
        assert report.failed == 0
