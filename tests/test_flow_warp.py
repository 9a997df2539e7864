"""flow_warp and flow_warp_blend: the suite, the op's laws, autocast, derivatives of higher order.

Values against grid_sample, sizes, numbers and determinism are in test_flow_warp_numbers.py.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from flow_warp_samples import DTYPES, MODES, PADDINGS, BlendSuite, PlainSuite, generator, make
from hypothesis import given, settings, strategies as st
from op_suite import needs_native
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vgkernels
from vgkernels import _native, flow_warp, flow_warp_blend, flow_warp_blend_reference, flow_warp_reference

law = settings(max_examples=40)


class TestFlowWarp(PlainSuite):
    pass


class TestFlowWarpBlend(BlendSuite):
    pass


def test_non_reentrant_checkpoint() -> None:
    suite = BlendSuite()
    case = suite.cast(suite.samples[0], torch.float64)
    options, tensors = case.options, tuple(case.tensors)
    want = suite.run(suite.call, case)
    got = suite.run(
        lambda s: checkpoint(flow_warp_blend, *(s.tensors[k] for k in tensors), **options, use_reentrant=False), case
    )
    suite.assert_close(got, want, torch.float64)


@needs_native
def test_bad_grad_out_is_refused() -> None:
    suite = BlendSuite()
    op, (grad_out, *rest) = list(suite.native_calls(suite.cast(suite.samples[0], torch.float32)))[1]
    for bad in (grad_out[:1], grad_out[:, 1:], grad_out[:, :, 1:], grad_out[0], grad_out.double()):
        with pytest.raises(RuntimeError, match="expected grad_out "):
            op(bad, *rest)


@needs_native
def test_nothing_is_computed_unasked(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = BlendSuite()
    case = suite.cast(suite.samples[0], torch.float32, device)
    op, arguments = list(suite.native_calls(case))[1]
    full, names = op(*arguments), tuple(case.tensors)
    for needs in itertools.product((False, True), repeat=4):
        for gradient, need, want, k in zip(op(*arguments[:7], *needs, False), needs, full, names, strict=True):
            assert gradient.shape == (case.tensors[k].shape if need else (0,))
            assert torch.equal(gradient, want if need else want.new_empty(0))
    asked = []
    monkeypatch.setattr(
        _native.kernels, "flow_warp_backward", lambda *args: (asked.append(args[7:11]), op(*args))[1], raising=False
    )
    for needs in itertools.product((False, True), repeat=4):
        wanted = tuple(k for k, need in zip(names, needs, strict=True) if need)
        asked.clear()
        suite.run(suite.call, case, wanted)
        assert asked == ([needs] if wanted else [])


# ---- laws ----

small = st.integers(1, 9)
cases = st.fixed_dictionaries(
    {
        "shape": st.tuples(st.integers(1, 2), st.sampled_from((1, 2, 3, 4, 5, 16, 17)), small, small),
        "out": st.tuples(small, small),
        "mode": st.sampled_from(MODES),
        "padding_mode": st.sampled_from(PADDINGS),
        "channels_last": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


def drawn_image(case: dict[str, Any], dtype: torch.dtype = torch.float32) -> Tensor:
    image = torch.randn(case["shape"], generator=generator(case["seed"]), dtype=torch.float64).to(dtype)
    return image.contiguous(memory_format=torch.channels_last) if case["channels_last"] else image


def drawn_flow(case: dict[str, Any]) -> Tensor:
    g = generator(case["seed"] + 1000)
    return 3 * torch.randn(case["shape"][0], 2, *case["out"], generator=g, dtype=torch.float64)


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    return {k: case[k] for k in ("mode", "padding_mode")}


@law
@given(cases, st.sampled_from(DTYPES))
def test_zero_flow_is_the_identity(case: dict[str, Any], dtype: torch.dtype) -> None:
    image = drawn_image(case, dtype)
    assert torch.equal(
        flow_warp(image, image.new_zeros(image.shape[0], 2, *image.shape[2:]), **options_of(case)), image
    )


def shifted(n: int, out_n: int, shift: int, padding_mode: str) -> list[int | None]:
    """The sample that each output takes along one axis; None where it is 0."""
    found: list[int | None] = []
    for p in range(shift, shift + out_n):
        if padding_mode == "zeros":
            found.append(p if 0 <= p < n else None)
        elif padding_mode == "border" or n == 1:
            found.append(min(max(p, 0), n - 1))
        else:
            walk = [*range(n), *range(n - 2, 0, -1)]  # there and back
            found.append(walk[p % len(walk)])
    return found


@law
@given(cases, st.integers(-20, 20), st.integers(-20, 20), st.sampled_from(DTYPES))
def test_integer_flow_is_a_shift(case: dict[str, Any], dx: int, dy: int, dtype: torch.dtype) -> None:
    image = drawn_image(case, dtype)
    (batch, _, h, w), (ho, wo) = image.shape, case["out"]
    flow = torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(batch, 2, ho, wo)
    out = flow_warp(image, flow, **options_of(case))
    rows, columns = shifted(h, ho, dy, case["padding_mode"]), shifted(w, wo, dx, case["padding_mode"])
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        want = torch.zeros_like(image[:, :, 0, 0]) if row is None or column is None else image[:, :, row, column]
        assert torch.equal(out[:, :, i, j], want)


@law
@given(cases, st.floats(-3, 3), st.floats(-3, 3))
def test_linear_in_the_image(case: dict[str, Any], a: float, b: float) -> None:
    first, second = drawn_image(case, torch.float64), drawn_image(case | {"seed": case["seed"] + 1}, torch.float64)
    flow, options = drawn_flow(case), options_of(case)
    got = flow_warp(a * first + b * second, flow, **options)
    want = a * flow_warp(first, flow, **options) + b * flow_warp(second, flow, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@law
@given(cases, st.floats(-5, 5, width=32))
def test_a_constant_stays_constant(case: dict[str, Any], value: float) -> None:
    case = case | {"padding_mode": "border" if case["padding_mode"] == "zeros" else case["padding_mode"]}
    out = flow_warp(torch.full_like(drawn_image(case), value), drawn_flow(case), **options_of(case))
    torch.testing.assert_close(out, torch.full_like(out, value), rtol=3e-7, atol=0)


anything = st.floats(width=32) | st.sampled_from(
    (math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -(2.0**31), -0.0)
)


@law
@given(cases, st.lists(anything, min_size=1, max_size=12))
def test_range_is_never_exceeded_whatever_the_flow(case: dict[str, Any], values: list[float]) -> None:
    image, flow = drawn_image(case), drawn_flow(case).float()
    flow.view(-1)[: len(values)] = torch.tensor(values)[: flow.numel()]
    flow.requires_grad_()
    out = flow_warp(image, flow, **options_of(case))
    least, most = image.amin(), image.amax()
    if case["padding_mode"] == "zeros":
        least, most = least.clamp(max=0), most.clamp(min=0)
    assert (out >= least - 4e-7 * least.abs()).all()
    assert (out <= most + 4e-7 * most.abs()).all()
    out.sum().backward()
    assert flow.grad.isfinite().all()
    assert not flow.grad[~flow.isfinite()].any()


@law
@given(cases)
def test_blend_is_its_formula(case: dict[str, Any]) -> None:
    image, flow, options = drawn_image(case, torch.float64), drawn_flow(case), options_of(case)
    warped, g = flow_warp(image, flow, **options), generator(3)
    new = torch.randn(warped.shape, generator=g, dtype=torch.float64)
    mask = torch.rand(new.shape[0], 1, *new.shape[2:], generator=g, dtype=torch.float64)
    got = flow_warp_blend(image, flow, mask, new, **options)
    torch.testing.assert_close(got, (1 - mask) * warped + mask * new, rtol=0, atol=1e-14)
    assert torch.equal(flow_warp_blend(image, flow, torch.zeros_like(mask), new, **options), warped)
    assert torch.equal(flow_warp_blend(image, flow, torch.ones_like(mask), new, **options), new)


# ---- autocast, and derivatives of higher order ----


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_promotes_image_and_new(compiled: bool) -> None:
    torch._dynamo.reset()
    blend = torch.compile(flow_warp_blend, fullgraph=True, backend="aot_eager") if compiled else flow_warp_blend
    sample = make("", (2, 3, 6, 7), (6, 7), blend=True).tensors
    for image_dtype, new_dtype, want in (
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ):
        dtypes = (image_dtype, torch.bfloat16, torch.float16, new_dtype)
        tensors = [t.to(d).requires_grad_() for t, d in zip(sample.values(), dtypes, strict=True)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = blend(*tensors)
        assert out.dtype == want
        exact = flow_warp_blend_reference(*(t.detach().double() for t in tensors))
        torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(want).eps, atol=2e-5)
        out.sum().backward()
        assert tuple(t.grad.dtype for t in tensors) == dtypes
    with pytest.raises(TypeError, match="expected new of image's dtype"):
        flow_warp_blend(*tensors[:3], tensors[3].float())


@pytest.mark.parametrize("function", [flow_warp, flow_warp_reference])
def test_hessian(function: Any) -> None:
    image, flow = (t[:1, :, :2, :3] for t in PlainSuite.samples[0].tensors.values())
    energy = lambda image, flow: function(image, flow).square().sum()  # noqa: E731
    got = torch.func.hessian(energy, argnums=(0, 1)) if function is flow_warp_reference else None
    reverse = torch.func.jacrev(torch.func.jacrev(energy, argnums=(0, 1)), argnums=(0, 1))(image, flow)
    want = torch.autograd.functional.hessian(
        lambda i, f: grid_sample_by_hand(i, f).square().sum(), (image.contiguous(), flow.contiguous())
    )
    for got_row, want_row in zip(reverse, want, strict=True):
        for a, b in zip(got_row, want_row, strict=True):
            assert b.any() or a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    if got is not None:
        torch.testing.assert_close(got(image, flow)[0][1], want[0][1], rtol=0, atol=1e-11)


def grid_sample_by_hand(image: Tensor, flow: Tensor) -> Tensor:
    """The equation, bilinear and border, as a product with dense hat functions: a third way to compute it."""

    def hats(p: Tensor, n: int) -> Tensor:
        return (1 - (p.clamp(0, n - 1)[..., None] - torch.arange(n)).abs()).clamp(min=0)  # (B, Ho, Wo, n)

    ho, wo = flow.shape[2:]
    across = hats(flow[:, 0] + torch.arange(wo), image.shape[3])
    down = hats(flow[:, 1] + torch.arange(ho)[:, None], image.shape[2])
    return torch.einsum("bchw,bpqh,bpqw->bcpq", image, down, across)


def test_third_derivative() -> None:
    sample = PlainSuite.samples[0]
    image, flow = (t[:1, :1, :3, :3].detach().requires_grad_() for t in sample.tensors.values())
    flow = sample.tensors["flow"][:1, :, :2, :2].detach().requires_grad_()

    def third(function: Any) -> Tensor:
        (first,) = torch.autograd.grad(function(image, flow).pow(3).sum(), flow, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), image, create_graph=True)
        return torch.autograd.grad(second.square().sum(), flow)[0]

    want = third(flow_warp_reference)
    assert want.any()
    torch.testing.assert_close(third(flow_warp), want, rtol=1e-10, atol=1e-10)


def test_forward_mode_takes_the_reference() -> None:
    image, flow = PlainSuite.samples[0].tensors.values()
    tangents = torch.ones_like(image), torch.ones_like(flow)
    want = torch.func.jvp(flow_warp_reference, (image, flow), tangents)
    got = torch.func.jvp(vgkernels.flow_warp, (image, flow), tangents)
    assert want[1].any()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="expected impl='auto' or 'reference' for forward-mode AD, got impl='native'"):
        torch.func.jvp(lambda image: vgkernels.flow_warp(image, flow, impl="native"), (image,), tangents[:1])


@needs_native
def test_meta_tensors_meet_the_same_checks() -> None:
    image, flow = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    op = torch.ops.vgkernels
    with pytest.raises(ValueError, match="expected flow on image's device cpu, got meta"):
        op.flow_warp(image, flow.to("meta"), None, None, "bilinear", "border")
    with pytest.raises(ValueError, match=r"expected flow of shape \(B, 2, Ho, Wo\)"):
        op.flow_warp(image.to("meta"), torch.zeros(7, 9, 2, 2, device="meta"), None, None, "bilinear", "border")
    needs = (True, True, False, False, False)
    with pytest.raises(ValueError, match="expected grad_out on image's device cpu, got meta"):
        op.flow_warp_backward(image.to("meta"), image, flow, None, None, "bilinear", "border", *needs)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1, 2, 3, 4).to_sparse(), torch.nested.nested_tensor([torch.zeros(2, 3, 4)])]
)
def test_only_dense_tensors(tensor: Tensor) -> None:
    with pytest.raises(TypeError, match=r"flow_warp: expected image to be a dense tensor \(torch.strided\), got"):
        vgkernels.flow_warp(tensor, torch.zeros(1, 2, 3, 4))


def test_docstrings() -> None:
    import doctest
    import sys

    report = doctest.testmod(sys.modules[vgkernels.flow_warp.__module__])
    assert report.attempted >= 6
    assert report.failed == 0
