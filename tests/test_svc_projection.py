"""svc_projection: the suite, the op's laws, values on hard spectra, derivatives of both orders.

The call in place is in test_svc_projection_inplace.py, the modules' rules in test_singular_value_clipping.py.
"""

import doctest
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from op_suite import Sample, needs_native
from svc_projection_samples import (
    ABOVE,
    ERROR,
    SHAPES,
    SPECTRA,
    WIDE_ERROR,
    SvcProjectionSuite,
    clipped,
    generator,
    hard_case,
    largest_value,
    relative_error,
    uniform,
    with_values,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vgkernels
from vgkernels import svc_projection, svc_projection_reference

law = settings(max_examples=40)


class TestSvcProjection(SvcProjectionSuite):
    # Without the kernel the reference runs, whose derivative is the SVD's: NaN at ties, in 16 bits under autocast.
    @needs_native
    def test_expanded(self, sample: Sample, device: str) -> None:
        super().test_expanded(sample, device)

    @needs_native
    def test_compile_dynamic(self, device: str) -> None:
        super().test_compile_dynamic(device)

    @needs_native
    def test_autocast(self, sample: Sample, device: str) -> None:
        super().test_autocast(sample, device)


@needs_native
def test_non_reentrant_checkpoint() -> None:
    weight, (g,) = hard_case("to 3.9", 6, 9).clone(), directions(hard_case("to 3.9", 6, 9), 1)
    leaf = weight.clone().requires_grad_()
    checkpoint(svc_projection, leaf, use_reentrant=False).backward(g)
    assert torch.equal(leaf.grad, derivative(weight, g))


@needs_native
@pytest.mark.parametrize("dim", [0, 1])
def test_compile_with_dynamic_shapes_of_convolutions(dim: int) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda w: svc_projection(w, dim=dim).sin(), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for shape in ((4, 3, 5), (6, 7, 8), (5, 4, 3, 2)):
        weight = torch.randn(shape, generator=generator(4), dtype=torch.float64)
        leaf, want = weight.clone().requires_grad_(), weight.clone().requires_grad_()
        got = compiled(leaf)
        got.sum().backward()
        svc_projection(want, dim=dim).sin().sum().backward()
        torch.testing.assert_close(got, svc_projection(weight, dim=dim).sin(), rtol=0, atol=1e-12)
        torch.testing.assert_close(leaf.grad, want.grad, rtol=0, atol=1e-12)


# ---- values ----


@needs_native
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_hard_spectra(spectrum: str, device: str) -> None:
    for (m, n), dtype in ((shape, dtype) for shape in (*SHAPES, (1, 50), (50, 1)) for dtype in ABOVE):
        weight = hard_case(spectrum, m, n).to(device, dtype)
        got, want = svc_projection(weight), clipped(weight)
        assert largest_value(got) <= 1 + ABOVE[dtype]
        wide = spectrum == "wide" and dtype == torch.float32
        assert relative_error(got, want) <= (WIDE_ERROR if wide else ERROR[dtype])
        assert torch.equal(svc_projection(got), got)
        if spectrum == "all inside":
            assert torch.equal(got, weight)


@needs_native
def test_inside_gives_the_same_bits_and_other_memory() -> None:
    weight = with_values(6, 8, uniform(6, 0, 0.9))
    weight[0, 0] = -0.0
    weight *= 0.5
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for laid in (weight.to(dtype), weight.to(dtype).t(), weight.to(dtype).view(6, 2, 2, 2)):
            out = svc_projection(laid)
            assert torch.equal(out.view(torch.uint8), laid.contiguous().view(torch.uint8))
            assert out.data_ptr() != laid.data_ptr()


@needs_native
def test_layout_of_the_result() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=generator(0))
    last = weight.contiguous(memory_format=torch.channels_last)
    assert svc_projection(weight).is_contiguous()
    assert svc_projection(last).is_contiguous(memory_format=torch.channels_last)
    assert svc_projection(weight, dim=1).is_contiguous()
    assert svc_projection(torch.ones(3, 2), dim=1).is_contiguous()


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_raises_on_the_cpu(value: float, impl: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weight = torch.zeros(3, 5, dtype=dtype)
        weight[2, 4] = value
        with pytest.raises(RuntimeError, match="svc_projection: expected finite weight, got NaN or Inf"):
            svc_projection(weight, impl=impl)


# ---- laws ----

matrices = st.builds(
    lambda m, n, scale, seed: scale * torch.randn(m, n, generator=generator(seed), dtype=torch.float64),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from((0.05, 0.3, 1.0, 30.0)),
    st.integers(0, 999),
)
bounds = st.sampled_from((0.1, 1.0, 7.0))


@law
@given(matrices, bounds, st.integers(0, 99))
def test_nearest_of_all_that_are_inside(weight: Tensor, bound: float, seed: int) -> None:
    got = svc_projection(weight, bound)
    assert largest_value(got) <= bound * (1 + ABOVE[torch.float64])
    candidate = torch.randn(weight.shape, generator=generator(seed), dtype=torch.float64)
    candidate = candidate * (bound / largest_value(candidate))
    for share in (1.0, 0.5, 1e-3):  # of the way from the projection to another matrix inside: convex
        other = got + share * (candidate - got)
        assert (weight - got).norm() <= (weight - other).norm() + 1e-12 * weight.norm()
    assert ((weight - got) * (candidate - got)).sum() <= 1e-11 * weight.norm() * bound


@law
@given(matrices, bounds, st.integers(0, 99))
def test_commutes_with_transposition_and_orthogonal_factors(weight: Tensor, bound: float, seed: int) -> None:
    got, allowed = svc_projection(weight, bound), 1e-12 * (1 + weight.norm().item())
    torch.testing.assert_close(svc_projection(weight.t(), bound), got.t(), rtol=0, atol=allowed)
    torch.testing.assert_close(svc_projection(weight, bound, dim=1), got, rtol=0, atol=allowed)
    torch.testing.assert_close(svc_projection(-weight, bound), -got, rtol=0, atol=allowed)
    torch.testing.assert_close(svc_projection(4 * weight, 4 * bound), 4 * got, rtol=0, atol=4 * allowed)
    g = generator(seed)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for n in weight.shape)
    turned = svc_projection(left @ weight @ right, bound)
    torch.testing.assert_close(turned, left @ got @ right, rtol=0, atol=allowed)


