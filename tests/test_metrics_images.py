"""PSNR, SSIM and the best of N samples.

Decides which numbers are right, by formulas, scikit-image and torchmetrics.
"""

import pytest
import torch

from vgkernels_models.metrics.best_of_n import best_of_n
from vgkernels_models.metrics.psnr import psnr
from vgkernels_models.metrics.ssim import ssim


@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_what_scikit_image_says(channels: int, data_range: float) -> None:
    oracle = pytest.importorskip("skimage.metrics", reason="scikit-image, the oracle, is not installed")
    generator = torch.Generator().manual_seed(0)
    true = data_range * torch.rand(2, 3, channels, 17, 23, generator=generator, dtype=torch.float64)
    noisy = true + 0.2 * data_range * torch.randn(true.shape, generator=generator, dtype=torch.float64)
    ours = ssim(noisy, true, data_range)
    assert ours.shape == (2, 3)
    for mine, a, b in zip(ours.flatten(), noisy.flatten(0, 1), true.flatten(0, 1), strict=True):
        theirs = oracle.structural_similarity(
            a.numpy(), b.numpy(), data_range=data_range, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert mine.item() == pytest.approx(theirs, abs=1e-12)


def test_ssim_and_psnr_are_what_torchmetrics_says() -> None:
    oracle = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics, the oracle, is not installed")
    x, y = torch.rand(2, 4, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    _, theirs = oracle.structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )
    assert torch.allclose(ssim(x, y), theirs[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-5)  # it reflects at the border
    theirs = oracle.peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(x, y), theirs, atol=1e-4)


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    x, y = torch.full((1, 16, 16), 0.4), torch.full((1, 16, 16), 0.8)
    assert ssim(x, y).item() == pytest.approx((2 * 0.4 * 0.8 + 1e-4) / (0.4**2 + 0.8**2 + 1e-4), rel=1e-5)
    assert ssim(x, x).item() == 1
    assert ssim(x + 1e3, x + 1e3 + 1e-3, 1.0).item() == pytest.approx(1, abs=1e-4)  # no cancellation in float32


def test_ssim_refuses_what_does_not_fit() -> None:
    for a, b in [((3, 16, 16), (3, 16, 17)), ((16, 16), (16, 16)), ((3, 10, 16), (3, 10, 16))]:
        with pytest.raises(ValueError, match=r"ssim: expected two images of one shape \(\.\.\., C, H, W\) with sides"):
            ssim(torch.zeros(a), torch.zeros(b))


def test_the_best_of_n_is_chosen_by_its_mean_over_time() -> None:
    values = torch.tensor([[[9.0, 1, 1], [4, 4, 4], [5, 2, 2]], [[0, 0, 0], [1, 1, 1], [0, 3, 3]]])  # (2, 3, 3)
    assert best_of_n(values).tolist() == [[4, 4, 4], [0, 3, 3]]
    assert best_of_n(values, better="lower").tolist() == [[5, 2, 2], [0, 0, 0]]
    assert best_of_n(torch.tensor([[[1.0, float("inf")], [2, 2]]])).tolist() == [[1, float("inf")]]  # a perfect frame
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 0, 3), torch.full((1, 1, 1), float("nan"))):
        with pytest.raises(ValueError, match=r"best_of_n: expected values \(B, N, T\) without NaN"):
            best_of_n(wrong)
    with pytest.raises(ValueError, match="'higher' or 'lower', got 'best'"):
        best_of_n(values, better="best")
