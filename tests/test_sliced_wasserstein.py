"""sliced_wasserstein: the suite, POT and the definition, the laws of a distance, derivatives of both orders.

Hard numbers and sizes are in test_sliced_wasserstein_numbers.py; random directions, the maximum over directions and the
patch metric in test_sliced_wasserstein_directions.py.
"""

import doctest
import itertools
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from op_suite import Sample, needs_native
from sliced_wasserstein_samples import SAMPLES, SlicedWassersteinSuite, directions, expected, generator, normal
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vgkernels
from vgkernels import _native, sliced_wasserstein, sliced_wasserstein_reference

law = settings(max_examples=40)
BOTH = [sliced_wasserstein, sliced_wasserstein_reference]
WEIGHTS = ["none", "x", "both"]


class TestSlicedWasserstein(SlicedWassersteinSuite):
    # Without the kernel the reference runs, whose backward inside of autocast is a 16-bit one.
    @needs_native
    def test_autocast(self, sample: Sample, device: str) -> None:
        if self.has_kernel(self.cast(sample, torch.float32, device)):
            super().test_autocast(sample, device)

    # The gradients come with the value, so one call runs one of the two ops.
    @needs_native
    def test_native_op_is_what_runs(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        if not self.has_kernel(case):
            return
        (plain, _), (gradients, _) = self.native_calls(case)
        for asked, op in (((), plain), (None, gradients)):
            for impl in ("auto", "native"):
                with torch.profiler.profile() as profile:
                    self.run(lambda s, impl=impl: self.call(s, impl=impl), case, asked)
                names = {event.name for event in profile.events()} & {plain.name(), gradients.name()}
                assert names == {op.name()}


# ---- other libraries, and the definition ----


def weights_of(which: str, n: int, m: int) -> dict[str, Tensor]:
    a, b = (torch.rand(size, generator=generator(size), dtype=torch.float64) for size in (n, m))
    return {"none": {}, "x": {"x_weights": a}, "both": {"x_weights": a, "y_weights": b}}[which]


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_agrees_with_pot(p: int, weights: str, function: Any) -> None:
    ot = pytest.importorskip("ot", reason="POT, the oracle, is not installed")
    for n, m in ((40, 40), (40, 57), (33, 1)):
        x, y, theta = normal(n, 6), normal(m, 6, seed=1) + 0.3, directions(20, 6)
        given_weights = weights_of(weights, n, m)
        a, b = (None if w is None else w / w.sum() for w in (given_weights.get(k) for k in ("x_weights", "y_weights")))
        want = ot.sliced_wasserstein_distance(x, y, a, b, projections=theta.T, p=p)
        got = function(x, y, projections=theta, p=p, root=True, **given_weights)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
        narrow = function(x.float(), y.float(), projections=theta, p=p, root=True, **given_weights)
        torch.testing.assert_close(narrow.double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
def test_agrees_with_the_definition(p: float, weights: str, function: Any) -> None:
    for n, m in ((1, 1), (5, 5), (17, 17), (12, 18), (7, 30), (64, 3)):
        x, y, theta = normal(n, 3), normal(m, 3, seed=1), normal(7, 3, seed=2)
        given_weights = weights_of(weights, n, m)
        got = function(x, y, projections=theta, p=p, **given_weights)
        want = expected(x, y, theta, p, given_weights.get("x_weights"), given_weights.get("y_weights"))
        assert abs(got.item() - want) <= 1e-12 * want


def test_weights_of_each_entry_and_any_dtype() -> None:
    x, y, theta, w = normal(3, 5, 4), normal(3, 6, 4, seed=1), directions(8, 4), torch.rand(3, 5) + 0.1
    got = sliced_wasserstein(x, y, projections=theta, x_weights=w, reduction="none")
    want = [expected(x[b], y[b], theta, 2, w[b]) for b in range(3)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)
    half = sliced_wasserstein(x, y, projections=theta, x_weights=w.bfloat16())
    assert torch.equal(half, sliced_wasserstein(x, y, projections=theta, x_weights=w.bfloat16().double()))
    one = sliced_wasserstein(x, y, projections=theta, x_weights=w[0], reduction="none")
    assert torch.equal(one, sliced_wasserstein(x, y, projections=theta, x_weights=w[:1].repeat(3, 1), reduction="none"))


def test_a_sample_of_weight_0_is_none() -> None:
    x, y, theta = normal(6, 4), normal(5, 4, seed=1), directions(8, 4)
    for drop in ([0], [5], [1, 2, 4]):
        keep = [i for i in range(6) if i not in drop]
        w = torch.ones(6)
        w[drop] = 0
        got = sliced_wasserstein(x, y, projections=theta, x_weights=w)
        torch.testing.assert_close(got, sliced_wasserstein(x[keep], y, projections=theta), rtol=1e-12, atol=0)


def test_reductions_and_root() -> None:
    x, y, theta = normal(2, 3, 5, 4), normal(2, 3, 6, 4, seed=1), directions(8, 4)
    each = sliced_wasserstein(x, y, projections=theta, reduction="none")
    assert each.shape == (2, 3)
    pairs = zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)
    single = torch.stack([sliced_wasserstein(*pair, projections=theta) for pair in pairs])
    torch.testing.assert_close(each.flatten(), single, rtol=1e-13, atol=0)
    for root in (False, True):
        values = each.sqrt() if root else each
        for reduction, want in (("mean", values.mean()), ("sum", values.sum()), ("none", values)):
            got = sliced_wasserstein(x, y, projections=theta, root=root, reduction=reduction)
            torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


# ---- laws ----

sets = st.builds(
    lambda n, scale, seed: scale * normal(n, 3, seed=seed),
    st.integers(1, 20),
    st.sampled_from((0.1, 1.0, 30.0)),
    st.integers(0, 999),
)
powers = st.sampled_from((1.0, 1.7, 2.0, 3.0))
THETA = directions(9, 3)


def distance(x: Tensor, y: Tensor, p: float) -> Tensor:
    return sliced_wasserstein(x, y, projections=THETA, p=p, root=True)


def close(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    return bool((a - b).abs() <= 1e-12 * (1 + scale.abs().max()))


@law
@given(sets, sets, powers, st.integers(0, 99))
def test_order_of_samples_does_not_matter(x: Tensor, y: Tensor, p: float, seed: int) -> None:
    order = torch.randperm(len(x), generator=generator(seed))
    assert close(distance(x[order], y, p), distance(x, y, p), x)


@law
@given(sets, sets, powers)
def test_symmetric_and_shifted_and_scaled(x: Tensor, y: Tensor, p: float) -> None:
    want, c, scale = (
        distance(x, y, p),
        torch.tensor([1.0, -2.0, 0.5]).double(),
        torch.stack([x.abs().max(), y.abs().max()]),
    )
    assert close(distance(y, x, p), want, scale)
    assert close(distance(x + c, y + c, p), want, scale)
    assert close(distance(-4 * x, -4 * y, p), 4 * want, 4 * scale)
    moved = (THETA @ c).abs().pow(p).mean().pow(1 / p)
    assert close(distance(x, x + c, p), moved, scale)


@law
@given(sets, sets, sets, powers)
def test_triangle_inequality(x: Tensor, y: Tensor, z: Tensor, p: float) -> None:
    direct, detour = distance(x, z, p), distance(x, y, p) + distance(y, z, p)
    assert direct <= detour * (1 + 1e-12)


@law
@given(sets, sets, st.integers(1, 4), st.integers(1, 4), powers)
def test_repeated_samples_are_weights(x: Tensor, y: Tensor, times: int, more: int, p: float) -> None:
    want = distance(x, y, p)
    assert close(distance(x.repeat(times, 1), y.repeat_interleave(more, 0), p), want, x)
    counts = torch.arange(len(x)) % 3 + 1
    got = sliced_wasserstein(x, y, projections=THETA, p=p, root=True, x_weights=counts.double())
    assert close(got, distance(x.repeat_interleave(counts, 0), y, p), x)


@law
@given(sets, sets)
def test_grows_with_p(x: Tensor, y: Tensor) -> None:
    values = [distance(x, y, p) for p in (1.0, 1.5, 2.0, 4.0)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("p", [1, 1.25, 2, 3])
def test_nothing_between_equal_sets(p: float, function: Any) -> None:
    native = function is sliced_wasserstein and _native.native_status().cpu_loaded
    for n, d, count in ((1, 1, 1), (5, 3, 4), (64, 128, 16), (100, 37, 33), (1000, 20, 5)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            x = normal(2, n, d).to(dtype)
            order = torch.randperm(n, generator=generator(n))
            theta = directions(count, d)
            for y, options in ((x, {}), (x[:, order], {}), (x, {"x_weights": torch.arange(n) + 1.0})):
                if y is not x and not native:
                    continue  # the reference's products round a row by its place
                options = {**options, "y_weights": options["x_weights"]} if options else {}
                for root in (False, True):
                    leaves = [t.clone().requires_grad_() for t in (x, y, theta)]
                    value = function(*leaves[:2], projections=leaves[2], p=p, root=root, **options)
                    value.backward()
                    assert value == 0
                    assert all(not leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("p", [1.0, 1.25, 1.5, 2.5, 3.0])
def test_second_derivatives_between_equal_sets_are_finite(p: float, function: Any) -> None:
    x, theta = normal(2, 6, 3), directions(4, 3)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf, x, projections=theta, p=p), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * normal(2, 6, 3, seed=3)).sum(), leaf)
    assert not first.any()
    assert not second.any()


# ---- derivatives ----


def derivatives(function: Any, tensors: tuple[Tensor, ...], order: int, **options: Any) -> list[Tensor]:
    """Of a nonlinear function of the value, in all tensors, down to the order-th."""
    tensors = tuple(t.detach().requires_grad_() for t in tensors)
    value = function(*tensors[:2], projections=tensors[2], **options).square().sum()
    found = []
    for k in range(order):
        gradients = torch.autograd.grad(value, tensors, create_graph=True)
        found += [g.detach() for g in gradients]
        value = sum((g * normal(*g.shape, seed=k)).sum() for g in gradients)
    return found


@needs_native
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.options.get("p", 2) != 1], ids=lambda s: s.name)
def test_three_orders_of_derivatives_agree_with_the_reference(sample: Sample) -> None:
    tensors = tuple(sample.tensors.values())
    got, want = (derivatives(function, tensors, 3, **sample.options) for function in BOTH)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@needs_native
