"""VGAN: generating videos with scene dynamics.

Vondrick, Pirsiavash, Torralba, NIPS 2016, arXiv 1609.02612; the authors' code is cvondrick/videogan.

    two-stream:  G(z) = m(z) * f(z) + (1 - m(z)) * b(z)        one-stream:  G(z) = f(z)

A moving foreground f and its mask m come from 3-D deconvolutions, a still background b from 2-D ones; a 3-D
discriminator tells real from generated clips, and its features serve to recognise actions. The conditional variant has
an encoder of a first frame in place of z and doubled widths, and continues that frame.

Faithful: layers, initialisation, Adam, one D step then one G step on the same z, the sparsity term 0.1 mean(m), the
conditional variant's 10 mean|G(x)_0 - x|. Where paper and code differ the code is followed: the generator's loss does
not saturate, the sparsity term is a mean, and the encoder's maps, not a code, feed the streams. Not reproduced: that
Torch 7 took the generator's gradient through activations from before the discriminator's update. Ours: other sizes,
with 2^k 4 x 4 pixels and 2^k 2 frames, k deconvolutions after the first. No op of vgkernels is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgkernels_models.data.batch import Batch
from vgkernels_models.model import ModelConfig, Panel, Step, VideoModel

REAL, GENERATED = 0, 1  # the discriminator's classes


@dataclass
class VGANConfig(ModelConfig):
    """The defaults are the paper's two-stream model."""

    data: str = "scenes"  # what is learnt: a folder of videos, an installed clip or a generator
    frames: int = 32  # T = 2^k 2, where size = 2^k 4
    batch_size: int = 64  # B, clips of a step; the paper's conditional variant has 32
    steps: int = 100_000  # updates until the end
    z: int = 100  # dimension of the noise
    width: int = 64  # of the last layer before the heads and of D's first; doubled with each layer away from the clip
    two_stream: bool = True  # foreground, mask and background; else one stream
    conditional: bool = False  # continue a first frame: an encoder in place of z, and twice `width` everywhere
    sparsity: float = 0.1  # lambda of the mask's mean (not in the conditional variant)
    first_frame: float = 10.0  # lambda of the first frame's L1 error in the conditional variant
    learning_rate: float = 2e-4  # of Adam, betas = (0.5, 0.999)
    initial_std: float = 0.01  # of all weights of convolutions

    LEAST: ClassVar[Mapping[str, int]] = {**ModelConfig.LEAST, "z": 1, "width": 1}
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {"frames": 16, "size": 32, "stride": 2, "width": 32, "initial_std": 0.02, "steps": 5_000},
        "tiny": {
            "data": "shape-motion",
            "frames": 16,
            "size": 32,
            "stride": 2,
            "width": 16,
            "initial_std": 0.02,
            "batch_size": 16,
            "sparsity": 5.0,
            "learning_rate": 5e-4,
            "decay": 0.5,
            "steps": 2_000,
        },
    }

    @property
    def doublings(self) -> int:
        """k: how often the 4 x 4 pixels of 2 frames are doubled."""
        return (self.size // 4).bit_length() - 1

    @property
    def widths(self) -> list[int]:
        """Channels of the k layers of a stream, from the code towards the clip; 512, 256, 128, 64."""
        width = self.width * (2 if self.conditional else 1)
        return [width << i for i in reversed(range(self.doublings))]


class VideoStream(nn.Module):
    """A code (B, D, 1, h, h) to what the heads see: foreground (B, C, T, H, W) in [-1, 1], mask (B, 1, T, H, W)."""

    def __init__(self, config: VGANConfig, code: int, start: int) -> None:
        super().__init__()
        self.layers = len(config.widths)
        for i, (narrow, wide) in enumerate(zip(config.widths, [code, *config.widths], strict=False), 1):
            first = nn.ConvTranspose3d(wide, narrow, (2, 4 // start, 4 // start))
            self.add_module(f"deconv{i}", first if i == 1 else nn.ConvTranspose3d(wide, narrow, 4, 2, 1))
            self.add_module(f"bn{i}", nn.BatchNorm3d(narrow))
        self.fg = nn.ConvTranspose3d(config.widths[-1], config.channels, 4, 2, 1)
        self.mask = nn.ConvTranspose3d(config.widths[-1], 1, 4, 2, 1) if config.two_stream else None

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        h = code[:, :, None]  # (B, D, 1, h, h)
        for i in range(1, self.layers + 1):
            h = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"deconv{i}")(h)))  # (B, ., 2^i, 2^i 2, 2^i 2)
        return torch.tanh(self.fg(h)), None if self.mask is None else torch.sigmoid(self.mask(h))


