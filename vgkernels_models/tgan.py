"""TGAN: temporal generative adversarial net with singular value clipping.

Saito, Matsumoto, Saito, ICCV 2017, arXiv 1611.06624; the authors' code is pfnet-research/tgan.

    [z_1^1, ..., z_1^T] = G_0(z_0),   x^t = G_1(z_0, z_1^t)
    min over G_0, G_1, max over 1-Lipschitz D of  E[D(x^1..x^T)] - E_z0[D(G_1(z_0, z_1^1), ..., G_1(z_0, z_1^T))]

A temporal generator turns one vector into T, an image generator each of them into a frame, a 3-D critic judges the
clip. The critic is held to be 1-Lipschitz by the op that this paper needs, `vgkernels.SingularValueClipping`: after
every fifth update each layer's singular values are clipped to 1, and batch norm's gamma to [0.01 s, s], s =
sqrt(running_var).

Faithful: layers, initialisation, losses, update order (all gradients at the same weights, fakes judged first), cadence
of the clipping, range (x - 128) / 128 of real bytes. Where paper and code differ, the code is followed: no batch norm
after the critic's first layer, no beta in G_0 and D. Ours: frame sizes other than 64, which change the 4 x 4 start of
G_1 and the last kernel of D; the mean of T / 16 judgements where the code sums them; and the conditional variant, which
the code lacks, after the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgkernels import SingularValueClipping
from vgkernels_models.data.batch import Batch
from vgkernels_models.model import ModelConfig, Panel, Step, VideoModel


@dataclass
class TGANConfig(ModelConfig):
    """The defaults are the paper's UCF-101 run."""

    data: str = "moving-digits"  # what is learnt: a folder of videos, an installed clip or a generator
    z_slow: int = 100  # dimension of z_0, one a clip
    z_fast: int = 100  # dimension of z_1^t, one a frame
    temporal_channels: tuple[int, ...] = (512, 256, 128, 128)  # widths of G_0; every layer but the first doubles T
    image_channels: int = 512  # widest layer of G_1, halved at each of four layers
    critic_channels: int = 64  # narrowest layer of D, doubled at each of three layers
    classes: int = 0  # of the conditional variant: labels enter G_0, G_1 and D; 0 leaves them out
    loss: Literal["wasserstein", "gan"] = "wasserstein"  # "gan": the paper's "normal GAN", with constraint = "none"
    constraint: Literal["svc", "clip", "none"] = "svc"  # how D is held: singular values, or all weights, are clipped
    svc_every: int = 5  # updates between two singular value clippings
    clip: float = 0.01  # largest weight under constraint = "clip", after every update
    noise: float = 0.3  # standard deviation before each activation of D under loss = "gan"
    learning_rate: float = 5e-5  # of RMSprop, alpha = 0.99
    initialisation: Literal["ucf", "uniform", "lecun"] = "ucf"  # "ucf": U(-0.01, 0.01) in G_1, else LeCun's normal

    LEAST: ClassVar[Mapping[str, int]] = {
        **ModelConfig.LEAST,
        **dict.fromkeys(("z_slow", "z_fast", "temporal_channels", "critic_channels", "svc_every"), 1),
        "image_channels": 16,
        "batch_size": 2,
    }
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "temporal_channels": (256, 128, 64, 64),
            "image_channels": 256,
            "critic_channels": 32,
            "learning_rate": 2e-4,
            "initialisation": "lecun",
            "steps": 5_000,
        },
        "tiny": {
            "data": "shape-motion",
            "stride": 2,
            "size": 32,
            "z_slow": 32,
            "z_fast": 32,
            "temporal_channels": (128, 64, 32, 32),
            "image_channels": 128,
            "critic_channels": 32,
            "svc_every": 1,  # at this rate five updates lead too far from the bound
            "learning_rate": 1e-3,
            "decay": 0.5,
            "initialisation": "lecun",
            "batch_size": 16,
            "steps": 1_250,
        },
    }


def batch_norm(kind: type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d], channels: int, beta: bool) -> nn.Module:
    """Chainer's batch norm; without beta its place is held by zeros that no optimizer sees."""
    layer = kind(channels, eps=2e-5)
    if not beta:
        del layer.bias
        layer.register_buffer("bias", torch.zeros(channels))
    return layer


class TemporalGenerator(nn.Module):
    """G_0: z_0 to z_1^1 .. z_1^T by 1-D deconvolutions."""

    def __init__(self, config: TGANConfig) -> None:
        super().__init__()
        widths = config.temporal_channels
        self.dc0 = nn.ConvTranspose1d(config.z_slow + config.classes, widths[0], 1)
        self.bn0 = batch_norm(nn.BatchNorm1d, widths[0], beta=False)
        self.doublings = len(widths)
        for i, (narrow, wide) in enumerate(zip([*widths[1:], config.z_fast], widths, strict=True), 1):
            self.add_module(f"dc{i}", nn.ConvTranspose1d(wide, narrow, 4, 2, 1))
            if i < len(widths):
                self.add_module(f"bn{i}", batch_norm(nn.BatchNorm1d, narrow, beta=False))

    def forward(self, z_slow: Tensor) -> Tensor:
        h = F.relu(self.bn0(self.dc0(z_slow[:, :, None])))  # (B, 512, 1)
        for i in range(1, self.doublings):
            h = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"dc{i}")(h)))  # (B, ..., 2^i)
        return torch.tanh(self.get_submodule(f"dc{self.doublings}")(h))  # (B, z_fast, T)


