"""TGAN against the specification: layers, counts, initialisation, the order of the update, what holds the critic."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from video_models import RecordingStep, clips, count, parameters_of, shapes

import vgkernels_models
from vgkernels_models.tgan import TGAN, batch_norm, in_our_range

CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.Linear)


def tiny(**changes) -> TGAN:
    torch.manual_seed(0)
    small = {"temporal_channels": (16, 8, 8, 8), "image_channels": 32, "critic_channels": 4, "z_slow": 6, "z_fast": 5}
    model = vgkernels_models.create("tgan", "tiny", **{**small, **changes})
    assert isinstance(model, TGAN)
    return model


@pytest.mark.parametrize(
    ("channels", "generators", "critic"), [(1, (825_444, 3_622_113), 11_024_257), (3, (825_444, 3_622_691), 11_032_449)]
)
def test_the_papers_layers(channels: int, generators: tuple[int, int], critic: int) -> None:
    model = vgkernels_models.create("tgan", channels=channels)
    assert isinstance(model, TGAN)
    assert (count(model.fsgen), count(model.vgen)) == generators
    assert count(model.vdis) == critic - 64  # the code has a batch norm of 64 gammas that it never calls
    assert shapes(model.fsgen, torch.zeros(2, 100), only=CONVOLUTIONS) == {
        "dc0": (512, 1),
        "dc1": (256, 2),
        "dc2": (128, 4),
        "dc3": (128, 8),
        "dc4": (100, 16),
    }
    assert shapes(model.vgen, torch.zeros(2, 100), torch.zeros(2, 100), only=CONVOLUTIONS) == {
        "l0s": (4096,),
        "l0f": (4096,),
        "dc1": (256, 8, 8),
        "dc2": (128, 16, 16),
        "dc3": (64, 32, 32),
        "dc4": (32, 64, 64),
        "dc5": (channels, 64, 64),
    }
    assert shapes(model.vdis, torch.zeros(1, channels, 16, 64, 64), only=CONVOLUTIONS) == {
        "c0": (64, 8, 32, 32),
        "c1": (128, 4, 16, 16),
        "c2": (256, 2, 8, 8),
        "c3": (512, 1, 4, 4),
        "c4": (1, 1, 1),
    }
    biased = {
        name for name, layer in model.vgen.named_modules() if isinstance(layer, CONVOLUTIONS) and layer.bias is not None
    }
    assert biased == {"dc5"}
    norms = {
        name: layer.eps for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    assert set(norms.values()) == {2e-5}
    parameters = dict(model.named_parameters())
    assert not [n for n in norms if n.startswith(("fsgen", "vdis")) and f"{n}.bias" in parameters]  # no beta
    assert all(f"{n}.bias" in parameters for n in norms if n.startswith("vgen"))


def test_generators_equal_the_formula() -> None:
    """The whole way from z_0 to a clip, written out once more with F alone."""
    model = tiny(channels=1).train()
    z = torch.rand(3, 6) * 2 - 1
    state = dict(model.named_parameters()) | dict(model.named_buffers())

    def normalised(h: Tensor, name: str) -> Tensor:
        axes = [0, *range(2, h.ndim)]
        mean, var = h.mean(axes, keepdim=True), h.var(axes, unbiased=False, keepdim=True)
        shape = (1, -1, *[1] * (h.ndim - 2))
        return (h - mean) / (var + 2e-5).sqrt() * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(
            shape
        )

    h = F.conv_transpose1d(z[:, :, None], state["fsgen.dc0.weight"], state["fsgen.dc0.bias"])
    for i in range(1, 5):
        h = F.relu(normalised(h, f"fsgen.bn{i - 1}"))
        h = F.conv_transpose1d(h, state[f"fsgen.dc{i}.weight"], state[f"fsgen.dc{i}.bias"], 2, 1)
    fast = h.tanh()  # (3, 5, 16)
    rows = [(z[b], fast[b, :, t]) for b in range(3) for t in range(16)]
    slow = F.relu(normalised(torch.stack([a for a, _ in rows]) @ state["vgen.l0s.weight"].T, "vgen.bn0s"))
    quick = F.relu(normalised(torch.stack([b for _, b in rows]) @ state["vgen.l0f.weight"].T, "vgen.bn0f"))
    h = torch.cat([slow.view(48, 16, 2, 2), quick.view(48, 16, 2, 2)], 1)
    for i in range(1, 5):
        h = F.relu(normalised(F.conv_transpose2d(h, state[f"vgen.dc{i}.weight"], None, 2, 1), f"vgen.bn{i}"))
    frames = F.conv_transpose2d(h, state["vgen.dc5.weight"], state["vgen.dc5.bias"], 1, 1).tanh()
    torch.testing.assert_close(model(z), frames.view(3, 16, 1, 32, 32).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_critic_equals_the_formula() -> None:
    model = tiny(classes=3).train()
    state = dict(model.vdis.named_parameters())
    clip, label = torch.rand(2, 3, 32, 32, 32) * 2 - 1, torch.tensor([2, 0])  # two times after the last 3-D layer
    labels = torch.stack([torch.ones(2, 32, 32, 32) * (label == k)[:, None, None, None] for k in range(3)], 1)
    h = torch.cat([clip, labels], 1)
    for i in range(4):
        h = F.conv3d(h, state[f"c{i}.weight"], state[f"c{i}.bias"], 2, 1)
        if i > 0:
            mean, var = h.mean((0, 2, 3, 4), keepdim=True), h.var((0, 2, 3, 4), unbiased=False, keepdim=True)
            h = (h - mean) / (var + 2e-5).sqrt() * state[f"bn{i}.weight"][:, None, None, None]
        h = torch.where(h > 0, h, 0.2 * h)
    seconds = [F.conv2d(h[:, :, t], state["c4.weight"], state["c4.bias"]).view(2) for t in range(h.shape[2])]
    expected = torch.stack(seconds).mean(0)
    torch.testing.assert_close(model.judge(clip, model.one_hot(label, 2)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("initialisation", ["ucf", "uniform", "lecun"])
def test_initialisation(initialisation: str) -> None:
    torch.manual_seed(0)
    model = vgkernels_models.create("tgan", initialisation=initialisation)
    for name, layer in model.named_modules():
        if not isinstance(layer, CONVOLUTIONS):
            continue
        weight = layer.weight
        if initialisation == "uniform" or (initialisation == "ucf" and name.startswith("vgen")):
            assert weight.abs().max() <= 0.01
            assert weight.std().item() == pytest.approx(0.02 / math.sqrt(12), rel=0.1)
        else:
            assert weight.std().item() == pytest.approx(weight[0].numel() ** -0.5, rel=0.1)
        assert layer.bias is None or not layer.bias.any()


def test_all_gradients_are_taken_at_the_same_weights() -> None:
    """One step equals the losses' gradients at the weights before it, each part by its own."""
    for optimizer in vgkernels_models.create("tgan").optimizers().values():
        assert isinstance(optimizer, torch.optim.RMSprop)
        assert (optimizer.defaults["lr"], optimizer.defaults["alpha"]) == (5e-5, 0.99)
    model, twin = tiny(constraint="none").train(), tiny(constraint="none").train()
    batch = clips(model)
    torch.manual_seed(7)
    step = RecordingStep(model)
    said = model.training_step(batch, step)
    assert step.descents == [("temporal generator", "image generator", "critic")]

    torch.manual_seed(7)
    real = (batch.video * 127.5 - 0.5) / 128
    fake = twin(torch.rand(4, 6) * 2 - 1)
    on_fake, on_real = twin.vdis(fake), twin.vdis(real)
    torch.testing.assert_close(said["generator"], -on_fake.mean())
    torch.testing.assert_close(said["critic"], on_fake.mean() - on_real.mean())
    for name, loss in (("image generator", -on_fake.mean()), ("critic", on_fake.mean() - on_real.mean())):
        optimizer = twin.optimizers()[name]
        for parameter in parameters_of(optimizer):
            parameter.grad = torch.autograd.grad(loss, parameter, retain_graph=True)[0]
        optimizer.step()
    for part in ("vgen", "vdis"):
        for (name, ours), theirs in zip(
            model.get_submodule(part).named_parameters(), twin.get_submodule(part).parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_svc_at_every_fifth_update() -> None:
    model = tiny(svc_every=5)
    with torch.no_grad():
        for layer in (model.vdis.c0, model.vdis.get_submodule("c2")):
            layer.weight.mul_(30)
    for number in range(5):
        step = RecordingStep(model, number)
        model.constrain(step)
        largest = torch.linalg.matrix_norm(model.vdis.c0.weight.flatten(1), 2).item()
        assert (largest <= 1 + 1e-4) == (number == 4)
        assert (step.averaged > 0) == (number == 4)  # gamma's bound is the same on all ranks


def test_weight_clipping_and_the_normal_gan() -> None:
    settings = {"constraint": "clip", "clip": 0.02, "loss": "gan"}
    model, twin = tiny(**settings, noise=0.0).train(), tiny(**settings, noise=0.0).train()
    for each in (model, twin):
        with torch.no_grad():
            each.vdis.c0.weight.fill_(3.0)
    batch = clips(model)
    torch.manual_seed(7)
    said = model.training_step(batch, RecordingStep(model))
    assert max(parameter.abs().max().item() for parameter in model.vdis.parameters()) <= 0.02 + 1e-7
    torch.manual_seed(7)
    on_fake = twin.vdis(twin(torch.rand(4, 6) * 2 - 1)).sigmoid()
    on_real = twin.vdis((batch.video * 127.5 - 0.5) / 128).sigmoid()
    torch.testing.assert_close(said["generator"], -on_fake.log().mean())
    torch.testing.assert_close(said["critic"], -(1 - on_fake).log().mean() - on_real.log().mean())
    model = tiny(**settings).train()
    h = torch.zeros(2, 3)
    assert model.vdis.activate(h).any()  # noise before activations, in training only
    assert not model.eval().vdis.activate(h).any()


def test_labels_reach_all_three_parts() -> None:
    model = tiny(classes=3).train()
    assert model.fsgen.dc0.in_channels == model.vgen.l0s.in_features == 9
    assert model.vdis.c0.in_channels == 6
    model.training_step(clips(model, classes=3), RecordingStep(model))
    one, other = (model.sample(2, condition=torch.tensor(classes)) for classes in ([0, 1], [0, 2]))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    for wrong in (None, torch.tensor([0, 3]), torch.tensor([[0], [1]])):
        with pytest.raises(ValueError, match=r"expected \(2\) labels from 0 to 2, got"):
            model.sample(2, condition=wrong)


def test_interpolation_passes_through_the_frames() -> None:
    model = tiny().eval()
    dense = model.interpolate(2, between=3, seed=5)
    assert dense.shape == (2, 3, 61, 32, 32)
    torch.testing.assert_close(dense[:, :, ::4], model.sample(2, seed=5), atol=1e-5, rtol=1e-5)


def test_range() -> None:
    """Bytes go to the authors' (x - 128) / 128 and come back."""
    level = torch.arange(256.0)
    torch.testing.assert_close(in_our_range((level - 128) / 128), level / 127.5 - 1)
    assert in_our_range(torch.tensor(1.0)) == 1  # 256 is clamped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 40}, "expected size to be a multiple of 16 pixels, got 40"),
        ({"frames": 8}, r"expected frames = 2\^len\(temporal_channels\) = 16, a multiple of 16, got 8"),
        ({"temporal_channels": (8, 8, 8)}, "= 8, a multiple of 16, got 16"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_no_beta_is_no_parameter() -> None:
    layer = batch_norm(nn.BatchNorm2d, 4, beta=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert "bias" in layer.state_dict()


def test_panels_of_a_few_clips() -> None:
    model = tiny(classes=3).eval()
    batch = clips(model, classes=3)[:2]
    with torch.no_grad():
        assert model.panels(batch, torch.Generator())[0].clips.shape[1] == 2