@needs_native
@law
@given(matrices, matrices, bounds)
def test_idempotent_and_never_expands(weight: Tensor, other: Tensor, bound: float) -> None:
    got = svc_projection(weight, bound)
    assert torch.equal(svc_projection(got, bound), got)
    if other.shape == weight.shape:
        moved = (got - svc_projection(other, bound)).norm()
        assert moved <= (weight - other).norm() * (1 + 1e-12) + 1e-13 * bound


@law
@given(matrices, bounds)
def test_one_row_is_scaled(weight: Tensor, bound: float) -> None:
    row = weight[:1]
    want = row * (bound / row.norm()).clamp(max=1)
    torch.testing.assert_close(svc_projection(row, bound), want, rtol=1e-12, atol=1e-14)


@needs_native
def test_each_dim_is_its_matrix() -> None:
    weight = torch.randn(3, 4, 2, 5, generator=generator(1), dtype=torch.float64)
    for dim in range(-4, 4):
        moved = weight.movedim(dim, 0)
        want = svc_projection_reference(moved.flatten(1), 2.0).view(moved.shape).movedim(0, dim)
        torch.testing.assert_close(svc_projection(weight, 2.0, dim=dim), want, rtol=0, atol=1e-13)


# ---- derivatives ----


def derivative(weight: Tensor, *directions: Tensor, bound: float = 1.0) -> Tensor:
    """P'(weight)[g] or P''(weight)[g, u], through autograd."""
    weight = weight.detach().requires_grad_()
    g = directions[0].detach().requires_grad_()
    (first,) = torch.autograd.grad(svc_projection(weight, bound), weight, g, create_graph=True)
    return first.detach() if len(directions) == 1 else torch.autograd.grad(first, weight, directions[1])[0]


