"""Argument checks, and the choice between native and reference: one error format for every op.

Decides what an error says and which exception it is; what an op accepts is the op's own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._forked import one_thread_in_forked_child

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of `dtype` are kept in: double for double, float for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(op: str, name: str, value: Any, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    """TypeError unless `value` is a dense tensor of one of `dtypes`."""
    one_thread_in_forked_child()  # every op that takes tensors comes here before it works on them
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided:
        layout = "a nested tensor" if value.is_nested else str(value.layout)
        raise TypeError(f"{op}: expected {name} to be a dense tensor (torch.strided), got {layout}")
    if value.dtype not in dtypes:
        names = " or ".join(_dtype_name(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: expected {name} of dtype {names}, got {_dtype_name(value.dtype)}")


def check_same_dtype(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """TypeError unless both are of one dtype."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{op}: expected {name} of {other_name}'s dtype {_dtype_name(other.dtype)}, got {_dtype_name(value.dtype)}"
        )


def check_same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both are on one device."""
    if value.device != other.device:
        raise ValueError(f"{op}: expected {name} on {other_name}'s device {other.device}, got {value.device}")


def check_shape(op: str, name: str, value: Tensor, dims: str, sizes: dict[str, int]) -> None:
    """ValueError unless `value` has the shape `dims`, say "B 2 Ho Wo". A symbol missing in `sizes` is bound here.

    A size may be symbolic: under torch.compile every comparison here becomes a guard.
    """
    symbols = dims.split(" ")
    expected = [int(symbol) if symbol.isdigit() else sizes.get(symbol) for symbol in symbols]
    right = value.dim() == len(symbols)
    if right:
        for want, size in zip(expected, value.shape, strict=True):
            if want is not None and want != size:
                right = False
    if not right:
        known = [symbol if size is None else str(size) for symbol, size in zip(symbols, expected, strict=True)]
        form = f"({', '.join(symbols)})"
        values = f"({', '.join(known)})"
        raise ValueError(
            f"{op}: expected {name} of shape {form}{'' if values == form else f' = {values}'}, got {tuple(value.shape)}"
        )
    for symbol, size in zip(symbols, value.shape, strict=True):
        if not symbol.isdigit():
            sizes[symbol] = size


def check_not_empty(op: str, name: str, value: Tensor, dims: dict[str, int]) -> None:
    """ValueError if one of the named sizes of `value` is 0."""
    for symbol, size in dims.items():
        if size == 0:
            raise ValueError(f"{op}: expected {name} with {symbol} > 0, got shape {tuple(value.shape)}")


def overlaps(tensor: Tensor) -> bool:
    """Whether two elements may share a place: expanded ones, and strides interleaved beyond telling."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def check_option(op: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{op}: expected {name} to be one of {', '.join(map(repr, allowed))}, got {value!r}")


def is_autocast_on(device: torch.device) -> bool:
    """Whether autocast is on for that kind of device; some kinds, as meta, have none."""
    one_thread_in_forked_child()  # casts come before the checks
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def use_native(op: str, impl: str, device: torch.device, unsupported: str | None) -> bool:
    """Whether to call the native kernel; `unsupported` names what has none on any device, None if nothing.

    "auto" takes the reference for what has no kernel at all without a word (the docstring says so), and after one
    warning where the kernel exists but is not loaded (VGKERNELS_REQUIRE_NATIVE=1 makes that an error).
    """
    check_option(op, "impl", impl, ("auto", "native", "reference"))
    if impl == "reference" or (impl == "auto" and unsupported):
        return False
    if unsupported:
        raise ValueError(f"{op}: expected impl='auto' or 'reference' for {unsupported}, got impl='native'")
    why = _why_not_loaded(device)
    if not why:
        return True
    if impl == "native":
        raise RuntimeError(f"{op}: expected impl='auto' or 'reference', got impl='native', but {why}")
    if device.type != "meta":  # where nothing is computed, nothing is slow
        _native.fallback(op, why)
    return False


def _why_not_loaded(device: torch.device) -> str:
    status = _native.native_status()
    if device.type == "cuda":
        return status.cuda_reason
    if device.type in ("cpu", "meta"):
        return status.cpu_reason
    return f"there are no kernels for device type {device.type}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
