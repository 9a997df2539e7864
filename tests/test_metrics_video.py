"""Scores with protocols, and what they say of clips whose answer is known: ACD, inception score, motion control, masks.

Decides what a score must say of perfect, of broken and of empty clips; distances between sets have their own file.
"""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vgkernels_models.data.batch import Batch
from vgkernels_models.metrics.acd import colour_distance, colour_scores, identity_score
from vgkernels_models.metrics.evaluate import evaluate
from vgkernels_models.metrics.inception_score import inception_score, inception_score_of
from vgkernels_models.metrics.motion_control import ClipClassifier, motion_control_score, train_classifier
from vgkernels_models.metrics.scene_parts import (
    background_correlation,
    background_flicker,
    mask_motion_iou,
    two_stream_scores,
)
from vgkernels_models.metrics.score import Score
from vgkernels_models.model import ModelConfig, VideoModel

T, SIZE = 8, 16


def squares(n: int, seed: int = 0, side: int = 4) -> Batch:
    """One square of one colour a clip on black, that moves up (class 0) or left (class 1); its mask is the truth."""
    generator = torch.Generator().manual_seed(seed)
    video, mask = torch.full((n, 3, T, SIZE, SIZE), -1.0), torch.zeros(n, 1, T, SIZE, SIZE)
    label = torch.arange(n) % 2
    for i in range(n):
        colour = torch.rand(3, generator=generator) * 1.4 - 0.4
        across = int(torch.randint(SIZE - side, (), generator=generator))
        for t in range(T):
            along = SIZE - side - 1 - t
            y, x = (along, across) if label[i] == 0 else (across, along)
            video[i, :, t, y : y + side, x : x + side] = colour[:, None, None]
            mask[i, :, t, y : y + side, x : x + side] = 1
    return Batch(video, label, {"mask": mask})


# ---- scores


def test_scores_are_compared_under_one_stated_protocol_only() -> None:
    low, high = Score("FVD", 10.0, "FVD[a]"), Score("FVD", 20.0, "FVD[a]")
    assert low.beats(high) and not high.beats(low)
    accuracy = [Score("MCS", value, "MCS[a]", better="higher") for value in (0.9, 0.5)]
    assert accuracy[0].beats(accuracy[1]) and not accuracy[1].beats(accuracy[0])
    for other in (Score("FVD", 20.0, "FVD[b]"), Score("FVD", 20.0, "")):
        with pytest.raises(ValueError, match=r"under one stated protocol only, got 'FVD\[a\]' and"):
            low.beats(other)
    with pytest.raises(ValueError, match="one stated protocol"):
        Score("FVD", 1.0, "").beats(Score("FVD", 2.0, ""))
    with pytest.raises(ValueError, match="expected the same score with a better side, got 'FVD', 'IS'"):
        low.beats(Score("IS", 1.0, "FVD[a]"))
    with pytest.raises(ValueError, match="expected better to be"):
        Score("FVD", 1.0, "", better="less")


def test_a_gate_has_bounds_and_nan_never_passes() -> None:
    assert Score("a", 1.0, "").passed is None and Score("a", 1.0, "").gate == ""
    both = [Score("a", value, "", at_least=0.02, at_most=0.6) for value in (0.01, 0.02, 0.6, 0.7, math.nan)]
    assert [score.passed for score in both] == [False, True, True, False, False]
    assert both[0].gate == "≥ 0.02 and ≤ 0.6"


def test_a_score_survives_json() -> None:
    score = Score("a", 1.5, "a[b]", better="higher", spread=0.25, baselines={"floor": 0.5}, at_most=2.0)
    assert Score.from_json(json.loads(json.dumps(score.to_json(), allow_nan=False))) == score
    missing = Score("a", math.nan, "a[b]", baselines={"floor": math.inf})
    back = Score.from_json(json.loads(json.dumps(missing.to_json(), allow_nan=False)))
    assert math.isnan(back.value) and math.isnan(back.baselines["floor"])


# ---- ACD


