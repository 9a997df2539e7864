"""Random directions and what takes them: random_projections, the Hadamard path, the maximum over directions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from op_suite import needs_native
from sliced_wasserstein_samples import directions, generator, normal
from torch import Tensor

from vgkernels import (
    max_sliced_wasserstein,
    random_projections,
    sliced_wasserstein,
    sliced_wasserstein_entries,
    sliced_wasserstein_max,
    sliced_wasserstein_reference,
)
from vgkernels.sliced_wasserstein_projections import hadamard_signs, project_hadamard

KINDS = ["gaussian", "orthogonal", "hadamard"]


def draw(count: int, dim: int, kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_projections(count, dim, kind=kind, generator=generator(seed), dtype=dtype)


# ---- random_projections ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 16, 27, 147])
def test_rows_are_units_from_the_generator_alone(dim: int, kind: str) -> None:
    for count in (1, 2, 5, 16, 100):
        for dtype, allowed in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.02)):
            rows = draw(count, dim, kind, dtype=dtype)
            assert rows.shape == (count, dim)
            assert rows.dtype == dtype
            assert ((rows.double().norm(dim=1) - 1).abs() <= allowed).all()
            assert torch.equal(rows, draw(count, dim, kind, dtype=dtype))
            if dim > 2:
                assert not torch.equal(rows, draw(count, dim, kind, seed=1, dtype=dtype))
    torch.manual_seed(0)
    assert not torch.equal(random_projections(4, 30, kind=kind), random_projections(4, 30, kind=kind))
    assert random_projections(4, 30, kind=kind).dtype == torch.float32
    assert random_projections(4, 30, kind=kind, device="meta").is_meta


def test_orthogonal_blocks() -> None:
    for count, dim in ((5, 8), (8, 8), (20, 8), (3, 1)):
        rows = draw(count, dim, "orthogonal")
        for start in range(0, count, dim):
            block = rows[start : start + dim]
            torch.testing.assert_close(block @ block.T, torch.eye(len(block)).double(), rtol=0, atol=1e-14)


def test_orthogonal_blocks_favour_no_sign() -> None:
    first = torch.stack([draw(2, 2, "orthogonal", seed=seed) for seed in range(400)])
    turns = torch.linalg.det(first)
    assert 0.4 <= (turns > 0).double().mean() <= 0.6  # LAPACK's Q of a 2 x 2 matrix never has the determinant 1
    assert (first.mean(0).abs() <= 0.15).all()


def test_hadamard_is_its_formula() -> None:
    for count, dim in ((1, 1), (3, 1), (5, 4), (8, 8), (12, 8), (7, 27), (16, 16), (40, 24), (512, 147)):
        rows = draw(count, dim, "hadamard")
        size = 1
        while 2 * size <= dim and size < count:
            size *= 2
        coordinate = np.arange(dim)
        for block in range(0, count, size):
            signs = rows[block] * math.sqrt(dim)  # row 0 of H_K is 1
            torch.testing.assert_close(signs.abs(), torch.ones(dim).double(), rtol=0, atol=1e-14)
            for k in range(block, min(block + size, count)):
                odd = np.array([bin((k - block) & (j % size)).count("1") % 2 for j in coordinate])
                torch.testing.assert_close(rows[k], rows[block] * torch.from_numpy(1.0 - 2 * odd), rtol=0, atol=0)
            if dim % size == 0:
                some = rows[block : block + size]
                torch.testing.assert_close(some @ some.T, torch.eye(len(some)).double(), rtol=0, atol=1e-14)


BAD = [
    ((0, 3), {}, ValueError, "expected n_projections > 0, got 0"),
    ((3, 0), {}, ValueError, "expected dim > 0, got 0"),
    ((2.0, 3), {}, TypeError, "expected n_projections to be an int, got float"),
    ((2, True), {}, TypeError, "expected dim to be an int, got bool"),
    (
        (2, 3),
        {"kind": "haar"},
        ValueError,
        "expected kind to be one of 'gaussian', 'orthogonal', 'hadamard', got 'haar'",
    ),
    ((2, 3), {"dtype": torch.int32}, TypeError, "expected dtype to be float64, float32, float16 or bfloat16, got"),
    ((2, 3), {"generator": 0}, TypeError, "expected generator to be a torch.Generator, got int"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "text"), BAD)
def test_bad_projections(arguments: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^random_projections: {text}"):
        random_projections(*arguments, **options)


# ---- a distance by directions of its own ----


@pytest.mark.parametrize("function", [sliced_wasserstein, sliced_wasserstein_reference])
@pytest.mark.parametrize("kind", KINDS)
def test_own_directions_are_random_projections(kind: str, function: Any, device: str) -> None:
    for d, count in ((1, 3), (8, 8), (27, 5), (147, 300), (1000, 64)):
        for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
            tensors = [t.to(device, dtype).requires_grad_() for t in (normal(2, 9, d), normal(2, 7, d, seed=1) + 1)]
            got = function(*tensors, n_projections=count, kind=kind, generator=generator(5), p=1.5)
            theta = draw(count, d, kind, 5, dtype).to(device)
            want = function(*tensors, projections=theta, p=1.5)
            torch.testing.assert_close(got, want, rtol=allowed, atol=0)
            pairs = zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, tensors), strict=True)
            for a, b in pairs:
                assert (a - b).norm() <= 10 * allowed * b.norm()


def test_hadamard_gradients_of_two_orders() -> None:
    for d, count in ((4, 4), (6, 3), (5, 9)):
        tensors = [t.requires_grad_() for t in (normal(2, 4, d), normal(2, 5, d, seed=1))]

        def value(x: Tensor, y: Tensor, count: int = count) -> Tensor:
            return sliced_wasserstein(x, y, n_projections=count, kind="hadamard", generator=generator(2), p=3)

        assert torch.autograd.gradcheck(value, tensors)
        assert torch.autograd.gradgradcheck(value, tensors)
        x = tensors[0].detach()
        stacked = torch.stack([x, 2 * x])
        theta = draw(count, d, "hadamard", 2)
        signs = hadamard_signs(count, d, generator=generator(2), dtype=torch.float64, device="cpu")

        def projected(v: Tensor, count: int = count, signs: Tensor = signs) -> Tensor:
            return project_hadamard(v, signs, count)

        torch.testing.assert_close(projected(x), x @ theta.T, rtol=0, atol=1e-13)
        torch.testing.assert_close(torch.vmap(projected)(stacked), stacked @ theta.T, rtol=0, atol=1e-13)
        pull = torch.func.vjp(projected, x)[1]
        one = normal(2, 4, count, seed=4)
        torch.testing.assert_close(pull(one)[0], one @ theta, rtol=0, atol=1e-13)


def test_compile_with_random_directions() -> None:
    torch._dynamo.reset()
    x, y = normal(2, 9, 6), normal(2, 9, 6, seed=1)
    for kind in KINDS:
        compiled = torch.compile(
            lambda a, b, kind=kind: sliced_wasserstein(a, b, kind=kind, n_projections=400),
            fullgraph=True,
            backend="eager",
        )
        want = sliced_wasserstein(x, y, kind="orthogonal", n_projections=20000)
        assert abs(compiled(x, y) / want - 1) <= 0.2


def test_compile_with_another_number_of_coordinates() -> None:
    """Sizes become symbols at the second one, and some overloads of torch.randn take none."""
    torch._dynamo.reset()
    for kind in ("gaussian", "orthogonal"):
        compiled = torch.compile(lambda a, b, kind=kind: sliced_wasserstein(a, b, kind=kind), backend="eager")
        for dim in (6, 7, 9):
            compiled(normal(8, dim), normal(9, dim, seed=1))
    highest = torch.compile(lambda a, b: max_sliced_wasserstein(a, b, steps=2), backend="eager")
    for batch in (2, 3, 5):
        highest(normal(batch, 8, 4), normal(batch, 9, 4, seed=1))


def test_hadamard_in_forward_mode() -> None:
    x, tangent, y = normal(9, 12), normal(9, 12, seed=1), normal(9, 12, seed=2)

    def value(samples: Tensor) -> Tensor:
        return sliced_wasserstein(samples, y, kind="hadamard", n_projections=20, generator=generator(3))

    got = torch.func.jvp(value, (x,), (tangent,))[1]
    torch.testing.assert_close(got, (torch.func.grad(value)(x) * tangent).sum(), rtol=1e-12, atol=0)


def test_orthogonal_directions_need_fewer() -> None:
    x, y = normal(200, 16), normal(200, 16, seed=1) * torch.linspace(0.5, 2, 16)
    want = sliced_wasserstein(x, y, projections=directions(20000, 16, seed=77))
    error = {}
    for kind in KINDS:
        values = [sliced_wasserstein(x, y, projections=draw(16, 16, kind, seed)) for seed in range(60)]
        error[kind] = (torch.stack(values) - want).square().mean().sqrt()
    assert error["orthogonal"] <= 0.6 * error["gaussian"]
    assert error["hadamard"] <= 0.6 * error["gaussian"]


# ---- the maximum over directions ----


def highest(x: Tensor, y: Tensor, p: float, count: int = 20000) -> Tensor:
    """In the plane, by trying angles."""
    angles = torch.linspace(0, math.pi, count, dtype=torch.float64)
    theta = torch.stack([angles.cos(), angles.sin()])
    return ((x @ theta).sort(0)[0] - (y @ theta).sort(0)[0]).abs().pow(p).mean(0).max()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_max_finds_the_best_direction_of_the_plane(p: float) -> None:
    x = normal(5, 80, 2)
    y = normal(5, 80, 2, seed=1) * torch.tensor([1.0, 3.0]).double() + 0.3
    want = torch.stack([highest(a, b, p) for a, b in zip(x, y, strict=True)])
    found = [max_sliced_wasserstein(a, b, p=p, generator=generator(1)) for a, b in zip(x, y, strict=True)]
    assert (torch.stack(found) <= want * (1 + 1e-6)).all()
    assert (torch.stack(found) >= want * 0.999).all()
    together = max_sliced_wasserstein(x, y, p=p, generator=generator(1))
    torch.testing.assert_close(together, want.mean(), rtol=1e-3, atol=0)


def test_max_is_above_the_mean_and_differentiable() -> None:
    x, y = normal(100, 30), normal(90, 30, seed=1)
    y[:, 3] += 2
    value = max_sliced_wasserstein(x, y, generator=generator(0))
    assert value > 3 * sliced_wasserstein(x, y, generator=generator(0))
    assert value >= 4 - 1
    more = max_sliced_wasserstein(x, y, steps=100, generator=generator(0))
    assert more >= value
    assert max_sliced_wasserstein(x, y, steps=1, generator=generator(0)) < value
    a, b = normal(80, 2), normal(80, 2, seed=1) * torch.tensor([1.0, 3.0]).double()
    gradients = []
    for function in (lambda v: max_sliced_wasserstein(v, b, generator=generator(0)), lambda v: highest(v, b, 2)):
        leaf = a.clone().requires_grad_()
        gradients += torch.autograd.grad(function(leaf), leaf)
    assert (gradients[0] - gradients[1]).norm() <= 1e-2 * gradients[1].norm()


def test_max_of_equal_sets_and_of_nan() -> None:
    x = normal(2, 20, 5).float().requires_grad_()
    value = max_sliced_wasserstein(x, x.detach())
    value.backward()
    assert value == 0 and not x.grad.any()
    assert value.dtype == torch.float32
    assert max_sliced_wasserstein(x.bfloat16(), x.bfloat16() + 1).dtype == torch.bfloat16
    spoilt = x.detach().clone()
    spoilt[1, 2, 3] = math.nan
    assert max_sliced_wasserstein(spoilt, x).isnan()


@pytest.mark.parametrize("lr", [2**70, 1e300])
def test_max_of_long_steps_is_power_iteration(lr: float) -> None:
    x, y = normal(20, 5).float(), normal(20, 5, seed=1).float() + 1
    want = max_sliced_wasserstein(x, y, lr=1e6, generator=generator(0))
    assert torch.allclose(max_sliced_wasserstein(x, y, lr=lr, generator=generator(0)), want, rtol=1e-4)


@needs_native
def test_max_of_the_reference_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(3, 40, 6), normal(3, 50, 6, seed=1) + 0.3
    want = max_sliced_wasserstein(x, y, generator=generator(2))
    few = max_sliced_wasserstein(x, y, steps=4, generator=generator(2))
    for module in (sliced_wasserstein_entries, sliced_wasserstein_max):
        monkeypatch.setattr(module, "use_native", lambda *_: False)
    assert torch.allclose(max_sliced_wasserstein(x, y, steps=4, generator=generator(2)), few, rtol=1e-9)
    assert torch.allclose(max_sliced_wasserstein(x, y, generator=generator(2)), want, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 0}, ValueError, "expected steps > 0, got 0"),
        ({"steps": 2.0}, TypeError, "expected steps to be an int, got float"),
        ({"lr": 0}, ValueError, "expected lr > 0 and finite, got 0"),
        ({"lr": math.nan}, ValueError, "expected lr > 0 and finite, got nan"),
        ({"lr": 10**400}, ValueError, "expected lr > 0 and finite, got 1000"),
        ({"lr": "1"}, TypeError, "expected lr to be a float, got str"),
        ({"p": 0.5}, ValueError, "expected p >= 1 and finite, got 0.5"),
        ({"generator": 1}, TypeError, "expected generator to be a torch.Generator, got int"),
    ],
)
def test_bad_max(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^max_sliced_wasserstein: {text}"):
        max_sliced_wasserstein(torch.ones(3, 2), torch.ones(3, 2), **options)
    with pytest.raises(ValueError, match=r"^max_sliced_wasserstein: expected y of shape .* = \(M, 2\), got \(3, 3\)"):
        max_sliced_wasserstein(torch.ones(3, 2), torch.ones(3, 3))


@pytest.mark.parametrize("p", [1.0, 2.0, 8.0])
def test_max_climbs_at_any_scale(p: float) -> None:
    x, y = normal(60, 5).float(), (normal(60, 5, seed=1) * torch.tensor([1, 1, 1, 1, 3.0])).float()
    want = max_sliced_wasserstein(x, y, p=p, generator=generator(4))
    for scale in (2.0**-10, 2.0**12):
        got = max_sliced_wasserstein(x * scale, y * scale, p=p, generator=generator(4)) / scale**p
        torch.testing.assert_close(got, want, rtol=1e-4, atol=0)
