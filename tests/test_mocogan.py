"""MoCoGAN against the specification: layers, counts, both samplers, the order of the update, categories, lengths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from video_models import RecordingStep, clips, count, shapes

import vgkernels_models
from vgkernels_models.mocogan import MoCoGAN, Noise

CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def tiny(**changes) -> MoCoGAN:
    torch.manual_seed(0)
    small = {"generator_width": 4, "judge_width": 2, "z_content": 6, "z_motion": 3, "image_batch": 4}
    model = vgkernels_models.create("mocogan", "tiny", **{**small, **changes})
    assert isinstance(model, MoCoGAN)
    return model


@pytest.mark.parametrize(
    ("categories", "generator", "judge"),
    [(0, 3_249_024, 11_056_896), (2, 3_265_408, 11_122_432), (4, 3_281_792, 11_187_968), (6, 3_298_176, 11_253_504)],
)
def test_the_papers_counts(categories: int, generator: int, judge: int) -> None:
    model = vgkernels_models.create("mocogan", categories=categories)
    assert isinstance(model, MoCoGAN)
    assert count(model.generator.recurrent) == 660
    assert (count(model.generator.main), count(model.video_judge)) == (generator, judge)


def test_the_papers_layers() -> None:
    model = vgkernels_models.create("mocogan")
    other = vgkernels_models.create("mocogan", image_judge="full", video_judge="patch")
    assert isinstance(model, MoCoGAN)
    assert isinstance(other, MoCoGAN)
    assert (count(model.image_judge), count(other.image_judge), count(other.video_judge)) == (
        663_296,
        2_765_568,
        2_650_880,
    )
    assert shapes(model.generator.main, torch.zeros(2, 60, 1, 1), only=CONVOLUTIONS) == {
        "0": (512, 4, 4),
        "3": (256, 8, 8),
        "6": (128, 16, 16),
        "9": (64, 32, 32),
        "12": (3, 64, 64),
    }
    frame, clip = torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 16, 64, 64)
    assert model.image_judge
    assert other.image_judge
    patches = {"1": (64, 32, 32), "4": (128, 16, 16), "8": (256, 8, 8), "12": (1, 4, 4)}
    assert shapes(model.image_judge.main, frame, only=CONVOLUTIONS) == patches
    whole = {**patches, "12": (512, 4, 4), "15": (1, 1, 1)}
    assert shapes(other.image_judge.main, frame, only=CONVOLUTIONS) == whole
    start = {"1": (64, 13, 32, 32), "4": (128, 10, 16, 16), "8": (256, 7, 8, 8)}
    assert shapes(model.video_judge.main, clip, only=CONVOLUTIONS) == {
        **start,
        "12": (512, 4, 4, 4),
        "15": (1, 1, 1, 1),
    }
    assert shapes(other.video_judge.main, clip, only=CONVOLUTIONS) == {**start, "11": (1, 4, 4, 4)}
    assert not [
        name for name, layer in model.named_modules() if isinstance(layer, CONVOLUTIONS) and layer.bias is not None
    ]
    noisy = [name for name, layer in model.video_judge.main.named_children() if isinstance(layer, Noise)]
    assert noisy == ["0", "3", "7", "11"]


def test_generator_equals_the_formula() -> None:
    """The GRU with its gates written out; content, category, motion in a frame's latent."""
    model = tiny(categories=2).eval()
    generator = torch.Generator().manual_seed(1)
    latents = model.latents(2, 5, generator, torch.tensor([0, 1]))
    generator.manual_seed(1)
    torch.randint(2, (2,), generator=generator)  # drawn, though classes are given
    content, h, noise = (torch.randn(*shape, generator=generator) for shape in ((2, 6), (2, 3), (2, 5, 3)))
    cell = model.generator.recurrent
    path = []
    for step in noise.unbind(1):
        from_noise = (step @ cell.weight_ih.T + cell.bias_ih).chunk(3, 1)
        from_state = (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1)
        r, z = (torch.sigmoid(from_noise[i] + from_state[i]) for i in (0, 1))
        h = (1 - z) * torch.tanh(from_noise[2] + r * from_state[2]) + z * h
        path.append(h)
    torch.testing.assert_close(latents.motion, torch.stack(path, 1), atol=1e-6, rtol=1e-5)

    x = torch.cat([content[1], torch.tensor([0.0, 1.0]), path[3][1]])[None, :, None, None]
    for i, (stride, padding) in enumerate([(1, 0), (2, 1), (2, 1), (2, 1)]):
        x = F.conv_transpose2d(x, model.get_parameter(f"generator.main.{3 * i}.weight"), None, stride, padding)
        if i < 3:
            norm = model.get_submodule(f"generator.main.{3 * i + 1}")
            x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    torch.testing.assert_close(model.generator.clips(latents)[1, :, 3], x[0].tanh(), atol=1e-5, rtol=1e-5)


