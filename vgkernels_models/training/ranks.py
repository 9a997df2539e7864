"""The processes that train one model together (torchrun), and the sums that keep their weights equal bit by bit.

Decides device and collectives; which tensors are averaged when is left to the trainer and the models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_CPU = torch.device("cpu")
_BUCKET = 2**22  # elements that are summed at once: 16 MB of float32


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are; the default is one alone, for which every collective is nothing."""

    device: torch.device = _CPU
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces floating-point tensors by their mean over ranks, in place; others are left alone.

        All ranks get the same bits: the sum is made once and sent to all. Every rank has to call this with tensors of
        the same shapes in the same order.
        """
        if self.world == 1:
            return
        for bucket in _buckets(tensor.detach() for tensor in tensors if tensor.is_floating_point()):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            flat /= self.world
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def broadcast(self, model: nn.Module) -> None:
        """Gives every rank the parameters and buffers of the first."""
        if self.world > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def wait(self) -> None:
        """Returns when all ranks are here."""
        if self.world > 1:
            self.average([torch.zeros(1, device=self.device)])

    def leave(self) -> None:
        """Ends the connection."""
        if self.world > 1:
            dist.destroy_process_group()


def sync_gradients(ranks: Ranks, gradients: Iterable[Tensor]) -> None:
    """Averages gradients over ranks, in place.

    DDP does this by hooks on backward(), which gradients that torch.autograd.grad takes never reach.
    """
    ranks.average(gradients)


def join(device: str = "auto") -> Ranks:
    """Joins the processes that torchrun started; one alone without it.

    Args:
        device: "cpu", "cuda" (with ranks: the one of this rank), "cuda:1", or "auto": CUDA where there is some.

    Raises:
        ValueError: no such device here.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = find_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world == 1:
        return Ranks(place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return Ranks(place, dist.get_rank(), world)


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this name; see `join`.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"expected device to be auto, cpu or cuda, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    number, count = int(index or local_rank), torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"device {name}: expected at least {number + 1} CUDA device(s), torch sees {count}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of one dtype and about `_BUCKET` elements, in an order that depends on the tensors alone."""
    open_ones: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = open_ones.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(each.numel() for each in bucket) >= _BUCKET:
            yield open_ones.pop(tensor.dtype)
    yield from open_ones.values()
