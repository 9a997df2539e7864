"""Motion control score (MoCoGAN): how often a classifier finds the class that a clip was asked to show.

Decides the protocol, and a small 3-D CNN for those who have no classifier; which clips that sees is left to the caller.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgkernels_models.data.batch import Batch
from vgkernels_models.metrics.network import LabelledNetwork, Network, clip_shape, to_bytes
from vgkernels_models.metrics.score import Score


class ClipClassifier(nn.Module):
    """uint8 (B, C, T, H, W) to (B, K) logits: three strided 3-D convolutions, mean over space, then over time too.

    The input has two coordinate channels (x, y), without which a mean over pixels could not tell where things go.
    """

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        sizes = [channels + 2, width, 2 * width, 4 * width]
        self.layers = nn.Sequential()
        for given, wanted in itertools.pairwise(sizes):
            self.layers += nn.Sequential(
                nn.Conv3d(given, wanted, 3, stride=(1, 2, 2), padding=1, bias=False), nn.BatchNorm3d(wanted), nn.ReLU()
            )
        self.class_logits = nn.Conv1d(4 * width, classes, 5, padding=2)  # over time
        self.label = "ClipClassifier"

    def forward(self, video: Tensor) -> Tensor:
        clips = video.float() / 127.5 - 1
        axes = [torch.linspace(-1, 1, size, device=clips.device) for size in clips.shape[-2:]]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, H, W)
        place = place[None, :, None].expand(len(clips), -1, clips.shape[2], -1, -1)
        features = self.layers(torch.cat([clips, place], 1)).amax((3, 4))  # (B, D, T)
        return self.class_logits(features).mean(2)


def train_classifier(
    batch: Callable[[int], Batch],
    classes: int,
    *,
    steps: int = 200,
    lr: float = 2e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ClipClassifier:
    """A small classifier of labelled real clips, in evaluation mode.

    Args:
        batch: the labelled clips of step 0, 1, ...: `Batches(source, 32, seed).batch`.
        classes: how many, K.
        steps: updates of Adam.

    Raises:
        ValueError: clips without labels, or labels outside of 0 to K - 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: ClipClassifier | None = None
        for step in range(steps):
            clips = batch(step).to(device)
            if clips.label is None or not ((clips.label >= 0) & (clips.label < classes)).all():
                raise ValueError(
                    f"train_classifier: expected clips with labels in 0 to {classes - 1}, got {clips.label}"
                )
            if network is None:
                network = ClipClassifier(clips.video.shape[1], classes).to(device)
                optimizer = torch.optim.Adam(network.parameters(), lr)
            loss = F.cross_entropy(network(to_bytes(clips.video)), clips.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if network is None:
        raise ValueError(f"train_classifier: expected at least 1 step, got {steps}")
    network.label = f"ClipClassifier, {steps} steps, seed {seed}"
    return network.eval()


def motion_control_score(
    sample: Callable[[Tensor], Tensor],
    classifier: Network,
    classes: int,
    reals: Batch,
    *,
    clips: int = 256,
    data: str,
) -> Score:
    """Accuracy of the classifier on clips of asked-for classes; beside it that on held-out real ones, and chance.

    Args:
        sample: (n,) int64 classes to clips (n, C, T, H, W) in [-1, 1]:
            `lambda wanted: model.sample(len(wanted), condition=wanted)`.
        classifier: TorchScript file, or callable, from uint8 (B, C, T, H, W) to (B, K) scores of classes.
        classes: how many, K; each is asked for equally often.
        reals: labelled clips that the classifier was not trained on.

    Raises:
        ValueError: reals without labels, or a classifier of another number of classes.
    """
    if reals.label is None:
        raise ValueError("motion_control_score: expected reals with labels, got none")
    network = LabelledNetwork(classifier, batch_size=64)
    wanted = torch.arange(clips) % classes
    video = sample(wanted)

    def accuracy(video: Tensor, label: Tensor) -> float:
        scores = network(video)
        if scores.shape[1] != classes:
            raise ValueError(f"{network.label}: expected (B, {classes}) out of it, got {tuple(scores.shape)}")
        return (scores.argmax(1) == label.to(scores.device)).double().mean().item()

    shape = clip_shape(video, "the samples")
    return Score(
        "motion control",
        accuracy(video, wanted),
        f"MCS[{network.label}, {clips} clips of {classes} classes, {shape} as uint8, {data}]",
        better="higher",
        baselines={"real clips": accuracy(reals.video, reals.label), "chance": 1 / classes},
    )
