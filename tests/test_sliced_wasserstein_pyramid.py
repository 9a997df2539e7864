"""Progressive GAN's patch metric, against a restatement in numpy."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sliced_wasserstein_samples import generator, normal

from vgkernels import random_projections, sliced_wasserstein_pyramid


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


def test_pyramid_of_a_constant_channel() -> None:
    """What rounding leaves of it on the finer levels is no content."""
    for value in (0.1, 1 / 3, 0.7, 200.3):
        a, b = (torch.rand(6, 3, 16, 16, generator=generator(k)) for k in (0, 1))
        a[:, 0], b[:, 0] = value, 1 - value
        without = [images.clone() for images in (a, b)]
        without[0][:, 0] = without[1][:, 0] = 0
        options = {"levels": 2, "patch": 5, "n_projections": 64}
        got, want = (sliced_wasserstein_pyramid(*pair, **options, generator=generator(2)) for pair in ((a, b), without))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=0)
