"""VGAN against the specification: layers, counts, the blend, losses, order of the update, conditional variant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from video_models import RecordingStep, clips, count, shapes

import vgkernels_models
from vgkernels_models.vgan import VGAN

CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def tiny(**changes) -> VGAN:
    torch.manual_seed(0)
    model = vgkernels_models.create("vgan", "tiny", **{"width": 4, "z": 6, **changes})
    assert isinstance(model, VGAN)
    return model


def test_the_papers_layers() -> None:
    model = vgkernels_models.create("vgan")
    assert isinstance(model, VGAN)
    assert (count(model.video.fg), count(model.video.mask)) == (12_291, 4_097)
    assert count(model.video) == 12_651_328 + 12_291 + 4_097
    assert (count(model.static), count(model.discriminator)) == (3_577_667, 11_057_858)
    assert shapes(model.video, torch.zeros(1, 100, 1, 1), only=CONVOLUTIONS) == {
        "deconv1": (512, 2, 4, 4),
        "deconv2": (256, 4, 8, 8),
        "deconv3": (128, 8, 16, 16),
        "deconv4": (64, 16, 32, 32),
        "fg": (3, 32, 64, 64),
        "mask": (1, 32, 64, 64),
    }
    assert shapes(model.static, torch.zeros(2, 100, 1, 1), only=CONVOLUTIONS) == {
        "deconv1": (512, 4, 4),
        "deconv2": (256, 8, 8),
        "deconv3": (128, 16, 16),
        "deconv4": (64, 32, 32),
        "deconv5": (3, 64, 64),
    }
    assert shapes(model.discriminator, torch.zeros(1, 3, 32, 64, 64), only=CONVOLUTIONS) == {
        "conv1": (64, 16, 32, 32),
        "conv2": (128, 8, 16, 16),
        "conv3": (256, 4, 8, 8),
        "conv4": (512, 2, 4, 4),
        "conv5": (2, 1, 1, 1),
    }
    eps = {name: layer.eps for name, layer in model.named_modules() if hasattr(layer, "running_var")}
    assert {name.split(".")[0]: value for name, value in eps.items()} == {
        "video": 1e-5,
        "static": 1e-5,
        "discriminator": 1e-3,
    }
    assert not [name for name in eps if name.startswith("discriminator.bn1")]
    one = vgkernels_models.create("vgan", two_stream=False)
    assert count(one) - count(one.get_submodule("discriminator")) == 12_663_619


def test_the_conditional_variant() -> None:
    model = vgkernels_models.create("vgan", conditional=True)
    assert isinstance(model, VGAN)
    assert count(model.encoder, model.static, model.video) == 68_216_455
    assert count(model.discriminator) == 44_135_810
    assert shapes(model.video, torch.zeros(1, 1024, 4, 4), only=CONVOLUTIONS)["deconv1"] == (1024, 2, 4, 4)

    model = tiny(conditional=True).train()
    batch = clips(model)
    said = model.training_step(batch, RecordingStep(model))
    assert set(said) == {"discriminator", "generator", "first frame"}  # no sparsity term
    first = batch.video[:2, :, 0]
    made = model.sample(2, condition=first)
    assert made.shape == (2, 3, 16, 32, 32)
    assert not torch.equal(made, model.sample(2, condition=first.flip(0)))
    with pytest.raises(ValueError, match=r"expected first frames \(2, 3, 32, 32\), got None"):
        model.sample(2)
    with pytest.raises(ValueError, match="takes no condition"):
        tiny().sample(2, condition=first)


def test_the_first_frames_error_has_its_weight() -> None:
    gradients = []
    for weight in (10.0, 0.0):
        twin = tiny(conditional=True, first_frame=weight).train()
        batch = clips(twin)
        twin.training_step(batch, RecordingStep(twin))
        gradients.append(twin.video.fg.weight.grad.clone())
    twin, first = tiny(conditional=True).train(), batch.video[:, :, 0]
    error = (twin.parts(twin.code(len(batch), None, first))["clip"][:, :, 0] - first).abs().mean()
    expected = torch.autograd.grad(10 * error, twin.video.fg.weight)[0]
    torch.testing.assert_close(gradients[0] - gradients[1], expected, atol=1e-6, rtol=1e-3)


def test_the_blend_and_its_range() -> None:
    model = tiny().train()
    parts = model.parts(model.code(3, None, None))
    still = parts["background"][:, :, None]
    blend = parts["mask"] * parts["foreground"] + (1 - parts["mask"]) * still
    torch.testing.assert_close(parts["clip"], blend, atol=1e-6, rtol=0)
    assert parts["clip"].shape == parts["foreground"].shape == (3, 3, 16, 32, 32)
    assert parts["mask"].shape == (3, 1, 16, 32, 32)
    assert parts["mask"].mean().item() == pytest.approx(0.5, abs=0.05)  # small weights: half of each at the start
    assert set(tiny(two_stream=False).parts(torch.zeros(1, 6, 1, 1))) == {"clip"}


def test_streams_and_judge_equal_the_formula() -> None:
    model = tiny(initial_std=0.2).eval()  # the logits are far from 0
    z = torch.randn(2, 6, 1, 1)
    at = model.get_parameter
    h = z[:, :, None]
    for i, (stride, padding) in enumerate([(1, 0), (2, 1), (2, 1)], 1):
        norm = model.video.get_submodule(f"bn{i}")
        h = F.conv_transpose3d(h, at(f"video.deconv{i}.weight"), at(f"video.deconv{i}.bias"), stride, padding)
        h = F.relu(F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5))
    parts = model.parts(z)
    for name, squash in (("fg", torch.tanh), ("mask", torch.sigmoid)):
        out = squash(F.conv_transpose3d(h, at(f"video.{name}.weight"), at(f"video.{name}.bias"), 2, 1))
        torch.testing.assert_close(parts[{"fg": "foreground"}.get(name, name)], out, atol=1e-5, rtol=1e-5)
    h = parts["clip"]
    for i in range(1, 4):
        h = F.conv3d(h, at(f"discriminator.conv{i}.weight"), at(f"discriminator.conv{i}.bias"), 2, 1)
        if i > 1:
            norm = model.discriminator.get_submodule(f"bn{i}")
            h = F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)
        h = torch.where(h > 0, h, 0.2 * h)
    logits = F.conv3d(h, at("discriminator.conv4.weight"), at("discriminator.conv4.bias"))
    torch.testing.assert_close(model.discriminator(parts["clip"]), logits.view(2, 2), atol=1e-5, rtol=1e-5)


def test_initialisation() -> None:
    model = vgkernels_models.create("vgan", width=32)
    weights = [layer.weight.flatten() for layer in model.modules() if isinstance(layer, CONVOLUTIONS)]
    assert torch.cat(weights).std().item() == pytest.approx(0.01, rel=0.02)
    gammas = torch.cat([layer.weight for layer in model.modules() if hasattr(layer, "running_var")])
    assert gammas.mean().item() == pytest.approx(1, abs=0.005)
    assert gammas.std().item() == pytest.approx(0.02, rel=0.2)


def test_losses_and_order() -> None:
    """D first; then G is judged by the new D, on the same z; the penalty is a mean."""
    for optimizer in vgkernels_models.create("vgan").optimizers().values():
        assert isinstance(optimizer, torch.optim.Adam)
        assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (2e-4, (0.5, 0.999))
    model = tiny().train()
    batch = clips(model)
    before = model.discriminator.get_parameter("conv1.weight").clone()
    judgements: list[torch.Tensor] = []
    at_call: list[torch.Tensor] = []

    def keep(judge: nn.Module, _: object, logits: torch.Tensor) -> None:
        judgements.append(logits)
        at_call.append(judge.get_parameter("conv1.weight").clone())

    hook = model.discriminator.register_forward_hook(keep)
    step = RecordingStep(model)
    said = model.training_step(batch, step)
    hook.remove()
    assert step.descents == [("discriminator",), ("generator",)]
    real, fake, again = judgements  # logits: class 0 is real
    expected = -(real.log_softmax(1)[:, 0].mean() + fake.log_softmax(1)[:, 1].mean())
    torch.testing.assert_close(said["discriminator"], expected)
    torch.testing.assert_close(said["generator"], -again.log_softmax(1)[:, 0].mean())
    assert torch.equal(at_call[1], before)
    assert not torch.equal(at_call[2], before)

    doubled, plain = tiny(sparsity=0.2).train(), tiny(sparsity=0.0).train()
    gradients = []
    for twin in (doubled, plain):
        torch.manual_seed(3)
        twin.training_step(batch, RecordingStep(twin))
        gradients.append(twin.video.mask.weight.grad.clone())
    torch.manual_seed(3)
    twin = tiny().train()
    torch.manual_seed(3)
    mask = twin.parts(twin.code(len(batch), None, None))["mask"]
    penalty = torch.autograd.grad(0.2 * mask.sum() / mask.numel(), twin.video.mask.weight)[0]
    torch.testing.assert_close(gradients[0] - gradients[1], penalty, atol=1e-6, rtol=1e-3)


def test_features_are_what_the_last_layer_sees() -> None:
    model = tiny().eval()
    video = clips(model).video
    features = model.discriminator.features(video)
    assert features.shape == (4, 16, 2, 4, 4)
    torch.testing.assert_close(model.discriminator.conv4(features).flatten(1), model.discriminator(video))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48, "frames": 24}, r"expected size to be 8, 16, 32, ... pixels, got 48"),
        ({"frames": 32}, r"expected frames = size / 2 = 16, got 32"),
        ({"conditional": True, "two_stream": False}, "expected two_stream where conditional is set"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
    with pytest.raises(ValueError, match="makes no others, got length = 8"):
        tiny().sample(1, length=8)


def test_panels_of_a_few_clips() -> None:
    model = tiny(conditional=True).eval()
    batch = clips(model)[:2]
    with torch.no_grad():
        assert model.panels(batch, torch.Generator())[0].clips.shape[1] == 2