def test_real_shapes_keep_their_colour_and_have_an_object_in_every_frame() -> None:
    distance, share = colour_distance(squares(12).video)
    assert distance == pytest.approx(0, abs=1e-4) and share == 1


def test_acd_is_the_mean_distance_of_two_frames_on_the_scale_of_bytes() -> None:
    video = torch.full((1, 3, 3, 8, 8), -1.0)
    for t, red in enumerate((0.2, 0.4, 0.8)):  # of [0, 1]
        video[0, 0, t, 2:4, 2:4] = 2 * red - 1
    distance, _ = colour_distance(video)
    assert distance == pytest.approx(255 * (0.2 + 0.4 + 0.6) / 3, rel=1e-6)


def test_a_frame_without_an_object_is_a_failure_and_not_a_perfect_frame() -> None:
    video = squares(4).video
    video[0, :, :3] = -1  # black
    video[1, :, 5:] = 0  # grey all over is no object either
    video[2, :, 1:] = -1  # one frame alone is no pair
    distance, share = colour_distance(video)
    assert distance == pytest.approx(0, abs=1e-4) and share == pytest.approx(1 - (6 + T - 1) / (4 * T))
    empty = colour_distance(torch.full((2, 3, T, SIZE, SIZE), -1.0))
    assert math.isnan(empty.distance) and empty.frames_with_object == 0
    acd, objects = colour_scores(video, squares(4).video, data="squares")
    assert objects.passed is False and objects.at_least == 0.95 and objects.baselines == {"real clips": 1.0}
    assert acd.baselines["real clips"] == pytest.approx(0, abs=1e-4) and "squares" in acd.protocol


def test_acd_i_takes_the_users_embedder() -> None:
    video = torch.zeros(2, 3, 3, 4, 4)
    video[1] += torch.tensor([0.0, 0.2, 0.6])[:, None, None]

    def brightness(frames: Tensor) -> Tensor:
        assert frames.shape[1:] == (3, 1, 4, 4) and frames.dtype == torch.uint8
        return frames.float().mean((1, 2, 3, 4))[:, None] / 127.5

    score = identity_score(video, brightness, squares(2).video[:, :, :, :4, :4], data="x")
    assert score.value == pytest.approx((0.2 + 0.4 + 0.6) / 3 / 2, abs=0.01) and "brightness" in score.protocol
    with pytest.raises(ValueError, match="T at least 2"):
        identity_score(video[:, :, :1], brightness, data="x")


# ---- inception score


def test_the_inception_score_of_alike_is_1_and_of_sure_and_even_is_k() -> None:
    assert inception_score_of(torch.full((10, 5), 0.2)) == pytest.approx(1)
    assert inception_score_of(torch.eye(5).repeat(4, 1)) == pytest.approx(5, rel=1e-5)
    assert inception_score_of(torch.eye(5)[:1].repeat(20, 1)) == pytest.approx(1)  # one class only
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    assert inception_score_of(p) == pytest.approx(math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)
    for wrong in (torch.zeros(3), torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 4.0]])):
        with pytest.raises(ValueError, match="inception_score_of: expected"):
            inception_score_of(wrong)


def test_the_inception_score_has_runs_of_their_own_seeds() -> None:
    seeds = []

    def sample(n: int, seed: int) -> Tensor:
        seeds.append(seed)
        which = torch.arange(n) % (2 if seed else 4)
        return (which.float() / 127.5 - 1).view(n, 1, 1, 1, 1)

    def classify(video: Tensor) -> Tensor:
        return 50 * torch.nn.functional.one_hot(video.flatten().long(), 4).float()

    score = inception_score(sample, classify, clips=40, runs=2)
    assert seeds == [0, 1] and score.value == pytest.approx(3, rel=1e-4) and score.spread == pytest.approx(1, rel=1e-4)
    assert "40 clips a run, 2 runs, 1x1x1x1 as uint8" in score.protocol
    with pytest.raises(ValueError, match="expected rows of probabilities"):
        inception_score(sample, classify, outputs="probabilities", clips=4, runs=1)
    with pytest.raises(ValueError, match="'logits' or 'probabilities'"):
        inception_score(sample, classify, outputs="sigmoid")


