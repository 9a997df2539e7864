"""Progressive GAN's metric: the sliced Wasserstein distance of small patches, at each level of a Laplacian pyramid.

Source: Karras et al., Progressive Growing of GANs, arXiv 1710.10196, section 5. Decides the pyramid (5 x 5 binomial
filter, mirrored edges), which patches are compared and how they are normalised; the distance is sliced_wasserstein's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import FLOATING, accumulation_dtype, check_same_device, check_same_dtype, check_shape, check_tensor
from .sliced_wasserstein_entries import value_of_entries
from .sliced_wasserstein_projections import check_count, check_generator, drawing, random_projections

_OP = "sliced_wasserstein_pyramid"
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_AT_ONCE = 64  # images whose pyramid is held at a time


@torch.no_grad()
def sliced_wasserstein_pyramid(
    images_a: Tensor,
    images_b: Tensor,
    *,
    levels: int,
    patches_per_image: int = 128,
    patch: int = 7,
    n_projections: int = 512,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Progressive GAN's multi-scale statistical similarity: one distance a level, the finest first.

    At each level random patches of each set are normalised, each channel to the set's own mean and deviation, and
    compared by the sliced W_1 of `n_projections` random directions, times 1000 as published. Published figures
    take 16384 images and a coarsest level of 16 pixels; smaller sets give larger values.

    Args:
        images_a: (A, C, H, W), float64, float32, float16, bfloat16 or uint8. H and W divisible by 2^(levels - 1).
        images_b: (B, C, H, W), of the same dtype and device.
        levels: of the pyramid. The last one holds what is left, the low frequencies.
        patches_per_image: at random places, at every level anew.
        patch: their side in pixels; at most the coarsest level's, which has at least 3.
        n_projections: as many new ones at every level.
        generator: draws places, for `images_a`, then for `images_b`, each from the finest level on, rows before
            columns; then directions, from the finest level on.

    Returns:
        (levels,) in float64 for float64 images, otherwise float32.

    Raises:
        TypeError: not tensors, of two dtypes or another one; a count that is no int.
        ValueError: shapes or devices that don't fit, no images, a count below 1.

    A channel that is constant over a set counts as 0. Differentiability: none.

    Source: Progressive GAN (arXiv 1710.10196).

    Example:
        >>> import torch, vgkernels
        >>> images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> vgkernels.sliced_wasserstein_pyramid(images, images.flip(0), levels=2).shape
        torch.Size([2])
    """
    _check(images_a, images_b, levels, patches_per_image, patch, n_projections, generator)
    wide = torch.float32 if images_a.dtype == torch.uint8 else accumulation_dtype(images_a.dtype)
    sets, scales = [], []
    for images in (images_a, images_b):
        places = _draw_places(images, levels, patches_per_image, patch, generator)
        sets.append(_patches_of_levels(images, places, patch, wide))
        scales.append(images.to(wide).abs().amax((0, 2, 3), keepdim=True))
    values = []
    for a, b in zip(*sets, strict=True):
        x, y = (  # (1, A P, C patch patch)
            _normalised(each, scale).flatten(1).unsqueeze(0) for each, scale in zip((a, b), scales, strict=True)
        )
        directions = random_projections(
            n_projections, x.shape[-1], generator=generator, dtype=wide, device=images_a.device
        )
        values.append(1e3 * value_of_entries(_OP, x, y, directions.unsqueeze(0), p=1.0)[0])
    return torch.stack(values)


def _check(
    a: Tensor, b: Tensor, levels: int, patches_per_image: int, patch: int, n_projections: int, generator: Any
) -> None:
    counts = {"levels": levels, "patches_per_image": patches_per_image, "patch": patch, "n_projections": n_projections}
    for name, count in counts.items():
        check_count(_OP, name, count)
    check_generator(_OP, generator)
    check_tensor(_OP, "images_a", a, (*FLOATING, torch.uint8))
    check_tensor(_OP, "images_b", b, (*FLOATING, torch.uint8))
    sizes: dict[str, int] = {}
    check_shape(_OP, "images_a", a, "A C H W", sizes)
    check_shape(_OP, "images_b", b, "B C H W", sizes)
    check_same_dtype(_OP, "images_b", b, "images_a", a)
    check_same_device(_OP, "images_b", b, "images_a", a)
    for symbol in ("A", "B", "C"):
        if sizes[symbol] == 0:
            raise ValueError(f"{_OP}: expected images with {symbol} > 0, got {tuple(a.shape)} and {tuple(b.shape)}")
    step, least = 2 ** min(levels - 1, 63), max(patch, 3)  # no number of a billion bits
    for symbol in ("H", "W"):
        if sizes[symbol] % step or sizes[symbol] // step < least:
            raise ValueError(
                f"{_OP}: expected images with {symbol} divisible by {step} (levels={levels}) and {symbol} / {step} >= "
                f"{least}, got {symbol} = {sizes[symbol]}"
            )


