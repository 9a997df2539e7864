"""Peak signal-to-noise ratio: 10 log10(data_range^2 / mean squared error), one number an image.

Decides the formula and the averaging (over C, H and W); averaging over frames is left to the caller.
"""

import torch
from torch import Tensor


def psnr(estimate: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """PSNR in dB of (..., C, H, W) against (..., C, H, W), one value for each leading entry.

    Args:
        estimate: the image judged, floating point.
        target: the true image, of the same shape.
        data_range: the difference between the largest and the smallest possible value.

    Returns:
        Tensor of shape (...); `inf` where both images are equal.

    Raises:
        ValueError: the shapes differ or there is no (C, H, W).

    >>> psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)).item()  # mse 0.01
    20.0
    """
    if estimate.shape != target.shape or estimate.ndim < 3:
        raise ValueError(
            f"psnr: expected two images of one shape (..., C, H, W), got {tuple(estimate.shape)} "
            f"and {tuple(target.shape)}"
        )
    mean_squared_error = (estimate - target).square().mean(dim=(-3, -2, -1))
    return 10 * torch.log10(data_range**2 / mean_squared_error)