def directions(weight: Tensor, count: int) -> list[Tensor]:
    return [torch.randn(weight.shape, generator=generator(20 + i), dtype=weight.dtype) for i in range(count)]


TIES = {
    "two equal above": [2.0, 2.0, 1.5, 0.5, 0.5, 0.2],
    "all equal above": [3.0] * 6,
    "all equal below": [0.5] * 6,
    "rank 2": [2.0, 0.5],
    "rank 2, both above, equal": [2.0, 2.0],
    "no rank": [0.0],
}


@needs_native
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
@pytest.mark.parametrize("values", TIES.values(), ids=TIES)
def test_derivatives_where_singular_values_are_equal_or_zero(values: list[float], shape: tuple[int, int]) -> None:
    weight = with_values(*shape, torch.tensor(values, dtype=torch.float64))
    (g, u), h = directions(weight, 2), 1e-4
    first = (clipped(weight + h * g) - clipped(weight - h * g)) / (2 * h)
    got = derivative(weight, g)
    torch.testing.assert_close(got, first, rtol=0, atol=1e-6)
    second = (derivative(weight + h * u, g) - derivative(weight - h * u, g)) / (2 * h)
    torch.testing.assert_close(derivative(weight, g, u), second, rtol=0, atol=1e-5)
    for narrow in (got, derivative(weight.float(), g.float()).double()):
        torch.testing.assert_close(narrow, got, rtol=0, atol=2e-5)


@needs_native
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_float32_derivatives_on_hard_spectra(spectrum: str) -> None:
    for m, n in ((24, 40), (40, 24)):
        weight = with_values(m, n, SPECTRA[spectrum](24)).float()
        g, u = directions(weight, 2)
        for some in ((g,), (g, u)) if spectrum in ("few above 1", "to 3.9", "wide", "all equal") else ((g,),):
            got, want = derivative(weight, *some), derivative(weight.double(), *(t.double() for t in some))
            assert got.isfinite().all()
            if not spectrum.startswith("cluster"):  # there float32 can't tell which singular values are above 1
                allowed = 2e-4 if spectrum == "after a step" else 2e-6  # a thousandth from where the derivative jumps
                assert relative_error(got, want) <= allowed if want.any() else not got.any()
        assert derivative(weight, g).norm() <= g.norm() * (1 + 1e-5)  # a projection never expands


@needs_native
def test_derivative_where_weight_over_bound_leaves_float32() -> None:
    weight = torch.randn(4, 60, generator=generator(0)) * 1e20
    assert derivative(weight, *directions(weight, 1), bound=1e-20).abs().max() <= 1e-6  # bound / W: 1e-40


@needs_native
def test_derivative_between_values_on_two_sides_of_the_tolerance() -> None:
    weight = torch.diag(torch.tensor([1 + 4e-6, 1 + 2.5e-6, 1.0, 0.5]))  # the second counts as 1
    want = torch.ones(4, 4)
    want[0, :3] = want[:3, 0] = 0
    torch.testing.assert_close(derivative(weight, torch.ones(4, 4)), want, rtol=0, atol=1e-4)


@needs_native
def test_derivatives_are_symmetric() -> None:
    weight = torch.randn(7, 11, generator=generator(3), dtype=torch.float64)
    g, u, v = directions(weight, 3)
    pairs = [(derivative(weight, g, bound=2.5) * u).sum(), (derivative(weight, u, bound=2.5) * g).sum()]
    triples = [(derivative(weight, *ab, bound=2.5) * c).sum() for *ab, c in ((g, u, v), (v, g, u), (u, v, g))]
    for values in (pairs, triples):
        torch.testing.assert_close(torch.stack(values), values[0].expand(len(values)), rtol=1e-10, atol=1e-12)