class StaticStream(nn.Module):
    """A code (B, D, h, h) to the background (B, C, H, W) in [-1, 1]."""

    def __init__(self, config: VGANConfig, code: int, start: int) -> None:
        super().__init__()
        widths = [code, *config.widths] if start == 1 else config.widths
        self.layers = len(widths)
        for i, (wide, narrow) in enumerate(zip(widths, [*widths[1:], config.channels], strict=True), 1):
            first = nn.ConvTranspose2d(wide, narrow, 4)
            self.add_module(f"deconv{i}", first if (start, i) == (1, 1) else nn.ConvTranspose2d(wide, narrow, 4, 2, 1))
            if i < self.layers:
                self.add_module(f"bn{i}", nn.BatchNorm2d(narrow))

    def forward(self, code: Tensor) -> Tensor:
        h = code
        for i in range(1, self.layers):
            h = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"deconv{i}")(h)))
        return torch.tanh(self.get_submodule(f"deconv{self.layers}")(h))


class Encoder(nn.Module):
    """A frame (B, C, H, W) to maps (B, 1024, 4, 4)."""

    def __init__(self, config: VGANConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.layers = len(widths)
        for i, (narrow, wide) in enumerate(zip([config.channels, *widths], widths, strict=False), 1):
            self.add_module(f"conv{i}", nn.Conv2d(narrow, wide, 4, 2, 1))
            self.add_module(f"bn{i}", nn.Identity() if i == 1 else nn.BatchNorm2d(wide, eps=1e-3))

    def forward(self, frame: Tensor) -> Tensor:
        h = frame
        for i in range(1, self.layers + 1):
            h = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(h)))
        return h


class Discriminator(nn.Module):
    """A clip (B, C, T, H, W) to two logits (B, 2): real, generated."""

    def __init__(self, config: VGANConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.layers = len(widths)
        for i, (narrow, wide) in enumerate(zip([config.channels, *widths], widths, strict=False), 1):
            self.add_module(f"conv{i}", nn.Conv3d(narrow, wide, 4, 2, 1))
            self.add_module(f"bn{i}", nn.Identity() if i == 1 else nn.BatchNorm3d(wide, eps=1e-3))
        self.add_module(f"conv{self.layers + 1}", nn.Conv3d(widths[-1], 2, (2, 4, 4)))

    def features(self, clip: Tensor) -> Tensor:
        """What the last layer sees, the article's semantic representation: (B, 512, 2, 4, 4)."""
        h = clip
        for i in range(1, self.layers + 1):
            h = F.leaky_relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(h)), 0.2)
        return h

    def forward(self, clip: Tensor) -> Tensor:
        return self.get_submodule(f"conv{self.layers + 1}")(self.features(clip)).flatten(1)  # (B, 2, 1, 1, 1)


