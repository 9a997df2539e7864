"""Random directions and what is built on the distance: random_projections, the Hadamard path, the maximum over
directions, and Progressive GAN's patch metric against a restatement in numpy.
"""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from op_suite import DEVICES, needs_native
from sliced_wasserstein_samples import directions, generator, normal
from torch import Tensor

from vgkernels import (
    max_sliced_wasserstein,
    random_projections,
    sliced_wasserstein,
    sliced_wasserstein_entries,
    sliced_wasserstein_max,
    sliced_wasserstein_pyramid,
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


@pytest.mark.parametrize("device", DEVICES)
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


# ---- Progressive GAN's metric ----


def numpy_convolve(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """scipy.ndimage.convolve(..., mode="mirror") of each plane, tap by tap."""
    size = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    out = np.zeros_like(images)
    for i in range(5):
        for j in range(5):
            out += kernel[i, j] * padded[:, :, i : i + size[0], j : j + size[1]]
    return out


def numpy_pyramid(images: np.ndarray, levels: int) -> list[np.ndarray]:
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    pyramid = [images]
    for _ in range(1, levels):
        smaller = numpy_convolve(pyramid[-1], kernel)[:, :, ::2, ::2]
        larger = np.zeros_like(pyramid[-1])
        larger[:, :, ::2, ::2] = smaller
        pyramid[-1] = pyramid[-1] - numpy_convolve(larger, 4 * kernel)
        pyramid.append(smaller)
    return pyramid


def numpy_metric(a: np.ndarray, b: np.ndarray, levels: int, count: int, side: int, n: int, seed: int) -> list[float]:
    g = generator(seed)
    sets = []
    for images in (a, b):
        places = []
        for level in range(levels):
            ends = [size // 2**level - side + 1 for size in images.shape[2:]]
            places.append([torch.randint(end, (len(images), count), generator=g).numpy() for end in ends])
        found = []
        for level, (rows, columns) in zip(numpy_pyramid(images, levels), places, strict=True):
            patches = np.stack(
                [
                    level[i, :, rows[i, k] : rows[i, k] + side, columns[i, k] : columns[i, k] + side]
                    for i in range(len(images))
                    for k in range(count)
                ]
            )
            patches = patches - patches.mean((0, 2, 3), keepdims=True)
            found.append((patches / patches.std((0, 2, 3), keepdims=True)).reshape(len(patches), -1))
        sets.append(found)
    values = []
    for one, other in zip(*sets, strict=True):
        theta = random_projections(n, one.shape[1], generator=g, dtype=torch.float64).numpy()
        s, t = (np.sort(v @ theta.T, axis=0) for v in (one, other))
        if len(s) != len(t):  # as many copies of each as make them equally many
            s, t = s.repeat(len(t), 0), t.repeat(len(s), 0)
        values.append(1e3 * np.abs(s - t).mean())
    return values


def test_pyramid_is_the_published_metric() -> None:
    for count_b, levels, side, shape in ((6, 3, 7, (28, 36)), (4, 2, 3, (8, 6)), (5, 1, 7, (7, 9))):
        a, b = torch.rand(6, 3, *shape, generator=generator(0)).double(), normal(count_b, 3, *shape)
        b = b.cumsum(2) / 8
        options = {"levels": levels, "patches_per_image": 11, "patch": side, "n_projections": 40}
        got = sliced_wasserstein_pyramid(a, b, **options, generator=generator(3))
        want = numpy_metric(a.numpy(), b.numpy(), levels, 11, side, 40, 3)
        assert got.shape == (levels,)
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=0)


def test_pyramid_of_many_images_and_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (torch.randint(256, (150, 3, 16, 16), generator=generator(k)).byte() for k in (0, 1))
    options = {"levels": 2, "patches_per_image": 8, "patch": 5, "n_projections": 64}
    got = sliced_wasserstein_pyramid(a, b, **options, generator=generator(3))
    assert got.dtype == torch.float32
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[sliced_wasserstein_pyramid.__module__], "_AT_ONCE", 1000)
        whole = sliced_wasserstein_pyramid(a, b, **options, generator=generator(3))
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=0)
    want = sliced_wasserstein_pyramid(a.double(), b.double(), **options, generator=generator(3))
    assert ((got / want - 1).abs() <= 0.2).all()  # directions are drawn in another dtype
    shifted = sliced_wasserstein_pyramid(a.float() / 4 + 5, b.float() / 4 + 5, **options, generator=generator(3))
    torch.testing.assert_close(shifted, got, rtol=1e-4, atol=0)  # each set's own mean and deviation


def test_pyramid_tells_which_level_differs() -> None:
    a, b = normal(40, 3, 32, 32).float(), normal(40, 3, 32, 32, seed=1).float()
    same = sliced_wasserstein_pyramid(a, b, levels=2, n_projections=128, generator=generator(0))
    fine = b.clone()
    fine[..., 1::2] = fine[..., ::2]  # pairs of equal columns
    differ = sliced_wasserstein_pyramid(a, fine, levels=2, n_projections=128, generator=generator(0))
    assert differ[0] > 1.3 * same[0]
    flat = sliced_wasserstein_pyramid(torch.full_like(a, 2.0), torch.full_like(a, 3.0), levels=2, n_projections=8)
    assert not flat.any()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"levels": 0}, ValueError, "expected levels > 0, got 0"),
        ({"patch": 0}, ValueError, "expected patch > 0, got 0"),
        ({"patches_per_image": 1.5}, TypeError, "expected patches_per_image to be an int, got float"),
        ({"n_projections": 0}, ValueError, "expected n_projections > 0, got 0"),
        ({"generator": 1}, TypeError, "expected generator to be a torch.Generator, got int"),
        ({"levels": 4}, ValueError, r"expected images with H divisible by 8 .*, got H = 12"),
        ({"levels": 2}, ValueError, r"expected images with H divisible by 2 .* and H / 2 >= 7, got H = 12"),
        (
            {"images_a": torch.ones(2, 12, 12)},
            ValueError,
            r"expected images_a of shape \(A, C, H, W\), got \(2, 12, 12\)",
        ),
        (
            {"images_a": torch.ones(2, 1, 12, 12)},
            ValueError,
            r"expected images_b of shape \(B, C, H, W\) = \(B, 1, 12, 12\)",
        ),
        ({"images_b": torch.ones(0, 3, 12, 12)}, ValueError, "expected images with B > 0, got"),
        (
            {"images_b": torch.ones(2, 3, 12, 12).double()},
            TypeError,
            "expected images_b of images_a's dtype float32, got",
        ),
        (
            {"images_a": torch.ones(2, 3, 12, 12).int()},
            TypeError,
            "expected images_a of dtype float64 or .* or uint8, got",
        ),
    ],
)
def test_bad_pyramid(change: Any, error: Any, text: str) -> None:
    options = {"images_a": torch.ones(2, 3, 12, 12), "images_b": torch.ones(2, 3, 12, 12), "levels": 1} | change
    with pytest.raises(error, match=f"^sliced_wasserstein_pyramid: {text}"):
        sliced_wasserstein_pyramid(options.pop("images_a"), options.pop("images_b"), **options)