def test_order_and_fresh_fakes() -> None:
    model = tiny().train()
    batch = clips(model)
    seen: dict[str, list[torch.Tensor]] = {"image": [], "video": []}
    judged: dict[str, list[torch.Tensor]] = {"image": [], "video": []}

    def keep(kind: str, shown: torch.Tensor, answer: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen[kind].append(shown.detach())
        judged[kind].append(answer[0].detach().sigmoid())  # how real it seems

    hooks = [
        judge.register_forward_hook(lambda _, shown, answer, kind=kind: keep(kind, shown[0], answer))
        for kind, judge in (("image", model.image_judge), ("video", model.video_judge))
    ]
    step = RecordingStep(model)
    said = model.training_step(batch, step)
    for hook in hooks:
        hook.remove()
    assert step.descents == [("image judge",), ("video judge",), ("generator",)]
    assert set(said) == {"image judge", "video judge", "generator"}
    frames, fake, fresh = seen["image"]
    for i, frame in enumerate(frames):  # S_1: a frame of clip i
        assert any(torch.equal(frame, batch.video[i, :, t]) for t in range(16))
    assert not torch.equal(fake, fresh)
    real, fake, fresh = seen["video"]
    assert real is batch.video or torch.equal(real, batch.video)
    assert not torch.equal(fake, fresh)
    for kind, (on_real, on_fake, _) in judged.items():
        torch.testing.assert_close(said[f"{kind} judge"], -on_real.log().mean() - (1 - on_fake).log().mean())
    fooled = -sum(on_fresh.log().mean() for _, _, on_fresh in judged.values())
    torch.testing.assert_close(said["generator"], fooled)
    for optimizer in vgkernels_models.create("mocogan").optimizers().values():
        assert isinstance(optimizer, torch.optim.Adam)
        wanted = {"lr": 2e-4, "betas": (0.5, 0.999), "weight_decay": 1e-5}
        assert {name: optimizer.defaults[name] for name in wanted} == wanted


def test_who_learns_from_whom() -> None:
    """D_V's loss moves R_M; D_I's reaches it too; the judges' updates leave the generator alone."""
    model = tiny().train()
    latents = model.latents(3, 16, None, None)
    on_clips = model.video_judge(model.generator.clips(latents))[0].sum()
    assert model.image_judge
    on_frames = model.image_judge(model.single_frames(3))[0].sum()
    for loss in (on_clips, on_frames):
        gradient = torch.autograd.grad(loss, model.generator.recurrent.weight_hh)[0]
        assert gradient.abs().sum() > 0
    alone = tiny(image_judge="none").train()
    step = RecordingStep(alone)
    alone.training_step(clips(alone), step)
    assert step.descents == [("video judge",), ("generator",)]


@pytest.mark.parametrize("info", ["paper", "supervised", "code"])
def test_who_teaches_the_head_of_categories(info: str) -> None:
    """The published command never trains it; InfoGAN does on fakes, supervision on labels."""
    model = tiny(categories=2, info=info, weight_decay=0.0, noise=0.0).train()
    head = model.video_judge.main[-1].weight
    before = head.detach().clone()
    named: list[torch.Tensor] = []
    hook = model.video_judge.register_forward_hook(lambda _, __, answer: named.append(answer[1].detach()))
    batch = clips(model, classes=2)
    said = model.training_step(batch, RecordingStep(model))
    hook.remove()
    if info == "supervised":  # the judge sees what is real first
        torch.testing.assert_close(said["category"], F.cross_entropy(named[0], batch.label))
    assert not torch.equal(head[0], before[0])
    assert torch.equal(head[1:], before[1:]) == (info == "code")
    if info == "supervised":
        with pytest.raises(ValueError, match=r"expected \(4\) labels from 0 to 1, got none"):
            model.training_step(clips(model), RecordingStep(model))


@pytest.mark.parametrize("to", ["image", "motion"])
def test_where_the_category_enters(to: str) -> None:
    model = tiny(categories=2, category_to=to).eval()
    assert model.generator.recurrent.input_size == (5 if to == "motion" else 3)
    assert model.generator.main[0].in_channels == (9 if to == "motion" else 11)
    path = [model.latents(1, 4, torch.Generator().manual_seed(2), torch.tensor([c])).motion for c in (0, 1)]
    assert torch.equal(*path) == (to == "image")
    first, second = (model.sample(1, condition=torch.tensor([c])) for c in (0, 1))
    assert not torch.equal(first, second)


def test_any_length() -> None:
    model = tiny()
    for length in (1, 16, 40):
        assert model.sample(2, length=length).shape == (2, 3, length, 32, 32)


def test_rows_share_content_and_columns_motion() -> None:
    model = tiny().eval()
    panel = model.panels(clips(model), torch.Generator().manual_seed(0))[0]
    assert panel.clips.shape == (4, 5, 3, 16, 32, 32)
    generator = torch.Generator().manual_seed(0)
    rows, columns = model.latents(4, 1, generator, None), model.latents(5, 16, generator, None)
    mixed = model.generator.clips(columns._replace(content=rows.content[2:3].expand(5, -1)))
    torch.testing.assert_close(panel.clips[2], mixed)


def test_noise_is_on_in_evaluation_too() -> None:
    layer = Noise(0.1).eval()
    assert layer(torch.zeros(1000)).std().item() == pytest.approx(0.1, rel=0.2)
    assert not Noise(0.0)(torch.zeros(10)).any()


def test_legacy_norm() -> None:
    gammas = torch.cat([m.weight for m in tiny(legacy_norm=True).modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= gammas.min() < gammas.max() <= 1
    assert gammas.std() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, r"expected size to be 16, 32, 64, ... pixels, got 48"),
        ({"frames": 9}, "expected frames to be at least 10 at this size, got 9"),
        ({"categories": 2, "video_judge": "patch"}, "patches have no head"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
    with pytest.raises(ValueError, match="takes no condition"):
        tiny().sample(1, condition=torch.tensor([0]))