class VGAN(VideoModel):
    """Clips from Gaussian noise, or, if conditional, from `condition`: first frames (n, C, H, W) in [-1, 1]."""

    Config = VGANConfig
    config: VGANConfig

    def __init__(self, config: VGANConfig) -> None:
        super().__init__()
        if config.size != 4 << config.doublings or config.size < 8:
            raise ValueError(f"VGAN: expected size to be 8, 16, 32, ... pixels, got {config.size}")
        if config.frames != config.size // 2:
            raise ValueError(f"VGAN: expected frames = size / 2 = {config.size // 2}, got {config.frames}")
        if config.conditional and not config.two_stream:
            raise ValueError("VGAN: expected two_stream where conditional is set; the paper has no other")
        self.config = config
        code, start = (config.widths[0], 4) if config.conditional else (config.z, 1)
        self.encoder = Encoder(config) if config.conditional else None
        self.video = VideoStream(config, code, start)
        self.static = StaticStream(config, code, start) if config.two_stream else None
        self.discriminator = Discriminator(config)
        for layer in self.modules():
            if isinstance(layer, nn.modules.conv._ConvNd):
                nn.init.normal_(layer.weight, std=config.initial_std)
                nn.init.constant_(layer.get_parameter("bias"), 0.0)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        others = [part for part in (self.encoder, self.video, self.static) if part]
        parts = {
            "discriminator": list(self.discriminator.parameters()),
            "generator": [parameter for part in others for parameter in part.parameters()],
        }
        rate = self.config.learning_rate
        return {name: torch.optim.Adam(part, lr=rate, betas=(0.5, 0.999)) for name, part in parts.items()}

    def training_step(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        real, config = batch.video, self.config
        first = self.condition(batch)
        parts = self.parts(self.code(len(real), None, first))
        fake = parts["clip"]

        judge_loss = judged(self.discriminator(real), REAL) + judged(self.discriminator(fake.detach()), GENERATED)
        step.descend({"discriminator": judge_loss})

        losses = {"discriminator": judge_loss, "generator": judged(self.discriminator(fake), REAL)}
        total = losses["generator"]
        if first is not None:
            losses["first frame"] = (fake[:, :, 0] - first).abs().mean()
            total = total + config.first_frame * losses["first frame"]
        elif config.two_stream:
            losses["mask"] = parts["mask"].mean()
            total = total + config.sparsity * losses["mask"]
        step.descend({"generator": total})
        return losses

    def code(self, n: int, generator: torch.Generator | None, first: Tensor | None) -> Tensor:
        """What the streams start from: noise (n, z, 1, 1), or the encoded first frame (n, 1024, 4, 4)."""
        config = self.config
        if self.encoder is None:
            if first is not None:
                raise ValueError("VGAN: this model takes no condition; one trained with conditional does")
            return torch.randn(n, config.z, 1, 1, generator=generator).to(self.device)
        if first is None or first.shape != (n, config.channels, config.size, config.size):
            expected = (n, config.channels, config.size, config.size)
            raise ValueError(f"VGAN: expected first frames {expected}, got {first if first is None else first.shape}")
        return self.encoder(first)

    def parts(self, code: Tensor) -> dict[str, Tensor]:
        """By name: the clip, and with two streams its foreground and mask (B, ., T, H, W), background (B, C, H, W)."""
        foreground, mask = self.video(code)
        if mask is None or self.static is None:
            return {"clip": foreground}
        background = self.static(code)
        clip = mask * foreground + (1 - mask) * background[:, :, None]  # the background stands still
        return {"clip": clip, "foreground": foreground, "mask": mask, "background": background}

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        self.fixed_length(length)
        return self.parts(self.code(n, generator, condition))["clip"]

    def condition(self, batch: Batch) -> Tensor | None:
        return batch.video[:, :, 0] if self.config.conditional else None

    def panels(self, batch: Batch, generator: torch.Generator) -> list[Panel]:
        shown = batch[:6]
        parts = self.parts(self.code(len(shown), generator, self.condition(shown)))
        if "mask" not in parts:
            return []
        clip, mask, channels = parts["clip"], parts["mask"], self.config.channels
        rows = {
            "clip": clip,
            "foreground": parts["foreground"],
            "mask": (2 * mask - 1).expand(-1, channels, -1, -1, -1),
            "background": parts["background"][:, :, None].expand_as(clip),
        }
        note = "The mask should be bright where something moves; the background should stand still and have no object."
        return [Panel("Foreground, mask and background", note, torch.stack(list(rows.values())), tuple(rows))]


def judged(logits: Tensor, as_class: int) -> Tensor:
    """Cross-entropy of (B, 2) logits against one class for all."""
    return F.cross_entropy(logits, torch.full((len(logits),), as_class, device=logits.device))
