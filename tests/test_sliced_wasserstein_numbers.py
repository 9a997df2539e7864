"""sliced_wasserstein on hard numbers: float32 against float64, ties, denormals, Inf and NaN, many samples, threads.

The expected values are float64 evaluations of the same numbers and directions.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from op_suite import LOW_PRECISION, needs_native
from sliced_wasserstein_samples import VALUE_ERROR, definition, directions, expected, generator, normal
from torch import Tensor

from vgkernels import sliced_wasserstein, sliced_wasserstein_reference

BOTH = [sliced_wasserstein, sliced_wasserstein_reference]


def evaluate(function: Any, *tensors: Tensor, **options: Any) -> list[Tensor]:
    """The value of each entry, and the gradients of their sum in x, y and projections."""
    x, y, theta = (t.detach().clone().requires_grad_() for t in tensors)
    value = function(x, y, projections=theta, reduction="none", **options)
    value.sum().backward()
    return [value.detach(), x.grad, y.grad, theta.grad]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


# ---- accuracy ----

SHAPES = [  # N, M, D, L
    (64, 64, 128, 128),
    (64, 64, 12288, 33),
    (100, 75, 12288, 8),
    (512, 512, 3072, 40),
    (1000, 1000, 147, 65),
    (1024, 768, 128, 64),
    (2048, 2048, 16, 100),
    (8192, 8192, 147, 16),
    (3, 5000, 7, 20),
]


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_within_2e_6_of_float64(shape: tuple[int, int, int, int], function: Any) -> None:
    n, m, d, count = shape
    x, y, theta = normal(n, d).float(), (normal(m, d, seed=1) + 0.1).float(), directions(count, d).float()
    for p in (1.0, 2.0, 3.0):
        want = sliced_wasserstein_reference(x.double(), y.double(), projections=theta.double(), p=p)
        got = function(x, y, projections=theta, p=p)
        assert got.dtype == torch.float32
        assert abs(got.double() - want) <= VALUE_ERROR[torch.float32] * want
        rooted = function(x, y, projections=theta, p=p, root=True)
        assert abs(rooted.double() - want ** (1 / p)) <= VALUE_ERROR[torch.float32] * want ** (1 / p)


@needs_native
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("shape", [(64, 64, 128, 65), (300, 211, 33, 40), (100, 100, 3072, 17), (1000, 1000, 20, 9)])
def test_gradients_agree_with_float64(shape: tuple[int, int, int, int], p: float) -> None:
    n, m, d, count = shape
    tensors = [t.float() for t in (normal(2, n, d), normal(2, m, d, seed=1) + 0.5, directions(count, d))]
    want = evaluate(sliced_wasserstein_reference, *(t.double() for t in tensors), p=p)
    for got, exact in zip(evaluate(sliced_wasserstein, *tensors, p=p), want, strict=True):
        allowed = 2e-3 if p == 1 else 2e-4  # where two neighbours come in another order; p = 1 sees signs
        assert relative(got, exact) <= allowed
    exactly = evaluate(sliced_wasserstein, *(t.double() for t in tensors), p=p)
    torch.testing.assert_close(exactly, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    x, y, theta = normal(3, 90, 20).to(dtype), (normal(3, 70, 20, seed=1) + 1).to(dtype), directions(30, 20)
    want = sliced_wasserstein(x.float(), y.float(), projections=theta, reduction="none")
    got = sliced_wasserstein(x, y, projections=theta, reduction="none")
    assert got.dtype == dtype
    assert torch.equal(got, want.to(dtype))
    assert sliced_wasserstein(x, y, n_projections=5, generator=generator(0)).dtype == dtype


# ---- sizes ----


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_small_number_of_samples(dtype: torch.dtype, function: Any) -> None:
    for n in (*range(1, 36), 47, 48, 49, 63, 64, 65, 127, 129, 255, 257, 383):
        x, y, theta = (t.to(dtype) for t in (normal(n, 5), normal(n, 5, seed=1), normal(19, 5, seed=2)))
        s, t = ((v.double() @ theta.double().T).sort(0)[0] for v in (x, y))
        want = (s - t).square().mean()
        got = function(x, y, projections=theta)
        assert abs(got.double() - want) <= VALUE_ERROR[dtype] * want, n


@needs_native
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 31, 33, 64, 100, 129, 257, 600])
def test_gradients_of_every_kind_of_size(n: int) -> None:
    for m in sorted({n, 1, n + 1, 2 * n}):
        for d, count in ((1, 1), (3, 17), (40, 70)):
            tensors = normal(2, n, d), normal(2, m, d, seed=1), normal(count, d, seed=2)
            got, want = (evaluate(function, *tensors) for function in BOTH)
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@needs_native
@pytest.mark.parametrize(
    "sizes", [(65536, 65536), (65537, 65537), (65537, 4096), (5, 65537), (200003, 200003)], ids=str
)
def test_many_samples(sizes: tuple[int, int]) -> None:
    x, y, theta = normal(sizes[0], 2), normal(sizes[1], 2, seed=1) * 2, directions(3, 2)
    for dtype in (torch.float64, torch.float32):
        tensors = [t.to(dtype) for t in (x, y, theta)]
        got = evaluate(sliced_wasserstein, *tensors)
        want = evaluate(sliced_wasserstein_reference, *(t.double() for t in tensors))
        assert abs(got[0].double() - want[0]) <= VALUE_ERROR[dtype] * want[0]
        for a, b in zip(got[1:], want[1:], strict=True):
            assert relative(a, b) <= (1e-11 if dtype == torch.float64 else 1e-3)
    if sizes[0] < 65536 or sizes[1] < 65536:
        ones = [np.ones(size) / size for size in sizes]
        loop = [definition((x @ t).numpy(), (y @ t).numpy(), *ones, 2) for t in theta]
        value = sliced_wasserstein(x, y, projections=theta)
        assert abs(value - np.mean(loop)) <= 1e-9 * value


def test_weights_of_many_samples() -> None:
    n, m = 5000, 3001
    x, y, theta = normal(n, 3), normal(m, 3, seed=1), directions(4, 3)
    a, b = (torch.rand(size, generator=generator(size)).double() for size in (n, m))
    want = expected(x, y, theta, 2, a, b)
    for function in BOTH:
        got = function(x, y, projections=theta, x_weights=a, y_weights=b)
        assert abs(got.item() - want) <= 1e-10 * want
        narrow = function(x.float(), y.float(), projections=theta, x_weights=a, y_weights=b)
        assert abs(narrow.item() - want) <= 2 * VALUE_ERROR[torch.float32] * want


# ---- ties, and numbers at the ends of the range ----


@needs_native
@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equal_projections_keep_the_order_of_their_samples(weighted: bool, p: float) -> None:
    for n, m in ((40, 40), (40, 24), (200, 200), (5000, 5000)):
        for dtype in (torch.float32, torch.float64):  # small integers: every product and sum is exact
            x, y = (torch.randint(-2, 3, (2, k, 3), generator=generator(k + s)).to(dtype) for k, s in ((n, 0), (m, 1)))
            theta = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, -1, 2], [0, 0, 0]], dtype=dtype)
            options = {"x_weights": torch.arange(n) % 3 + 1.0} if weighted else {}
            got, want = (evaluate(function, x, y, theta, p=p, **options) for function in BOTH)
            rtol, atol = (1e-4, 1e-4 / n) if dtype == torch.float32 else (1e-12, 1e-12)
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


@needs_native
def test_zeros_of_both_signs_are_equal() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -0.0, 0.0]).view(1, 5, 1)
    y = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]).view(1, 5, 1)
    for dtype in (torch.float32, torch.float64):
        arguments = (x.to(dtype), y.to(dtype), None, None, None, 2.0, True, True, False)
        value, grad_x, grad_y, _ = torch.ops.vgkernels.sliced_wasserstein_gradients(*arguments)
        torch.testing.assert_close(value, torch.tensor([(1 + 4 + 9 + 16 + 16) / 5], dtype=dtype), rtol=1e-6, atol=0)
        pairs = torch.tensor([1.0, 2, 5, 3, 4], dtype=dtype)  # the zeros in the order of their places
        torch.testing.assert_close(grad_x.flatten(), 2 / 5 * (x.flatten().to(dtype) - pairs), rtol=1e-6, atol=0)
        torch.testing.assert_close(grad_y.sum(), -grad_x.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", BOTH)
def test_denormals(function: Any) -> None:
    for dtype, scale in ((torch.float32, 1e-40), (torch.float64, 1e-310)):
        info = torch.finfo(dtype)
        x, y = ((scale * normal(50, 1, seed=k) + k * scale).to(dtype) for k in (0, 1))
        one = torch.ones(1, 1, dtype=dtype)
        value, grad_x, _, _ = evaluate(function, x[None], y[None], one, p=1)
        want = float((x.double().sort(0)[0] - y.double().sort(0)[0]).abs().mean())
        assert value.isfinite().all()
        assert abs(value.item() - want) <= info.smallest_normal  # it may count as 0
        assert grad_x.isfinite().all()
        far = torch.where(torch.arange(50) % 2 == 0, 1.0, 0.0).to(dtype)[:, None]
        mixed = function(far, far.flip(0) + x, projections=one, p=1)
        assert mixed <= 50 * info.smallest_normal + info.eps


@pytest.mark.parametrize("function", BOTH)
def test_large_numbers(function: Any) -> None:
    x, y, theta = normal(30, 1), normal(30, 1, seed=1), torch.ones(1, 1)
    for dtype, scale in ((torch.float32, 1e37), (torch.float64, 1e307)):
        tensors = [(scale * t).to(dtype) for t in (x, y)]
        got = function(*tensors, projections=theta.to(dtype), p=1)
        want = (tensors[0].double().sort(0)[0] - tensors[1].double().sort(0)[0]).abs().mean()
        assert abs(got.double() / want - 1) <= 1e-5
        assert function(*tensors, projections=theta.to(dtype), p=2) == math.inf


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("m", [20, 31])
def test_what_is_not_finite_poisons_its_own_entry_only(m: int, side: int, bad: float, function: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        for p, root in ((1.0, False), (2.0, True), (1.5, False)):
            tensors = [t.to(dtype) for t in (normal(3, 20, 4), normal(3, m, 4, seed=1), normal(37, 4, seed=2))]
            want = evaluate(function, *tensors, p=p, root=root)
            tensors[side][1, 7, 2] = bad
            got = evaluate(function, *tensors, p=p, root=root)
            for a, b in zip(got[:3], want[:3], strict=True):
                assert torch.equal(a[[0, 2]], b[[0, 2]])
                assert a[1].isnan().all()
            assert not got[3].isfinite().any()


@pytest.mark.parametrize("function", BOTH)
def test_both_infinite_is_not_equal(function: Any) -> None:
    x = normal(5, 1).float()
    x[3] = math.inf
    assert function(x, x, projections=torch.ones(1, 1)).isnan()
    assert function(x, x, projections=torch.ones(1, 1), x_weights=torch.ones(5)).isnan()


@needs_native
def test_one_bad_direction_leaves_the_gradient_of_other_directions() -> None:
    x, y, theta = normal(2, 9, 3), normal(2, 9, 3, seed=1), normal(5, 3, seed=2)
    theta[2, 1] = math.nan
    got, want = (evaluate(function, x, y, theta) for function in BOTH)
    assert got[0].isnan().all() and got[1].isnan().all() and got[2].isnan().all()
    torch.testing.assert_close(got[3], want[3], rtol=1e-12, atol=1e-13, equal_nan=True)
    assert got[3][2].isnan().all() and got[3][[0, 1, 3, 4]].isfinite().all()


# ---- determinism ----


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case", [(1, 64, 64, 128, 128), (3, 200, 150, 33, 70), (1, 5000, 5000, 8, 3), (1, 40, 40, 3000, 65)]
)
def test_same_bits_for_any_number_of_threads(case: tuple[int, ...], dtype: torch.dtype, threads: None) -> None:
    batch, n, m, d, count = case
    tensors = [t.to(dtype) for t in (normal(batch, n, d), normal(batch, m, d, seed=1), normal(count, d, seed=2))]
    weights = torch.rand(n, generator=generator(0)).double()
    for options in ({}, {"p": 1.0, "root": True}, {"x_weights": weights}):
        found = []
        for number in (1, 2, 3, 7, 1):
            torch.set_num_threads(number)
            plain = sliced_wasserstein(tensors[0], tensors[1], projections=tensors[2], reduction="none", **options)
            found.append([plain, *evaluate(sliced_wasserstein, *tensors, **options)])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        torch.testing.assert_close(found[0][0], found[0][1], rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


@needs_native
def test_an_entry_does_not_depend_on_its_batch() -> None:
    x, y, theta = normal(4, 33, 20).float(), normal(4, 33, 20, seed=1).float(), directions(50, 20).float()
    whole = evaluate(sliced_wasserstein, x, y, theta)
    for b in range(4):
        alone = evaluate(sliced_wasserstein, x[b : b + 1], y[b : b + 1], theta)
        assert all(torch.equal(a[b : b + 1], c) for a, c in zip(whole[:3], alone[:3], strict=True))


# ---- weights that are none, where nobody may look at them ----


@pytest.mark.parametrize("weights", [torch.zeros(5), torch.tensor([1.0, 2, -1, 1, 1])])
def test_unseen_weights_poison_their_entry(weights: Tensor) -> None:
    torch._dynamo.reset()
    x, y, theta = normal(1, 5, 3), normal(1, 7, 3, seed=1), directions(6, 3)
    compiled = torch.compile(lambda a, w: sliced_wasserstein(a, y, projections=theta, x_weights=w), backend="eager")
    assert compiled(x, weights).isnan()
    assert torch.vmap(lambda a: sliced_wasserstein(a, y[0], projections=theta, x_weights=weights))(x).isnan()


def test_weights_of_any_scale() -> None:
    x, y, theta = normal(50, 3), normal(40, 3, seed=1), directions(6, 3)
    weights = normal(50, seed=2).abs()
    want = sliced_wasserstein(x, y, projections=theta, x_weights=weights)
    for scale in (2.0**-1000, 2.0**1020):
        got = sliced_wasserstein(x, y, projections=theta, x_weights=weights * scale)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("function", BOTH)
def test_a_sample_without_weight_may_be_at_any_distance(function: Any) -> None:
    x, y, weights = torch.tensor([[-1e30], [0.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0])
    assert function(x, y, projections=torch.ones(1, 1), p=50.0, x_weights=weights) == 0.5