@needs_native
def test_two_row_blocks_of_clipped_values_agree_with_autograd_through_the_svd() -> None:
    for m, n in ((12, 30), (30, 12), (16, 16)):
        weight = torch.randn(m, n, generator=generator(m), dtype=torch.float64)
        values = torch.linalg.svdvals(weight)
        for k in (0, 1, 5, 12):  # how many are clipped
            ends = [values[0] * 2, *values, values[-1] / 2]
            bound = float((ends[k] + ends[k + 1]) / 2)
            got, want = [], []
            for function, into in ((svc_projection, got), (svc_projection_reference, want)):
                w, (g, u) = weight.clone().requires_grad_(), directions(weight, 2)
                g.requires_grad_()
                (first,) = torch.autograd.grad(function(w, bound), w, g, create_graph=True)
                into += [first, *torch.autograd.grad(first, (g, w), u, allow_unused=True, materialize_grads=True)]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@needs_native
def test_a_third_derivative_is_refused() -> None:
    weight = SvcProjectionSuite.samples[0].tensors["weight"].detach().requires_grad_()

    def second(weight: Tensor, wanted: Any = svc_projection) -> Tensor:
        (first,) = torch.autograd.grad(wanted(weight).pow(3).sum(), weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight, create_graph=True)[0]

    third = "^svc_projection: expected at most two derivatives, got a third"
    with pytest.raises(RuntimeError, match=third):
        torch.autograd.grad(second(weight).square().sum(), weight)
    small, loss = torch.tensor([[[2.0, 0.0]]]), lambda w: svc_projection(w).pow(3).sum()
    with pytest.raises(RuntimeError, match=third):
        torch.vmap(torch.func.grad(lambda w: torch.func.jacrev(torch.func.jacrev(loss))(w).sum()))(small)
    want = second(weight, svc_projection_reference)
    torch.testing.assert_close(second(weight), want, rtol=0, atol=1e-10)
    assert torch.autograd.grad(want.square().sum(), weight)[0].any()


@needs_native
def test_hessian_and_vmap_of_it() -> None:
    weight = SvcProjectionSuite.samples[0].tensors["weight"]
    got = torch.func.jacrev(torch.func.jacrev(lambda w: svc_projection(w).pow(3).sum()))
    want = torch.func.hessian(lambda w: svc_projection_reference(w).pow(3).sum())
    torch.testing.assert_close(got(weight), want(weight), rtol=0, atol=1e-10)
    stacked = torch.stack([weight, 0.2 * weight, 3 * weight])
    torch.testing.assert_close(torch.vmap(got)(stacked), torch.stack([want(w) for w in stacked]), rtol=0, atol=1e-10)


def test_forward_mode_takes_the_reference() -> None:
    weight = SvcProjectionSuite.samples[0].tensors["weight"]
    (tangent,) = directions(weight, 1)
    got = torch.func.jvp(svc_projection, (weight,), (tangent,))
    want = torch.func.jvp(svc_projection_reference, (weight,), (tangent,))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], derivative(weight, tangent), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="expected impl='auto' or 'reference' for forward-mode AD, got impl='native'"):
        torch.func.jvp(lambda w: svc_projection(w, impl="native"), (weight,), (tangent,))


@needs_native
def test_bad_gradients_are_refused() -> None:
    suite = SvcProjectionSuite()
    calls = list(suite.native_calls(suite.cast(suite.samples[0], torch.float32)))[1:]
    for op, arguments in calls:
        gradient = arguments[0]
        for bad in (gradient[:, 1:], gradient[..., 1:], gradient[0], gradient.double(), gradient.to("meta")):
            with pytest.raises((TypeError, ValueError), match=r"expected grad_(out|grad) "):
                op(bad, *arguments[1:])


@needs_native
def test_backward_under_autocast_stays_float32() -> None:
    weight, (g,) = hard_case("few above 1", 64, 192).float(), directions(hard_case("few above 1", 64, 192).float(), 1)
    want = derivative(weight, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(derivative(weight, g), want)
        reference = svc_projection_reference(weight)
    assert relative_error(reference, clipped(weight)) <= 1e-5


def test_docstrings() -> None:
    functions = (svc_projection, vgkernels.svc_projection_, vgkernels.SingularValueClipping)
    for module, examples in zip((sys.modules[f.__module__] for f in functions), (2, 4, 5), strict=True):
        report = doctest.testmod(module)
        assert report.attempted >= examples
        assert report.failed == 0
