"""MoCoGAN: decomposing motion and content for video generation.

Tulyakov, Liu, Yang, Kautz, CVPR 2018, arXiv 1707.04993. Written from the paper and a description of the authors' code.

    z_C ~ N(0, I), held for a clip;   z_M^(k) = R_M(e^(k), z_M^(k-1)),  e^(k) ~ N(0, I);   frame k = G_I(z_C, z_M^(k))
    max over G_I, R_M, min over D_I, D_V of  E[-log D_I(S_1(v))] + E[-log(1 - D_I(S_1(v~)))]
                                           + E[-log D_V(S_T(v))] + E[-log(1 - D_V(S_T(v~)))]  (+ lambda L_I)

A GRU walks through the motion subspace, an image generator draws every frame, one discriminator judges single frames
(S_1), another T consecutive ones (S_T). A clip may be of any length.

Faithful: layers and their order, noise before the discriminators' layers, Adam with weight decay, D_I then D_V then G
with fresh fakes for each, a generator's loss that does not saturate. Ours: S_1 takes its frames from the step's clips,
so that of a long video those near its ends come less often; frame sizes of 2^L 4; how categories are learnt can be
chosen (`info`), as the published command never trains the head that it asks. No op of vgkernels is needed: R_M is a
plain GRU cell of 10 units, not the conv-GRU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgkernels_models.data.batch import Batch
from vgkernels_models.model import ModelConfig, Panel, Step, VideoModel


@dataclass
class MoCoGANConfig(ModelConfig):
    """The defaults are the authors' command, without categories."""

    data: str = "shape-motion"  # what is learnt: a folder of videos, an installed clip or a generator
    stride: int = 2  # a clip takes every so many-th frame
    z_content: int = 50  # d_C, dimension of z_C
    z_motion: int = 10  # d_M, dimension of z_M and of the noise e
    generator_width: int = 64  # narrowest layer of G_I
    judge_width: int = 64  # narrowest layer of D_I and D_V
    image_judge: Literal["patch", "full", "none"] = "patch"  # D_I: logits for patches, one logit, or no D_I
    video_judge: Literal["full", "patch"] = "full"  # D_V: one logit (and the categories'), or logits for patches
    image_batch: int = 32  # frames of a step for D_I
    noise: float = 0.1  # standard deviation added before the judges' layers
    categories: int = 0  # n_cat, classes of motion (z_A)
    category_to: Literal["image", "motion"] = "image"  # where z_A enters: G_I, as in the code, or R_M, as in the paper
    info: Literal["paper", "supervised", "code"] = (
        "paper"  # L_I: D_V and G on fakes; D_V on labels, G on fakes; G alone
    )
    info_weight: float = 1.0  # lambda of L_I
    learning_rate: float = 2e-4  # of Adam, betas = (0.5, 0.999)
    weight_decay: float = 1e-5  # on all weights
    legacy_norm: bool = False  # batch norm's gamma starts from U(0, 1), as torch had it then, in place of 1

    LEAST: ClassVar[Mapping[str, int]] = {
        **ModelConfig.LEAST,
        **dict.fromkeys(("z_content", "z_motion", "generator_width", "judge_width", "image_batch"), 1),
    }
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {"size": 32, "generator_width": 32, "judge_width": 32, "steps": 5_000},
        "tiny": {
            "size": 32,
            "z_content": 16,
            "z_motion": 8,
            "generator_width": 32,
            "judge_width": 8,
            "batch_size": 16,
            "image_batch": 16,
            "learning_rate": 5e-4,
            "decay": 0.5,
            "steps": 1_250,
        },
    }

    @property
    def stages(self) -> int:
        """L: how often 4 x 4 pixels are doubled."""
        return (self.size // 4).bit_length() - 1


class Noise(nn.Module):
    """Adds N(0, sigma^2) to what passes, in training and evaluation."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x) if self.sigma else x


class Latents(NamedTuple):
    """What a clip is made of."""

    content: Tensor  # (B, d_C)
    motion: Tensor  # (B, K, d_M)
    category: Tensor | None  # (B, n_cat), one-hot

    @property
    def drawn(self) -> Tensor:
        """The categories as indices (B)."""
        assert self.category is not None
        return self.category.argmax(1)


class VideoGenerator(nn.Module):
    """R_M (`recurrent`) and G_I (`main`)."""

    def __init__(self, config: MoCoGANConfig) -> None:
        super().__init__()
        self.z_motion, self.category_to = config.z_motion, config.category_to
        to_motion = config.categories if config.category_to == "motion" else 0
        self.recurrent = nn.GRUCell(config.z_motion + to_motion, config.z_motion)
        latent = config.z_content + config.z_motion + config.categories - to_motion
        widths = [config.generator_width << i for i in reversed(range(config.stages))]  # 512, 256, 128, 64
        layers: list[nn.Module] = []
        for i, (wide, narrow) in enumerate(zip([latent, *widths], [*widths, config.channels], strict=True)):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, *((1, 0) if i == 0 else (2, 1)), bias=False)]
            layers += [nn.BatchNorm2d(narrow), nn.ReLU()] if i < len(widths) else [nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def motion(self, first: Tensor, noise: Tensor, category: Tensor | None) -> Tensor:
        """R_M: h^(0) (B, d_M), noise (B, K, d_M) to the path (B, K, d_M), from h^(1) on."""
        h, path = first, []
        for step in noise.unbind(1):
            if category is not None and self.category_to == "motion":
                step = torch.cat([step, category], 1)
            h = self.recurrent(step, h)
            path.append(h)
        return torch.stack(path, 1)

    def frames(self, content: Tensor, motion: Tensor, category: Tensor | None) -> Tensor:
        """G_I: rows of latents (N, .) to frames (N, C, H, W)."""
        category = category if self.category_to == "image" else None
        latent = torch.cat([content, motion] if category is None else [content, category, motion], 1)
        return self.main(latent[:, :, None, None])

    def clips(self, latents: Latents) -> Tensor:
        """(B, C, K, H, W)."""
        length = latents.motion.shape[1]
        category = None if latents.category is None else latents.category.repeat_interleave(length, 0)
        rows = self.frames(latents.content.repeat_interleave(length, 0), latents.motion.flatten(0, 1), category)
        return rows.unflatten(0, (-1, length)).transpose(1, 2)


def image_judge(config: MoCoGANConfig) -> nn.Sequential:
    """D_I on (N, C, H, W): logits (N, 1, H / 16, W / 16) for patches, or (N, 1, 1, 1)."""
    patch = config.image_judge == "patch"
    widths = [config.judge_width << i for i in range(3 if patch else config.stages)]
    layers: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(zip([config.channels, *widths], widths, strict=False)):
        layers += [Noise(config.noise), nn.Conv2d(narrow, wide, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(wide)] * (i > 0) + [nn.LeakyReLU(0.2)]
    if patch:
        return nn.Sequential(*layers, Noise(config.noise), nn.Conv2d(widths[-1], 1, 4, 2, 1, bias=False))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, bias=False))


def video_judge(config: MoCoGANConfig) -> nn.Sequential:
    """D_V on (B, C, T, H, W): logits (B, 1 + n_cat, 1, 1, 1), or (B, 1, T - 12, H / 16, W / 16) for patches."""
    patch = config.video_judge == "patch"
    widths = [config.judge_width << i for i in range(3 if patch else config.stages)]
    layers: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(zip([config.channels, *widths], widths, strict=False)):
        layers += [Noise(config.noise), nn.Conv3d(narrow, wide, 4, (1, 2, 2), (0, 1, 1), bias=False)]
        layers += [nn.BatchNorm3d(wide)] * (i > 0) + [nn.LeakyReLU(0.2)]
    if patch:
        return nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 4, (1, 2, 2), (0, 1, 1), bias=False))
    last = nn.Conv3d(widths[-1], 1 + config.categories, (config.frames - 3 * len(widths), 4, 4), bias=False)
    return nn.Sequential(*layers, last)


class Judge(nn.Module):
    """A discriminator: clips or frames to real-or-fake logits (B, .) and category logits (B, n_cat)."""

    def __init__(self, main: nn.Sequential, categories: int) -> None:
        super().__init__()
        self.main, self.categories = main, categories

    def forward(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.main(shown)
        split = logits.shape[1] - self.categories
        return logits[:, :split].flatten(1), logits[:, split:].flatten(1)


class MoCoGAN(VideoModel):
    """Clips of any `length` from Gaussian noise. `condition` of `sample`, with categories: (n) class indices."""

    Config = MoCoGANConfig
    config: MoCoGANConfig

    def __init__(self, config: MoCoGANConfig) -> None:
        super().__init__()
        if config.size != 4 << config.stages or config.size < 16:
            raise ValueError(f"MoCoGAN: expected size to be 16, 32, 64, ... pixels, got {config.size}")
        least = 13 if config.video_judge == "patch" else 3 * config.stages + 1
        if config.frames < least:
            raise ValueError(f"MoCoGAN: expected frames to be at least {least} at this size, got {config.frames}")
        if config.categories and config.video_judge == "patch":
            raise ValueError('MoCoGAN: expected video_judge = "full" with categories: patches have no head for them')
        self.config = config
        self.generator = VideoGenerator(config)
        self.image_judge = Judge(image_judge(config), 0) if config.image_judge != "none" else None
        self.video_judge = Judge(video_judge(config), config.categories)
        if config.legacy_norm:
            for layer in self.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    nn.init.uniform_(layer.weight)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        def adam(part: nn.Module) -> torch.optim.Optimizer:
            config = self.config
            return torch.optim.Adam(
                part.parameters(), lr=config.learning_rate, betas=(0.5, 0.999), weight_decay=config.weight_decay
            )

        parts = {"image judge": self.image_judge, "video judge": self.video_judge, "generator": self.generator}
        return {name: adam(part) for name, part in parts.items() if part}

    def training_step(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        config, real, n = self.config, batch.video, len(batch)
        losses: dict[str, Tensor] = {}

        if self.image_judge:
            clip = torch.arange(config.image_batch, device=real.device) % n  # S_1: one frame at random of each clip
            frames = real[clip, :, torch.randint(real.shape[2], clip.shape).to(real.device)]
            with torch.no_grad():
                fakes = self.single_frames(config.image_batch)
            losses["image judge"] = said(self.image_judge(frames)[0], 1) + said(self.image_judge(fakes)[0], 0)
            step.descend({"image judge": losses["image judge"]})

        with torch.no_grad():
            latents = self.latents(n, real.shape[2], None, None)
            fake = self.generator.clips(latents)
        (on_real, named_real), (on_fake, named_fake) = self.video_judge(real), self.video_judge(fake)
        losses["video judge"] = said(on_real, 1) + said(on_fake, 0)
        total = losses["video judge"]
        if config.categories and config.info != "code":
            losses["category"] = (
                F.cross_entropy(named_real, self.classes(batch.label, n))
                if config.info == "supervised"
                else F.cross_entropy(named_fake, latents.drawn)
            )
            total = total + config.info_weight * losses["category"]
        step.descend({"video judge": total})

        latents = self.latents(n, real.shape[2], None, None)
        on_fake, named_fake = self.video_judge(self.generator.clips(latents))
        losses["generator"] = said(on_fake, 1)
        if self.image_judge:
            losses["generator"] = losses["generator"] + said(
                self.image_judge(self.single_frames(config.image_batch))[0], 1
            )
        total = losses["generator"]
        if config.categories:
            total = total + config.info_weight * F.cross_entropy(named_fake, latents.drawn)
        step.descend({"generator": total})
        return losses

    def latents(self, n: int, length: int, generator: torch.Generator | None, condition: Tensor | None) -> Latents:
        """Draws what n clips of `length` frames are made of; classes uniformly where there is no condition."""
        config = self.config

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.device)

        category = None
        if config.categories:
            drawn = torch.randint(config.categories, (n,), generator=generator)
            drawn = drawn if condition is None else self.classes(condition, n)
            category = F.one_hot(drawn.to(self.device), config.categories).float()
        elif condition is not None:
            raise ValueError("MoCoGAN: this model takes no condition; one trained with categories does")
        content, first, noise = (
            normal(n, config.z_content),
            normal(n, config.z_motion),
            normal(n, length, config.z_motion),
        )
        return Latents(content, self.generator.motion(first, noise, category), category)

    def single_frames(self, n: int) -> Tensor:
        """S_1 of n fake clips: only the frames that are taken are drawn. (n, C, H, W)."""
        latents = self.latents(n, self.config.frames, None, None)
        at = torch.randint(self.config.frames, (n,)).to(self.device)
        motion = latents.motion[torch.arange(n, device=at.device), at]
        return self.generator.frames(latents.content, motion, latents.category)

    def classes(self, label: Tensor | None, n: int) -> Tensor:
        """The labels, if they are n of this model's categories."""
        most = self.config.categories - 1
        if label is None or label.shape != (n,) or not 0 <= int(label.min()) <= int(label.max()) <= most:
            came = "none" if label is None else f"{tuple(label.shape)} from {label.min()} to {label.max()}"
            raise ValueError(f"MoCoGAN: expected ({n}) labels from 0 to {most}, got {came}")
        return label

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        return self.generator.clips(self.latents(n, length or self.config.frames, generator, condition))

    def panels(self, batch: Batch, generator: torch.Generator) -> list[Panel]:
        rows, columns = self.latents(4, 1, generator, None), self.latents(5, self.config.frames, generator, None)
        category = None if columns.category is None else columns.category.repeat(4, 1)
        clips = self.generator.clips(
            Latents(rows.content.repeat_interleave(5, 0), columns.motion.repeat(4, 1, 1), category)
        )
        note = "Along a row the object should stay the same, along a column its motion."
        names = tuple(f"content {i + 1}" for i in range(4)), tuple(f"motion {i + 1}" for i in range(5))
        return [Panel("Content and motion", note, clips.unflatten(0, (4, 5)), *names)]


def said(logits: Tensor, truth: int) -> Tensor:
    """Binary cross-entropy of logits against one answer for all: 1 is real."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
