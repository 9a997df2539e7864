"""Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, each channel by itself, valid part.

Decides the formula and the averaging (over C and pixels); averaging over frames is left to the caller. The numbers are
those of scikit-image with gaussian_weights=True, sigma=1.5 and use_sample_covariance=False.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_RADIUS, _SIGMA, _K1, _K2 = 5, 1.5, 0.01, 0.03


def ssim(estimate: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """SSIM of (..., C, H, W) against (..., C, H, W), one value for each leading entry.

    Args:
        estimate: the image judged, floating point; at least 11 x 11 pixels.
        target: the true image, of the same shape.
        data_range: the difference between the largest and the smallest possible value.

    Returns:
        Tensor of shape (...), 1 where both images are equal; computed in float64.

    Raises:
        ValueError: the shapes differ, there is no (C, H, W), or it is smaller than the window.

    >>> ssim(torch.ones(3, 16, 16), torch.ones(3, 16, 16)).item()
    1.0
    """
    if estimate.shape != target.shape or estimate.ndim < 3 or min(estimate.shape[-2:]) < 2 * _RADIUS + 1:
        raise ValueError(
            f"ssim: expected two images of one shape (..., C, H, W) with sides of at least {2 * _RADIUS + 1}, "
            f"got {tuple(estimate.shape)} and {tuple(target.shape)}"
        )
    x, y = estimate.double().flatten(0, -3), target.double().flatten(0, -3)  # (N, H, W): every channel is an image
    mean_x, mean_y, square_x, square_y, product = map(_windowed, (x, y, x * x, y * y, x * y))
    variance_x, variance_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))  # (N, H', W')
    return similarity.mean((-2, -1)).view(estimate.shape[:-2]).mean(-1).to(estimate.dtype)


def _windowed(images: Tensor) -> Tensor:
    """(N, H, W) to its weighted means (N, H - 10, W - 10)."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    weights = torch.softmax(-(offsets**2) / (2 * _SIGMA**2), 0)  # of sum 1
    down = F.conv2d(images[:, None], weights.view(1, 1, -1, 1))
    return F.conv2d(down, weights.view(1, 1, 1, -1))[:, 0]
