"""What tests of models share: a step without a trainer, the shapes that layers give, and counts of parameters.

Decides nothing about a model; each has a test file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vgkernels_models.data.batch import Batch
from vgkernels_models.model import VideoModel


class RecordingStep:
    """Descends as a single process does, and keeps which optimizers stepped together, in order."""

    def __init__(self, model: VideoModel, number: int = 0) -> None:
        self.optimizers, self.number = model.optimizers(), number
        self.descents: list[tuple[str, ...]] = []
        self.averaged = 0

    def descend(self, losses: Mapping[str, Tensor]) -> None:
        self.descents.append(tuple(losses))
        gradients = [
            (parameter, torch.autograd.grad(loss, parameter, retain_graph=True)[0])
            for name, loss in losses.items()
            for parameter in parameters_of(self.optimizers[name])
        ]
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for name in losses:
            self.optimizers[name].step()

    def average(self, tensors: Iterable[Tensor]) -> None:
        self.averaged += len(list(tensors))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def count(*modules: nn.Module | None) -> int:
    """Parameters, in all."""
    return sum(parameter.numel() for module in modules if module for parameter in module.parameters())


def shapes(module: nn.Module, *inputs: Tensor, only: tuple[type[nn.Module], ...]) -> dict[str, tuple[int, ...]]:
    """By name: the output's shape of each layer of these types, without the batch axis, in the order of the call."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: found.update({name: tuple(out.shape[1:])}))
        for name, layer in module.named_modules()
        if isinstance(layer, only)
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def clips(model: VideoModel, n: int = 4, classes: int = 0) -> Batch:
    """Noise of the model's size, with labels 0, 1, ..."""
    config = model.config
    video = torch.rand(n, config.channels, config.frames, config.size, config.size) * 2 - 1
    return Batch(video, torch.arange(n) % classes if classes else None)
