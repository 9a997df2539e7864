"""The best of N predictions, in the protocol of stochastic video prediction (SVG, arXiv 1802.07687).

Decides which sample counts: for each clip the one with the best mean over time; each score picks its own.
"""

import torch
from torch import Tensor


def best_of_n(values: Tensor, better: str = "higher") -> Tensor:
    """Each clip's curve of its best sample.

    Args:
        values: (B, N, T), a score (PSNR, SSIM) of each of N samples at T times.
        better: "higher" or "lower".

    Returns:
        (B, T). Its mean over B is the curve that papers show.

    Raises:
        ValueError: another shape, N or T of 0, NaN, another `better`.

    >>> best_of_n(torch.tensor([[[1.0, 9.0], [4.0, 4.0]]]))  # 5 on average, not 4
    tensor([[1., 9.]])
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"best_of_n: expected better to be 'higher' or 'lower', got {better!r}")
    if values.ndim != 3 or 0 in values.shape[1:] or values.isnan().any():
        raise ValueError(
            f"best_of_n: expected values (B, N, T) without NaN, N and T at least 1, got {tuple(values.shape)}"
        )
    mean = values.mean(2)  # (B, N)
    best = mean.argmax(1) if better == "higher" else mean.argmin(1)
    return values[torch.arange(len(values), device=values.device), best]
