"""sort_transport: the optimal map in one dimension, against a loop, its gradients likewise, and its bad input."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from op_suite import LOW_PRECISION, ulp
from torch import Tensor

from vgkernels import sort_transport


def normal(n: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantile(ordered: list[float], share: float) -> tuple[float, list[tuple[int, float]]]:
    """The order statistics, (j + 1/2) / M each, at `share`; and the weight of each that has one."""
    place = min(max(share * len(ordered) - 0.5, 0.0), len(ordered) - 1.0)
    below = min(int(place), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    weights = [(below, 1 - (place - below)), (above, place - below)]
    return sum(w * ordered[j] for j, w in weights), weights


def by_loop(source: Tensor, target: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The map, and its gradients: of the source by the slope, of the target by the weights of its order statistics."""
    moved, by_source, by_target = (torch.zeros(t.shape, dtype=torch.float64) for t in (source, source, target))
    n, m = len(source), len(target)
    for column in range(source.shape[1]):
        s, t = source[:, column].tolist(), target[:, column].tolist()
        s_order, t_order = sorted(range(n), key=s.__getitem__), sorted(range(m), key=t.__getitem__)
        images = [quantile([t[j] for j in t_order], (k + 0.5) / n) for k in range(n)]
        for k, i in enumerate(s_order):
            low, high = max(k - 1, 0), min(k + 1, n - 1)
            slope = (images[high][0] - images[low][0]) / (s[s_order[high]] - s[s_order[low]] + 1e-6)
            moved[i, column] = images[k][0]
            by_source[i, column] = min(max(slope, 0.0), 5.0) * grad_out[i, column]
            for j, weight in images[k][1]:
                by_target[t_order[j], column] += weight * grad_out[i, column]
    return moved, by_source, by_target


def run(source: Tensor, target: Tensor, grad_out: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    s, t = (v.clone().requires_grad_() for v in (source, target))
    out = sort_transport(s, t, **options)
    out.backward(grad_out)
    return out.detach(), torch.zeros_like(s) if s.grad is None else s.grad, t.grad


SIZES = [(1, 1), (1, 7), (6, 1), (2, 2), (9, 9), (64, 64), (10, 15), (15, 10), (8, 3), (33, 100)]


@pytest.mark.without_kernels
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_the_loop(sizes: tuple[int, int], device: str) -> None:
    n, m = sizes
    source, target, grad_out = 2 * normal(n, 4), normal(m, 4, seed=1) + 3, normal(n, 4, seed=2)
    source[:, 3] = (2 * source[:, 3]).round()  # ties
    target[:, 2:] = (2 * target[:, 2:]).round()
    want = by_loop(source, target, grad_out)
    got = run(*(t.to(device) for t in (source, target, grad_out)))
    torch.testing.assert_close([t.cpu() for t in got], list(want), rtol=1e-10, atol=1e-12)
    narrow = run(*(t.to(device).float() for t in (source, target, grad_out)))
    torch.testing.assert_close(
        [t.cpu().double() for t in (narrow[0], narrow[2])], [want[0], want[2]], rtol=0, atol=5e-5
    )


def test_the_slope_is_clamped_at_both_ends_of_its_range() -> None:
    source = torch.tensor([[0.0], [1e-3], [2e-3], [1.0], [1.0], [3.0]])
    target = torch.tensor([[0.0], [1.0], [2.0], [2.0], [2.0], [3.0]])
    _, slopes, _ = run(source, target, torch.ones(6, 1))
    want = torch.tensor([5.0, 5.0, 1 / 0.999, 0.0, 0.5, 0.5])  # at the ends one-sided; ties divide by 1e-6 or more
    torch.testing.assert_close(slopes.flatten(), want, rtol=1e-3, atol=0)


def test_gradient_none() -> None:
    source, target, grad_out = normal(12, 3), normal(17, 3, seed=1), normal(12, 3, seed=2)
    want = by_loop(source, target, grad_out)
    moved, by_source, by_target = run(source, target, grad_out, source_gradient="none")
    assert not by_source.any()
    torch.testing.assert_close((moved, by_target), (want[0], want[2]), rtol=1e-12, atol=1e-13)
    assert sort_transport(source.requires_grad_(), target, source_gradient="none").requires_grad  # of 0


def test_infinite_targets() -> None:
    moved = sort_transport(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [math.inf]]))
    assert moved.flatten().tolist() == [0, math.inf, math.inf]