# ---- motion control


@pytest.fixture(scope="module")
def classifier() -> ClipClassifier:
    return train_classifier(lambda step: squares(16, seed=step), classes=2, steps=25)


def test_a_classifier_trained_here_tells_held_out_motions_apart(classifier: ClipClassifier) -> None:
    held_out = squares(64, seed=10_000)
    asked: list[Tensor] = []

    def obedient(wanted: Tensor) -> Tensor:
        asked.append(wanted)
        return squares(len(wanted), seed=77).video  # of class 0, 1, 0, 1, ...

    score = motion_control_score(obedient, classifier, 2, held_out, clips=64, data="squares")
    assert score.value >= 0.9 and score.baselines["real clips"] >= 0.9 and score.baselines["chance"] == 0.5
    assert asked[0].tolist() == [0, 1] * 32 and "ClipClassifier, 25 steps, seed 0" in score.protocol
    deaf = motion_control_score(lambda wanted: obedient(wanted).flip(0), classifier, 2, held_out, clips=64, data="")
    assert deaf.value <= 0.1


def test_training_a_classifier_is_repeatable_and_leaves_the_global_noise_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = train_classifier(lambda step: squares(4, seed=step), classes=2, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = train_classifier(lambda step: squares(4, seed=step), classes=2, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_motion_control_refuses_what_does_not_fit(classifier: ClipClassifier) -> None:
    unlabelled = Batch(squares(4).video)
    with pytest.raises(ValueError, match="expected reals with labels, got none"):
        motion_control_score(lambda wanted: unlabelled.video, classifier, 2, unlabelled, clips=4, data="")
    with pytest.raises(ValueError, match=r"expected \(B, 3\) out of it, got \(4, 2\)"):
        motion_control_score(lambda wanted: unlabelled.video, classifier, 3, squares(4), clips=4, data="")
    with pytest.raises(ValueError, match="expected clips with labels in 0 to 0"):
        train_classifier(lambda step: squares(4), classes=1, steps=1)
    with pytest.raises(ValueError, match="labels in 0 to 1, got None"):
        train_classifier(lambda step: unlabelled, classes=2, steps=1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        train_classifier(lambda step: squares(4), classes=2, steps=0)


# ---- parts of a scene


def test_the_true_mask_covers_what_moves_and_a_wrong_one_does_not() -> None:
    clips = squares(16)
    mask = clips.truth["mask"]
    assert mask_motion_iou(mask, clips.video) > 0.9
    assert mask_motion_iou(mask.transpose(3, 4), clips.video) < 0.5
    assert mask_motion_iou(torch.ones_like(mask), clips.video) == pytest.approx(0.17, abs=0.1)
    assert mask_motion_iou(torch.zeros_like(mask), clips.video) == 0
    assert mask_motion_iou(torch.zeros_like(mask), torch.zeros_like(clips.video)) == 0  # nothing is no success
    with pytest.raises(ValueError, match=r"expected a mask \(B, 1, T, H, W\)"):
        mask_motion_iou(mask[:, :, :4], clips.video)


def test_flicker_is_the_deviation_of_the_background() -> None:
    clips = squares(16)
    signs = torch.tensor([1.0, -1.0]).repeat(T // 2).view(1, 1, T, 1, 1)
    still = ~clips.truth["mask"].bool().any(2).squeeze(1)
    assert background_flicker(clips.video) == background_flicker(clips.video, still) == 0
    assert background_flicker(clips.video + 0.05 * signs) == pytest.approx(0.05, rel=1e-4)
    assert background_flicker(clips.video + 0.05 * signs, still) == pytest.approx(0.05, rel=1e-4)
    assert background_flicker(clips.video, ~still) > 0.1
    with pytest.raises(ValueError, match="expected background pixels in each clip"):
        background_flicker(clips.video, torch.zeros_like(still))


def test_a_background_is_the_median_of_its_clip() -> None:
    scene = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video = scene[:, :, None].repeat(1, 1, 5, 1, 1)
    video[:, :, 2, 2:6, 2:6] = 1
    assert background_correlation(0.5 * scene + 0.1, video) == pytest.approx(1, abs=1e-5)
    assert background_correlation(scene.flip(3), video) < 0.5
    with pytest.raises(ValueError, match=r"expected background of shape \(4, 3, 8, 8\)"):
        background_correlation(scene[:, :, :4], video)


def test_the_gates_of_two_streams() -> None:
    clips = squares(16)
    one_stream = clips.video + 0.1 * torch.randn(clips.video.shape, generator=torch.Generator().manual_seed(0))
    scores = two_stream_scores(clips.video, clips.truth["mask"], one_stream, data="squares")
    assert {score.name: score.passed for score in scores} == {
        "mask IoU": True,
        "background flicker": True,
        "mean mask": True,
    }
    empty = torch.zeros_like(clips.truth["mask"])
    scores = two_stream_scores(one_stream, empty, clips.video, data="squares")
    assert [score.passed for score in scores] == [False, False, False]
    assert two_stream_scores(clips.video, clips.truth["mask"], data="")[1].passed is None


# ---- all together


class Replay(VideoModel):
    """A 'model' that returns what `sampler` gives."""

    def __init__(self, config: ModelConfig, sampler: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.config, self.sampler, self.weight = config, sampler, nn.Parameter(torch.zeros(1))

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        seed = int(torch.randint(1 << 30, (), generator=generator))
        return self.sampler(seed)[:n] if condition is None else condition


@pytest.mark.filterwarnings("ignore:FVD")
def test_evaluate_scores_any_model_and_says_which_gates_hold() -> None:
    reals, others = squares(64, seed=1), squares(64, seed=2)
    config = ModelConfig(data="shape-motion", frames=T, size=SIZE)
    good = Replay(config, lambda seed: squares(64, seed=seed).video)
    scores = evaluate(good, reals, others, features=mean_colour)
    assert [score.name for score in scores] == [
        "SWD of clips", "SWD of frames", "SWD of changes", "ACD-C", "frames with an object", "FVD",
    ]  # fmt: skip
    assert all(score.protocol and "shape-motion" in score.protocol for score in scores)
    assert [score.passed for score in scores] == [True, None, True, None, True, None]
    assert [score.value for score in evaluate(good, reals, others)] == [score.value for score in scores[:5]]
    assert evaluate(good, reals, others, seed=1)[0].value != scores[0].value
    black = Replay(config, lambda seed: torch.full((64, 3, T, SIZE, SIZE), -1.0))
    assert [score.passed for score in evaluate(black, reals, others)] == [False, None, False, None, False]
    assert all("held out" in score.protocol for score in evaluate(good, reals, others, data="shape-motion: held out"))
    told = evaluate(black, reals, others, condition=others.video)
    assert told[0].value == pytest.approx(told[0].baselines["real against real"], rel=1e-6)


def test_content_distance_is_of_shape_motion_in_colour_only() -> None:
    config = ModelConfig(data="scenes", frames=T, size=SIZE)
    reals = squares(16)
    assert len(evaluate(Replay(config, lambda seed: reals.video), reals, squares(16, seed=2))) == 3


def mean_colour(video: Tensor) -> Tensor:
    return video.float().mean((2, 3, 4))


mean_colour.label = "mean colour"  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:FVD")
def test_a_callable_may_say_its_own_label() -> None:
    config = ModelConfig(data="scenes", frames=T, size=SIZE)
    model = Replay(config, lambda seed: squares(16, seed=seed).video)
    score = evaluate(model, squares(16, seed=1), squares(16, seed=2), features=mean_colour)[-1]
    assert score.protocol.startswith("FVD[mean colour, 16 vs 16, 3x8x16x16 as uint8, scenes]")
