"""Distances between sets of clips: sliced Wasserstein with its baselines and gates, Frechet distance, FVD.

Decides which numbers are right, by formulas, POT and torchmetrics; whether a model is good is left to its gates.
"""

import hashlib
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from vgkernels import random_projections
from vgkernels_models.metrics.frechet import FVD, FeatureStatistics, frechet_distance
from vgkernels_models.metrics.network import LabelledNetwork, to_bytes
from vgkernels_models.metrics.swd import VIEWS, constant_baselines, swd, swd_scores


def drifting(n: int, seed: int, frames: int = 6, size: int = 8) -> Tensor:
    """(n, 1, T, S, S): a bright column that moves by a pixel a frame from a random start, on black."""
    start = torch.randint(size, (n,), generator=torch.Generator().manual_seed(seed))
    column = (start[:, None] + torch.arange(frames)) % size  # (n, T)
    return (torch.nn.functional.one_hot(column, size)[:, None, :, None].float() * 2 - 1).repeat(1, 1, 1, size, 1)


# ---- sliced Wasserstein


@pytest.mark.parametrize("view", VIEWS)
def test_swd_is_what_pot_says_on_the_same_directions(view: str) -> None:
    oracle = pytest.importorskip("ot", reason="POT, the oracle, is not installed")
    x, y = torch.randn(2, 40, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    flat = {"clips": lambda v: v, "frames": lambda v: v[:, :, 2], "changes": lambda v: v[:, :, 1:] - v[:, :, :-1]}[view]
    x_flat, y_flat = (flat(each).reshape(40, -1).double().numpy() for each in (x, y))
    generator = torch.Generator().manual_seed(7)
    directions = torch.cat([random_projections(n, x_flat.shape[1], generator=generator) for n in (64, 64, 2)])
    theirs = oracle.sliced_wasserstein_distance(x_flat, y_flat, projections=directions.double().numpy().T)
    assert swd(x, y, view=view, n_projections=130, seed=7) == pytest.approx(float(theirs), rel=1e-5)


def test_swd_has_the_analytic_value_of_a_translation() -> None:
    x = torch.randn(16, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    shifted = swd(x, x + 0.5, n_projections=2000)  # E <theta, 0.5 * 1>^2 = 0.25 D / D
    assert shifted == pytest.approx(0.5, rel=0.05)
    assert swd(x, x + 0.5, view="changes") == pytest.approx(0, abs=1e-5)
    assert swd(x, x.flip(0)) == pytest.approx(0, abs=1e-6)


def test_no_constant_clip_is_nearer_than_the_baselines() -> None:
    fading = torch.linspace(1, 0.2, 6).view(1, 1, 6, 1, 1)
    reals = (drifting(64, seed=1) + 1) * fading - 1
    baselines = constant_baselines(reals)
    assert all(value.shape == (1, 1, 6, 8, 8) for value in baselines.values())
    assert torch.equal(baselines["black"], torch.full((1, 1, 6, 8, 8), -1.0))
    assert not baselines["best still"].diff(dim=2).any()
    best = {name: swd(reals, value) for name, value in baselines.items()}
    others = [swd(reals, clip[None]) for clip in reals[:8]] + [swd(reals, torch.zeros(1, 1, 6, 8, 8))]
    stills = [swd(reals, clip[None, :, 2:3].expand(1, 1, 6, 8, 8)) for clip in reals[:8]]
    mean = reals.mean(0, keepdim=True)
    stills += [swd(reals, mean[:, :, t : t + 1].expand_as(mean)) for t in range(6)]
    assert best["mean video"] <= min(others) and best["best still"] <= min(stills)
    assert best["mean video"] < best["best still"] < best["black"]
    copies = baselines["mean video"].repeat(64, 1, 1, 1, 1)
    assert swd(reals, copies) == pytest.approx(best["mean video"], rel=1e-5)  # one clip stands for N copies


def test_the_gate_passes_other_reals_and_refuses_what_learned_nothing() -> None:
    reals, others = drifting(128, seed=1), drifting(128, seed=2)
    learned_nothing = {
        "black": torch.full_like(reals, -1),
        "noise": 0.02 * torch.randn(reals.shape, generator=torch.Generator().manual_seed(3)),
        "mean video": reals.mean(0, keepdim=True).expand_as(reals),
        "frozen": others[:, :, 3:4].expand_as(others),
    }
    scores = swd_scores(drifting(128, seed=3), reals, others, data="drifting")
    assert [score.name for score in scores] == ["SWD of clips", "SWD of frames", "SWD of changes"]
    assert [score.passed for score in scores] == [True, None, True]
    for score in (scores[0], scores[2]):
        constants = [score.baselines[name] for name in ("mean video", "black", "best still")]
        assert score.at_most == min(constants) / 2 and score.baselines["real against real"] < score.at_most
        assert "128 vs 128" in score.protocol and "1x6x8x8" in score.protocol and "drifting" in score.protocol
    for name, fakes in learned_nothing.items():
        clips, _, changes = swd_scores(fakes, reals, others, data="drifting")
        assert changes.passed is False, name
        assert clips.passed is False or name == "frozen"


def test_backwards_time_is_seen_by_clips_and_changes_only() -> None:
    reals, others = drifting(128, seed=1), drifting(128, seed=2)
    _, frames, changes = swd_scores(others.flip(2), reals, others, data="drifting")
    assert frames.value < 1.5 * max(frames.baselines["real against real"], 0.05)
    assert changes.value > 1.5 * changes.baselines["real against real"]


def test_a_set_against_itself_is_no_floor_and_says_so() -> None:
    reals = drifting(32, seed=1)
    with pytest.warns(UserWarning, match="reals and other_reals are the same clips"):
        swd_scores(reals, reals, reals, data="drifting")


def test_swd_refuses_what_does_not_fit() -> None:
    clips = torch.zeros(4, 1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"expected view to be one of clips, frames, changes, got 'video'"):
        swd(clips, clips, view="video")
    with pytest.raises(ValueError, match=r"clips of one shape, got \(4, 1, 3, 8, 8\) and \(4, 1, 2, 8, 8\)"):
        swd(clips, clips[:, :, :2])
    with pytest.raises(ValueError, match="fakes, reals and other_reals of one shape"):
        swd_scores(clips, clips, clips[:2], data="")
    with pytest.raises(ValueError, match="T at least 2"):
        swd_scores(clips[:, :, :1], clips[:, :, :1], clips[:, :, :1], data="")


# ---- Frechet


def gaussian(n: int, mean: Tensor, factor: Tensor, seed: int) -> FeatureStatistics:
    """Statistics that are exactly those of N(mean, factor factor^T): whitened samples, coloured."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    white = FeatureStatistics.of(x)
    inverse_root = torch.linalg.inv(torch.linalg.cholesky(white.covariance))
    return FeatureStatistics.of((x - white.mean) @ inverse_root.T @ factor.T + mean)


def test_the_distance_of_known_gaussians_is_the_formula() -> None:
    mean, scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([2.0, 0.5, 3.0]).double()
    a = gaussian(500, torch.zeros(3).double(), torch.eye(3).double(), 0)
    b = gaussian(400, mean, torch.diag(scale), 1)
    expected = mean.square().sum() + (scale - 1).square().sum()  # both covariances are diagonal
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    one = gaussian(50, torch.zeros(1).double(), torch.tensor([[3.0]]).double(), 2)
    two = gaussian(60, torch.tensor([4.0]).double(), torch.tensor([[1.0]]).double(), 3)
    assert frechet_distance(one, two) == pytest.approx(16 + 4)


def test_a_singular_covariance_gives_a_real_number() -> None:
    few = FeatureStatistics.of(torch.randn(5, 40, generator=torch.Generator().manual_seed(0)))  # rank 4 of 40
    other = FeatureStatistics.of(torch.randn(6, 40, generator=torch.Generator().manual_seed(1)))
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few), rel=1e-6)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_statistics_are_the_same_in_batches_and_far_from_zero() -> None:
    x = 1e6 + torch.randn(1000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = FeatureStatistics.of(x[:1])
    for part in x[1:].split(77):
        total = total.merged(FeatureStatistics.of(part))
    assert total.count == 1000 and torch.allclose(total.mean, x.mean(0))
    assert torch.allclose(total.covariance, x.T.cov(), rtol=1e-7)


def test_features_that_can_not_be_scored_are_refused() -> None:
    fine = FeatureStatistics.of(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="features of one size, got 2 and 3"):
        frechet_distance(fine, FeatureStatistics.of(torch.zeros(3, 3)))
    with pytest.raises(ValueError, match="expected finite features"):
        frechet_distance(fine, FeatureStatistics.of(torch.full((3, 2), math.nan)))
    with pytest.raises(ValueError, match=r"features of shape \(N, D\)"):
        FeatureStatistics.of(torch.zeros(0, 2))


class PixelFeatures(nn.Module):
    """Two fixed random features of a picture or clip, so that torchmetrics and FVD can be given one network."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(8, 3 * 6 * 6, generator=torch.Generator().manual_seed(5))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255 @ self.weight.T


def test_fvd_is_torchmetrics_fid_on_the_same_features() -> None:
    oracle = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics, the oracle, is not installed")
    network = PixelFeatures()
    fakes, reals = torch.rand(2, 60, 3, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fakes = fakes * 0.7 + 0.1
    fid = oracle.FrechetInceptionDistance(feature=network, input_img_size=(3, 6, 6))
    fid.set_dtype(torch.float64)
    fid.update(to_bytes(reals)[:, :, 0], real=True)
    fid.update(to_bytes(fakes)[:, :, 0], real=False)
    with pytest.warns(UserWarning, match="60 clips against features of 8: biased upwards"):
        score = FVD(network)(fakes, reals, data="noise")
    assert score.value == pytest.approx(fid.compute().item(), rel=1e-4)
    assert score.protocol == "FVD[PixelFeatures, 60 vs 60, 3x1x6x6 as uint8, noise]"


class AsStyleGanV(nn.Module):
    """Has the call of StyleGAN-V's i3d_torchscript.pt, and asserts it."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        assert rescale and resize and return_features
        return x.float().mean((2, 3, 4)) / 255


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_torchscript_file_is_called_as_stylegan_v_does_and_named_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(AsStyleGanV()).save(str(path))
    fvd = FVD(path)
    grey = torch.rand(20, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        score = fvd(grey, grey + 0.1, grey.flip(0) + 0.1, data="UCF-101 train")
    assert f"i3d.pt sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" in score.protocol
    assert "UCF-101 train" in score.protocol and "20 vs 20" in score.protocol
    assert score.value > 10 * score.baselines["real against real"] >= 0


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_network_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a TorchScript file of .*nowhere\.pt"):
        FVD(tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match=r"text\.pt: expected a TorchScript file"):
        FVD(str(tmp_path / "text.pt"))
    with pytest.raises(ValueError, match=r"broken: expected \(B, D\) = \(4, D\) out of it, got \(4, 1, 2, 2, 2\)"):

        def broken(video: Tensor) -> Tensor:
            return video

        LabelledNetwork(broken)(torch.zeros(4, 1, 2, 2, 2))


def _gather(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked child has no pool of threads
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    total = FeatureStatistics.of(_features()[[slice(0, 30), slice(30, 100)][rank]]).over_ranks()
    torch.save((total.count, total.mean, total.covariance), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _features() -> Tensor:
    return torch.randn(100, 5, generator=torch.Generator().manual_seed(9))


def test_two_ranks_gather_what_one_has(tmp_path: Path) -> None:
    mp.start_processes(_gather, args=(str(tmp_path),), nprocs=2, start_method="fork")
    whole = FeatureStatistics.of(_features())
    for rank in range(2):
        count, mean, covariance = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == 100 and torch.allclose(mean, whole.mean) and torch.allclose(covariance, whole.covariance)


def test_bytes_are_the_inverse_of_the_border_s_rule() -> None:
    every = torch.arange(256)
    assert torch.equal(to_bytes(every / 127.5 - 1), every.byte())
    assert to_bytes(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]
