"""One update: gradients by torch.autograd.grad, their mean over ranks, clipping, and the optimizers' steps.

Decides in which order that happens, and what an unused parameter gets; the losses and their order are the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vgkernels_models.training.ranks import Ranks, sync_gradients


class OptimizerStep:
    """The `Step` that `training_step` gets (see model.py).

    A parameter that its loss does not reach gets a gradient of zeros, never none: so all ranks sum the same tensors,
    and momentum and weight decay act on it as on the others. A loss that reaches no parameter of its optimizer is
    refused.

    Args:
        number: how many updates came before.
        optimizers: by name.
        ranks: over which gradients are averaged.
        clip: the largest norm of one optimizer's gradient, after averaging; 0 for no limit.
    """

    def __init__(
        self,
        number: int,
        optimizers: Mapping[str, torch.optim.Optimizer],
        ranks: Ranks | None = None,
        clip: float = 0.0,
    ) -> None:
        self.number, self._optimizers = number, optimizers
        self.losses: dict[str, Tensor] = {}  # what was descended, as means over ranks
        self._ranks, self._clip = ranks or Ranks(), clip

    def descend(self, losses: Mapping[str, Tensor]) -> None:
        """One step of each named optimizer down its loss; see `Step`.

        Raises:
            ValueError: no optimizer of that name, a loss that is no scalar, or one that reaches no parameter.
        """
        for parameters in self._gradients(losses).values():
            if self._clip:
                torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        for name in losses:
            self._optimizers[name].step()
            self._optimizers[name].zero_grad()  # to None: nothing is kept that the next step could add to

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Makes floating-point tensors equal to their mean over ranks, in place."""
        self._ranks.average(tensors)

    def _gradients(self, losses: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Sets `grad` of all parameters concerned; returns those, by optimizer."""
        parameters = {name: self._parameters(name) for name in losses}
        sharing: dict[int, list[str]] = {}  # one call of autograd for the losses that are the same tensor
        for name, loss in losses.items():
            if loss.numel() != 1:
                raise ValueError(f"descend: expected the loss of {name!r} to be a scalar, got {tuple(loss.shape)}")
            sharing.setdefault(id(loss), []).append(name)
        storages: set[int] = set()
        for done, names in enumerate(sharing.values(), 1):
            wanted = [parameter for name in names for parameter in parameters[name]]
            loss = losses[names[0]]
            found: Iterable[Tensor | None] = [None] * len(wanted)
            if loss.requires_grad and wanted:
                found = torch.autograd.grad(loss, wanted, retain_graph=done < len(sharing), allow_unused=True)
            unused = {id(parameter) for parameter, gradient in zip(wanted, found, strict=True) if gradient is None}
            for name in names:
                if all(id(parameter) in unused for parameter in parameters[name]):
                    raise ValueError(f"descend: the loss of {name!r} reaches none of that optimizer's parameters")
            for parameter, gradient in zip(wanted, found, strict=True):
                parameter.grad = torch.zeros_like(parameter) if gradient is None else _own(gradient, storages)
        gradients = [parameter.grad for part in parameters.values() for parameter in part if parameter.grad is not None]
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
        sync_gradients(self._ranks, [*gradients, values])
        self.losses |= dict(zip(losses, values, strict=True))
        return parameters

    def _parameters(self, name: str) -> list[Tensor]:
        if name not in self._optimizers:
            raise ValueError(f"descend: expected an optimizer out of {', '.join(self._optimizers)}, got {name!r}")
        groups = self._optimizers[name].param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]


def _own(gradient: Tensor, storages: set[int]) -> Tensor:
    """A gradient that can be written to: autograd may hand out one tensor for two parameters, or an expanded one."""
    storage = gradient.untyped_storage().data_ptr()
    shared = storage in storages or 0 in gradient.stride()
    storages.add(storage)
    return gradient.clone() if shared else gradient