# ---- the pyramid ----


def _laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """Each level less what the next coarser one tells of it; the coarsest as it is."""
    pyramid = [images]
    for _ in range(levels - 1):
        pyramid.append(_blur(pyramid[-1])[..., ::2, ::2])
    for level in range(levels - 1):
        coarser = pyramid[level + 1]
        spread = coarser.new_zeros(pyramid[level].shape)
        spread[..., ::2, ::2] = coarser
        pyramid[level] = pyramid[level] - 4 * _blur(spread)
    return pyramid


def _blur(images: Tensor) -> Tensor:
    """By the binomial filter along both axes, mirrored about the centres of the edge pixels; shifts, no TF32."""
    for axis in (-2, -1):
        size = images.shape[axis]
        mirrored = torch.nn.functional.pad(images, (0, 0, 2, 2) if axis == -2 else (2, 2, 0, 0), mode="reflect")
        images = torch.stack([w * mirrored.narrow(axis, i, size) for i, w in enumerate(_BINOMIAL)]).sum(0)
    return images


# ---- patches ----

Places = Sequence[tuple[Tensor, Tensor]]  # of each level, the top rows and left columns (A, P)


def _draw_places(images: Tensor, levels: int, count: int, patch: int, generator: torch.Generator | None) -> Places:
    device = images.device if generator is None else generator.device
    places = []
    for level in range(levels):
        ends = (size // 2**level - patch + 1 for size in images.shape[2:])
        rows, columns = (torch.randint(end, (len(images), count), **drawing(generator), device=device) for end in ends)
        places.append((rows.to(images.device), columns.to(images.device)))
    return places


def _patches_of_levels(images: Tensor, places: Places, patch: int, dtype: torch.dtype) -> list[Tensor]:
    """Of each level (A P, C, patch, patch)."""
    found: list[list[Tensor]] = [[] for _ in places]
    for start in range(0, len(images), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        pyramid = _laplacian_pyramid(images[some].to(dtype), len(places))
        for level, into, (rows, columns) in zip(pyramid, found, places, strict=True):
            into.append(_cut(level, rows[some], columns[some], patch))
    return [torch.cat(each) for each in found]


def _cut(level: Tensor, rows: Tensor, columns: Tensor, patch: int) -> Tensor:
    """(n P, C, patch, patch) from the (n, C, h, w) level."""
    steps = torch.arange(patch, device=level.device)
    row = (rows[..., None] + steps).unsqueeze(-1)  # (n, P, patch, 1)
    column = (columns[..., None] + steps).unsqueeze(-2)  # (n, P, 1, patch)
    index = (row * level.shape[3] + column).flatten(1).unsqueeze(1).expand(-1, level.shape[1], -1)
    cut = level.flatten(2).gather(2, index)  # (n, C, P patch patch)
    return cut.unflatten(2, (-1, patch, patch)).transpose(1, 2).flatten(0, 1)


def _normalised(patches: Tensor, scale: Tensor) -> Tensor:
    """Each channel to mean 0 and deviation 1 over all patches; to 0 where it has no more than rounding at `scale`."""
    patches = patches - patches.mean((0, 2, 3), keepdim=True, dtype=torch.float64).to(patches.dtype)
    deviation = patches.square().mean((0, 2, 3), keepdim=True, dtype=torch.float64).sqrt().to(patches.dtype)
    constant = deviation <= 16 * torch.finfo(patches.dtype).eps * scale
    return torch.where(constant, 0, patches / torch.where(constant, 1, deviation))