def test_what_is_kept_for_the_backward_has_no_size_of_samples_times_directions() -> None:
    x, y, theta = normal(2, 50, 3), normal(2, 60, 3, seed=1), directions(400, 3)
    leaves = [t.requires_grad_() for t in (x, y, theta)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        sliced_wasserstein(*leaves[:2], projections=theta)
    assert max(kept) == 2 * 400 * 3
    assert sum(kept) <= 2 * (x.numel() + y.numel()) + (1 + 2) * theta.numel() + 10


@needs_native
def test_non_reentrant_checkpoint_and_a_second_backward() -> None:
    x, y, theta = normal(2, 6, 3), normal(2, 5, 3, seed=1), directions(4, 3)

    def gradient(call: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        call(leaf).backward()
        return leaf.grad

    want = gradient(lambda v: sliced_wasserstein(v, y, projections=theta))
    got = gradient(lambda v: checkpoint(lambda a: sliced_wasserstein(a, y, projections=theta), v, use_reentrant=False))
    assert torch.equal(got, want)
    leaf = x.clone().requires_grad_()
    value = sliced_wasserstein(leaf, y, projections=theta)
    for _ in range(2):
        value.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 2 * want, rtol=1e-15, atol=0)
    first = torch.func.grad(lambda v: sliced_wasserstein(v, y, projections=theta))
    assert torch.equal(first(x), want)
    stacked = torch.stack([x, x.flip(0), 2 * x])
    torch.testing.assert_close(torch.vmap(first)(stacked), torch.stack([first(v) for v in stacked]), rtol=1e-13, atol=0)


@needs_native
def test_hessian_and_vmap_of_it() -> None:
    x, y, theta = normal(4, 2), normal(5, 2, seed=1), directions(3, 2)

    def hessian(function: Any) -> Any:
        return torch.func.jacrev(torch.func.jacrev(lambda v: function(v, y, projections=theta, p=3.0)))

    torch.testing.assert_close(hessian(BOTH[0])(x), hessian(BOTH[1])(x), rtol=0, atol=1e-12)
    stacked = torch.stack([x, 2 * x])
    want = torch.stack([hessian(BOTH[1])(v) for v in stacked])
    torch.testing.assert_close(torch.vmap(hessian(BOTH[0]))(stacked), want, rtol=0, atol=1e-12)


def test_gradient_of_weights() -> None:
    x, y, theta = normal(5, 3), normal(4, 3, seed=1), directions(3, 3)
    a, b = (torch.rand(n, generator=generator(n), dtype=torch.float64) + 0.5 for n in (5, 4))

    def value(a: Tensor, b: Tensor) -> Tensor:
        return sliced_wasserstein(x, y, projections=theta, x_weights=a, y_weights=b)

    leaves = [w.clone().requires_grad_() for w in (a, b)]
    assert torch.autograd.gradcheck(value, leaves)
    want = torch.autograd.grad(value(*leaves), leaves)
    assert all(w.any() for w in want)
    got = torch.func.grad(value, argnums=(0, 1))(a, b)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    for transform in (  # what is hidden from requires_grad
        lambda v: torch.vmap(torch.func.grad(value))(v[None], b[None])[0],
        lambda v: torch.func.grad(lambda w: torch.vmap(value)(w[None], b[None]).sum())(v),
    ):
        torch.testing.assert_close(transform(a), want[0], rtol=1e-12, atol=1e-14)


def test_forward_mode_takes_the_reference() -> None:
    x, y, theta = normal(2, 6, 3), normal(2, 5, 3, seed=1), directions(4, 3)
    got, want = (
        torch.func.jvp(lambda v, f=f: f(v, y, projections=theta), (x,), (normal(2, 6, 3, seed=9),)) for f in BOTH
    )
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="expected impl='auto' or 'reference' for forward-mode AD, got impl='native'"):
        torch.func.jvp(lambda v: sliced_wasserstein(v, y, projections=theta, impl="native"), (x,), (x,))


@needs_native
def test_gradient_of_projections_is_refused_without_any() -> None:
    x = normal(1, 4, 3)
    with pytest.raises((RuntimeError, ValueError), match="expected projections"):
        torch.ops.vgkernels.sliced_wasserstein_gradients(x, x, None, None, None, 2.0, True, True, True)


@needs_native
def test_two_derivatives_under_autocast_stay_float32() -> None:
    tensors = normal(2, 6, 3).float(), normal(2, 5, 3, seed=1).float(), directions(4, 3).float()
    want = derivatives(sliced_wasserstein, tensors, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = derivatives(sliced_wasserstein, tensors, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_docstrings() -> None:
    functions = [
        sliced_wasserstein,
        vgkernels.random_projections,
        vgkernels.max_sliced_wasserstein,
        vgkernels.sliced_wasserstein_pyramid,
        vgkernels.sort_transport,
        vgkernels.stiefel_retraction_,
    ]
    for function in functions:
        report = doctest.testmod(sys.modules[function.__module__])
        assert report.attempted >= 2
        assert report.failed == 0
