"""What every op's autograd needs and no op decides: its second derivative from its reference, and vmap over its batch.

An op gives its reference as a function of its tensors; the first derivative stays in the op's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._forked import one_thread_in_forked_child


def needs_function(*tensors: Tensor | None) -> bool:
    """Whether a call has to go through its autograd.Function; without, a small call takes a quarter of the time.

    Inside torch.func transforms always: a tensor under vmap does not say that it requires grad outside of it.
    """
    one_thread_in_forked_child()  # a backward may be all that a child calls
    if not torch.is_grad_enabled():
        return False
    if any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return True
    return torch._C._are_functorch_transforms_active()


def second_order(
    function: Callable[..., Any],
    tensors: Sequence[Tensor | None],
    first: Sequence[bool],
    grad_out: Tensor | tuple[Tensor, ...],
    grad_grads: Sequence[Tensor | None],
    second: Sequence[bool],
) -> list[Tensor | None]:
    """Gradient of backward(grad_out, *tensors), where backward is the vector-Jacobian product of `function`.

    Args:
        function: differentiable plain PyTorch, function(*tensors) -> out, a tensor or a tuple of them.
        tensors: its arguments; None where an optional one is missing.
        first: which of `tensors` the backward gave a gradient for.
        grad_out: the gradient of `out` that the backward was given, a tuple where `out` is one.
        grad_grads: the gradient of each of the backward's outputs, in the order of `tensors`; None counts as 0.
        second: which of (grad_out, *tensors) need a gradient now; a tuple counts as its tensors, here and below.

    Returns:
        One entry for each of (grad_out, *tensors), None where nothing was asked. Differentiable itself.
    """
    grads_out = grad_out if isinstance(grad_out, tuple) else (grad_out,)
    variables = [*grads_out, *tensors]
    differentiated = [i for i, wanted in enumerate(first) if wanted and grad_grads[i] is not None]
    wanted = [i for i, needed in enumerate(second) if needed and variables[i] is not None]
    result: list[Tensor | None] = [None] * len(variables)
    if not differentiated or not wanted:
        return result

    def backward(*values: Tensor) -> tuple[Tensor, ...]:
        replaced = _replaced(variables, wanted, values)
        grads, arguments = tuple(replaced[: len(grads_out)]), replaced[len(grads_out) :]
        pull = torch.func.vjp(
            lambda *inner: function(*_replaced(arguments, differentiated, inner)),
            *(arguments[i] for i in differentiated),
        )[1]
        return pull(grads if isinstance(grad_out, tuple) else grads[0])

    pull = torch.func.vjp(backward, *(variables[i] for i in wanted))[1]
    for i, gradient in zip(wanted, pull(tuple(grad_grads[i] for i in differentiated)), strict=True):
        result[i] = gradient
    return result


def _vmap_over_batch(op: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for torch.library.register_vmap: the new dim is folded into dim 0 of every tensor, the op's batch.

    A tensor that has no new dim is repeated. An output of shape (0,), a gradient that nobody asked for, stays as it is.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        folded = [
            _fold(arg, dim, size) if isinstance(arg, Tensor) else arg for arg, dim in zip(args, in_dims, strict=True)
        ]
        outputs = op(*folded)
        if isinstance(outputs, Tensor):
            return _unfold(outputs, size), 0
        dims = tuple(None if output.shape == (0,) else 0 for output in outputs)
        return tuple(out if dim is None else _unfold(out, size) for out, dim in zip(outputs, dims, strict=True)), dims

    return rule


def register_batched(namespace: str, fakes: Mapping[str, Callable[..., Any]]) -> None:
    """Gives ops whose batch is dim 0 of every tensor their fake functions and their vmap rules."""
    ops = getattr(torch.ops, namespace)
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", _vmap_over_batch(getattr(ops, name)))


def _replaced(old: Sequence[Any], where: Sequence[int], new: Sequence[Any]) -> list[Any]:
    result = list(old)
    for i, value in zip(where, new, strict=True):
        result[i] = value
    return result


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def _unfold(tensor: Tensor, size: int) -> Tensor:
    return tensor.unflatten(0, (size, tensor.shape[0] // max(size, 1)))