def test_forward_mode() -> None:
    source, target, tangent = normal(12, 3), normal(17, 3, seed=1), normal(12, 3, seed=2)
    got = torch.func.jvp(lambda s: sort_transport(s, target), (source,), (tangent,))[1]
    _, slopes, _ = run(source, target, torch.ones(12, 3))
    torch.testing.assert_close(got, slopes * tangent, rtol=1e-12, atol=0)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_laws_of_the_map(n: int, m: int, seed: int) -> None:
    source, target = normal(n, 2, seed), normal(m, 2, seed + 1)
    moved = sort_transport(source, target)
    assert torch.equal(sort_transport(3 * source + 1, target), moved)  # only the order counts
    torch.testing.assert_close(sort_transport(source, 2 * target - 5), 2 * moved - 5, rtol=0, atol=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(sort_transport(source[order], target), moved[order])
    rising = moved.gather(0, source.argsort(0)).diff(dim=0)
    assert (rising >= -1e-15).all()
    assert (moved.amax(0) <= target.amax(0) + 1e-12).all() and (moved.amin(0) >= target.amin(0) - 1e-12).all()
    if n == m:
        assert torch.equal(moved.sort(0)[0], target.sort(0)[0])
        assert torch.equal(sort_transport(source, source), source)


def test_every_projection_of_a_moved_cloud_is_the_targets() -> None:
    """The property of the specification: x ~ N(3, 2^2 I), after one block with any orthogonal matrix."""
    x, z = 3 + 2 * normal(1024, 16), normal(1024, 16, seed=1)
    basis = torch.linalg.qr(normal(16, 16, seed=2))[0]
    out = sort_transport(x @ basis, z @ basis) @ basis.T
    torch.testing.assert_close((out @ basis).sort(0)[0], (z @ basis).sort(0)[0], rtol=0, atol=1e-12)


def test_derivatives_of_the_target_of_two_orders_and_vmap() -> None:
    source, target = normal(6, 2), normal(9, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: sort_transport(source, t), target)
    assert torch.autograd.gradgradcheck(lambda t: sort_transport(source, t).square(), target)
    stacked = torch.stack([source, -source, 2 * source])
    got = torch.vmap(lambda s: sort_transport(s, target))(stacked)
    assert torch.equal(got, torch.stack([sort_transport(s, target) for s in stacked]))
    slope = torch.func.grad(lambda s: sort_transport(s, target).sum())
    each = torch.stack([slope(s) for s in stacked])
    torch.testing.assert_close(torch.vmap(slope)(stacked), each, rtol=1e-13, atol=0)


def test_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, t: sort_transport(s, t).sin(), fullgraph=True, backend="aot_eager", dynamic=True)
    for n, m in ((8, 8), (9, 12), (13, 6)):
        found = []
        for function in (compiled, lambda s, t: sort_transport(s, t).sin()):
            s, t = normal(n, 3).requires_grad_(), normal(m, 3, seed=1).requires_grad_()
            out = function(s, t)
            out.sum().backward()
            found.append((out.detach(), s.grad, t.grad))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    source, target = normal(9, 3).to(dtype), normal(14, 3, seed=1).to(dtype)
    got, want = sort_transport(source, target), sort_transport(source.float(), target.float())
    assert got.dtype == dtype
    assert ((got.float() - want).abs() <= ulp(want, dtype)).all()
    assert torch.equal(sort_transport(source, target[:9]).sort(0)[0], target[:9].sort(0)[0])


def test_infinite_and_nan_sources_are_the_largest() -> None:
    source = torch.tensor([[math.inf], [0.0], [-math.inf], [math.nan]], requires_grad=True)
    moved = sort_transport(source, torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert moved.flatten().tolist() == [3, 2, 1, 4]
    moved.sum().backward()
    assert source.grad[2, 0] == 0


BAD = [
    ({"source": 3}, TypeError, "expected source to be a tensor, got int"),
    ({"source": torch.ones(4, 2).int()}, TypeError, "expected source of dtype float64 or .*, got int32"),
    ({"target": torch.ones(4, 2).double()}, TypeError, "expected target of source's dtype float32, got float64"),
    ({"target": torch.ones(4, 2, device="meta")}, ValueError, "expected target on source's device cpu, got meta"),
    ({"source": torch.ones(4)}, ValueError, r"expected source of shape \(N, L\), got \(4,\)"),
    ({"target": torch.ones(4, 3)}, ValueError, r"expected target of shape \(M, L\) = \(M, 2\), got \(4, 3\)"),
    ({"source": torch.ones(0, 2)}, ValueError, r"expected source with N > 0, got shape \(0, 2\)"),
    ({"target": torch.ones(0, 2)}, ValueError, r"expected target with M > 0, got shape \(0, 2\)"),
    ({"source": torch.ones(4, 0), "target": torch.ones(4, 0)}, ValueError, "expected source with L > 0"),
    ({"source_gradient": "true"}, ValueError, "expected source_gradient to be one of 'slope', 'none', got 'true'"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_bad_input(change: dict[str, Any], error: Any, text: str) -> None:
    arguments = {"source": torch.ones(4, 2), "target": torch.ones(5, 2)} | change
    with pytest.raises(error, match=f"^sort_transport: {text}"):
        sort_transport(arguments.pop("source"), arguments.pop("target"), **arguments)