class ImageGenerator(nn.Module):
    """G_1: z_0 and z_1^t to frame t, for N = B T frames at once."""

    def __init__(self, config: TGANConfig) -> None:
        super().__init__()
        width, self.start = config.image_channels, config.size // 16
        features = width // 2 * self.start**2
        self.l0s = nn.Linear(config.z_slow + config.classes, features, bias=False)
        self.l0f = nn.Linear(config.z_fast, features, bias=False)
        self.bn0s, self.bn0f = nn.BatchNorm1d(features, eps=2e-5), nn.BatchNorm1d(features, eps=2e-5)
        for i in range(1, 5):
            self.add_module(f"dc{i}", nn.ConvTranspose2d(width >> (i - 1), width >> i, 4, 2, 1, bias=False))
            self.add_module(f"bn{i}", batch_norm(nn.BatchNorm2d, width >> i, beta=True))
        self.dc5 = nn.ConvTranspose2d(width >> 4, config.channels, 3, 1, 1)

    def forward(self, z_slow: Tensor, z_fast: Tensor) -> Tensor:
        slow, fast = F.relu(self.bn0s(self.l0s(z_slow))), F.relu(self.bn0f(self.l0f(z_fast)))  # (N, 256 * 4 * 4)
        h = torch.cat([slow, fast], 1).unflatten(1, (-1, self.start, self.start))
        h = h.contiguous(memory_format=torch.channels_last)  # three times as fast with few channels
        for i in range(1, 5):
            h = F.relu(
                self.get_submodule(f"bn{i}")(self.get_submodule(f"dc{i}")(h))
            )  # (N, 512 / 2^i, 4 * 2^i, 4 * 2^i)
        return torch.tanh(self.dc5(h))  # (N, C, H, W)


class Critic(nn.Module):
    """D: a clip to one number, by 3-D convolutions; a batch of clips (B, C, T, H, W) to (B)."""

    def __init__(self, config: TGANConfig) -> None:
        super().__init__()
        width = config.critic_channels
        self.noise = config.noise if config.loss == "gan" else 0.0
        self.c0 = nn.Conv3d(config.channels + config.classes, width, 4, 2, 1)
        for i in range(1, 4):
            self.add_module(f"c{i}", nn.Conv3d(width << (i - 1), width << i, 4, 2, 1))
            self.add_module(f"bn{i}", batch_norm(nn.BatchNorm3d, width << i, beta=False))
        self.c4 = nn.Conv2d(width << 3, 1, config.size // 16)
        self.activation = nn.LeakyReLU(0.2)

    def activate(self, h: Tensor) -> Tensor:
        if self.noise and self.training:
            h = h + self.noise * torch.randn_like(h)
        return self.activation(h)

    def forward(self, clip: Tensor) -> Tensor:
        h = self.activate(self.c0(clip))  # (B, 64, T / 2, 32, 32)
        for i in range(1, 4):
            h = self.activate(self.get_submodule(f"bn{i}")(self.get_submodule(f"c{i}")(h)))
        merged = h.transpose(1, 2).flatten(0, 1)  # (B, 512, T / 16, 4, 4) to (B T / 16, 512, 4, 4)
        return self.c4(merged).view(len(clip), -1).mean(1)  # (B)


class TGAN(VideoModel):
    """Clips of `frames` frames from U(-1, 1) noise. `condition` of `sample`, where `classes` > 0: (n) class indices."""

    Config = TGANConfig
    config: TGANConfig

    def __init__(self, config: TGANConfig) -> None:
        super().__init__()
        if config.size % 16 or config.size < 16:
            raise ValueError(f"TGAN: expected size to be a multiple of 16 pixels, got {config.size}")
        length = 2 ** len(config.temporal_channels)
        if config.frames != length or length % 16:
            raise ValueError(
                f"TGAN: expected frames = 2^len(temporal_channels) = {length}, a multiple of 16, got {config.frames}"
            )
        self.config = config
        self.fsgen, self.vgen, self.vdis = TemporalGenerator(config), ImageGenerator(config), Critic(config)
        self.initialise()
        self.singular_values = SingularValueClipping(self.vdis, every=1) if config.constraint == "svc" else None

    @torch.no_grad()
    def initialise(self) -> None:
        """Weights of all layers but batch norms by `config.initialisation`; biases 0."""
        uniform: dict[str, list[nn.Module]] = {
            "ucf": [self.vgen],
            "uniform": [self.fsgen, self.vgen, self.vdis],
            "lecun": [],
        }
        for part in (self.fsgen, self.vgen, self.vdis):
            for layer in part.modules():
                if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                    continue
                if part in uniform[self.config.initialisation]:
                    nn.init.uniform_(layer.weight, -0.01, 0.01)
                else:  # Chainer counts fan_in on the second axis, for deconvolutions too
                    nn.init.normal_(layer.weight, std=math.sqrt(1 / layer.weight[0].numel()))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        parts = {"temporal generator": self.fsgen, "image generator": self.vgen, "critic": self.vdis}
        rate = self.config.learning_rate
        return {name: torch.optim.RMSprop(part.parameters(), lr=rate, alpha=0.99) for name, part in parts.items()}

    def training_step(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        labels = self.one_hot(batch.label, len(batch))
        real = (batch.video * 127.5 - 0.5) / 128  # bytes as (x - 128) / 128
        fake = self(self.noise(len(batch), None), labels)
        judged_fake, judged_real = self.judge(fake, labels), self.judge(real, labels)  # fakes first, apart

        if self.config.loss == "wasserstein":
            generator_loss = -judged_fake.mean()
            critic_loss = judged_fake.mean() - judged_real.mean()
        else:
            generator_loss = F.softplus(-judged_fake).mean()
            critic_loss = F.softplus(judged_fake).mean() + F.softplus(-judged_real).mean()
        step.descend({"temporal generator": generator_loss, "image generator": generator_loss, "critic": critic_loss})
        self.constrain(step)
        return {"generator": generator_loss, "critic": critic_loss}

    @torch.no_grad()
    def constrain(self, step: Step) -> None:
        """Holds D after its update."""
        if self.singular_values and (step.number + 1) % self.config.svc_every == 0:
            step.average(self.vdis.buffers())  # gamma's bound is the running variance
            self.singular_values.step()
        elif self.config.constraint == "clip":
            for parameter in self.vdis.parameters():
                parameter.clamp_(-self.config.clip, self.config.clip)

    def forward(self, z_slow: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise (B, z_slow), labels (B, classes) to clips (B, C, T, H, W) in the authors' range."""
        z_slow = z_slow if labels is None else torch.cat([z_slow, labels], 1)
        return self.decode(z_slow, self.fsgen(z_slow))

    def decode(self, z_slow: Tensor, z_fast: Tensor) -> Tensor:
        """G_1 on every column of z_fast (B, z_fast, K), which may lie between those of G_0: (B, C, K, H, W)."""
        length = z_fast.shape[2]
        frames = self.vgen(z_slow.repeat_interleave(length, 0), z_fast.transpose(1, 2).flatten(0, 1))  # (B K, C, H, W)
        return frames.unflatten(0, (-1, length)).transpose(1, 2)

    def judge(self, clip: Tensor, labels: Tensor | None) -> Tensor:
        """D on clips, with the labels as constant channels: (B)."""
        if labels is not None:
            clip = torch.cat([clip, labels[:, :, None, None, None].expand(-1, -1, *clip.shape[2:])], 1)
        return self.vdis(clip)

    def noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        return (torch.rand(n, self.config.z_slow, generator=generator) * 2 - 1).to(self.device)

    def one_hot(self, label: Tensor | None, n: int) -> Tensor | None:
        if self.config.classes == 0:
            return None
        if label is None or label.shape != (n,) or not 0 <= int(label.min()) <= int(label.max()) < self.config.classes:
            came = "none" if label is None else f"{tuple(label.shape)} from {label.min()} to {label.max()}"
            raise ValueError(f"TGAN: expected ({n}) labels from 0 to {self.config.classes - 1}, got {came}")
        return F.one_hot(label, self.config.classes).to(self.device, torch.float32)

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        self.fixed_length(length)
        return in_our_range(self(self.noise(n, generator), self.one_hot(condition, n)))

    @torch.no_grad()
    def interpolate(self, n: int, between: int = 3, seed: int = 0, condition: Tensor | None = None) -> Tensor:
        """Clips with `between` frames inserted after each but the last: z_1^t interpolated linearly, at the same z_0.

        Returns:
            (n, C, (T - 1) (between + 1) + 1, H, W) in [-1, 1], in the present mode's batch norm.
        """
        labels = self.one_hot(condition, n)
        z_slow = self.noise(n, torch.Generator().manual_seed(seed))
        z_slow = z_slow if labels is None else torch.cat([z_slow, labels], 1)
        frames = (self.config.frames - 1) * (between + 1) + 1
        z_fast = F.interpolate(self.fsgen(z_slow), frames, mode="linear", align_corners=True)
        return in_our_range(self.decode(z_slow, z_fast))

    def condition(self, batch: Batch) -> Tensor | None:
        return batch.label if self.config.classes else None

    def panels(self, batch: Batch, generator: torch.Generator) -> list[Panel]:
        seed, shown = int(torch.randint(2**31, (), generator=generator)), batch[:6]
        clips = self.interpolate(len(shown), seed=seed, condition=self.condition(shown))
        note = "Three frames between each two, decoded from interpolated z_1: motion should stay smooth."
        return [Panel("Frame interpolation", note, clips[None])]


def in_our_range(clip: Tensor) -> Tensor:
    """The authors' bytes y 128 + 128 as ours, x / 127.5 - 1."""
    return ((clip * 128 + 128) / 127.5 - 1).clamp(-1, 1)
