"""What conv_gru takes: shapes, dtypes and options, and what autocast makes of them.

Decides what is refused and in which dtype arguments reach the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._checks import (
    FLOATING,
    accumulation_dtype,
    check_not_empty,
    check_option,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    is_autocast_on,
)

ACTIVATIONS = ("relu", "tanh")
ALGORITHMS = ("auto", "direct", "winograd")  # numbered as in csrc/conv_gru/conv_gru.h
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def cast_for_autocast(x: Any, h0: Any, *rest: Any) -> tuple[Any, ...]:
    """Under autocast x, weights and bias in its dtype, h0 in float32; as torch's convolutions, float64 stays."""
    if not isinstance(x, Tensor) or not is_autocast_on(x.device):
        return x, h0, *rest
    narrow = torch.get_autocast_dtype(x.device.type)
    x, *rest_narrow = (_cast(tensor, narrow) for tensor in (x, *rest))
    return x, _cast(h0, torch.float32), *rest_narrow


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    castable = isinstance(tensor, Tensor) and tensor.dtype in FLOATING and tensor.dtype != torch.float64
    return tensor.to(dtype) if castable else tensor


def check_tensors(op: str, x: Any, h0: Any, weight_ih: Any, weight_hh: Any, bias: Any) -> None:
    """Refuses what does not fit together; sizes may be symbolic."""
    check_tensor(op, "x", x)
    if x.dim() not in (5, 6):
        raise ValueError(f"{op}: expected x of shape (T, B, Cin, H, W) or (T, B, Cin, D, H, W), got {tuple(x.shape)}")
    extent, kernel = ("H W", "k k") if x.dim() == 5 else ("D H W", "k k k")
    sizes: dict[str, int] = {}
    check_shape(op, "x", x, f"T B Cin {extent}", sizes)
    check_not_empty(op, "x", x, {symbol: size for symbol, size in sizes.items() if symbol not in ("T", "B")})
    _check_beside(op, "weight_hh", weight_hh, x)
    check_shape(op, "weight_hh", weight_hh, f"3C C {kernel}", {})  # its number of dims: then C and k can be read off
    sizes.update({"C": weight_hh.shape[1], "3C": 3 * weight_hh.shape[1], "k": weight_hh.shape[-1]})
    check_shape(op, "weight_hh", weight_hh, f"3C C {kernel}", sizes)
    check_not_empty(op, "weight_hh", weight_hh, {"C": sizes["C"], "k": sizes["k"]})
    if sizes["k"] % 2 == 0:
        raise ValueError(f"{op}: expected weight_hh of an odd k, got shape {tuple(weight_hh.shape)}")
    _check_beside(op, "weight_ih", weight_ih, x)
    check_shape(op, "weight_ih", weight_ih, f"3C Cin {kernel}", sizes)
    if bias is not None:
        _check_beside(op, "bias", bias, x)
        check_shape(op, "bias", bias, "3C", sizes)
    if h0 is not None:
        check_tensor(op, "h0", h0)
        check_tensor(op, "h0", h0, sorted({x.dtype, accumulation_dtype(x.dtype)}, key=str))
        check_same_device(op, "h0", h0, "x", x)
        check_shape(op, "h0", h0, f"B C {extent}", sizes)


def check_call(
    op: str,
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    algorithm: int,
) -> None:
    """Refuses what the op `conv_gru` does not take, by its fake and on CUDA; on the CPU the kernels' door does."""
    check_tensors(op, x, h0, weight_ih, weight_hh, bias)
    if h0 is not None:
        check_tensor(op, "h0", h0, (accumulation_dtype(x.dtype),))
    if lengths is not None:
        check_tensor(op, "lengths", lengths, (torch.int64,))
        check_same_device(op, "lengths", lengths, "x", x)
        check_shape(op, "lengths", lengths, "B", {"B": x.shape[1]})
    if not 0 <= algorithm < len(ALGORITHMS):
        raise ValueError(f"{op}: expected algorithm 0 to {len(ALGORITHMS) - 1}, got {algorithm}")


def result_shapes(x: Tensor, weight_hh: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of output, h_T and the gates that are kept."""
    state = (x.shape[1], weight_hh.shape[1], *x.shape[3:])
    gates = (x.shape[0], 3, x.shape[1], math.prod(x.shape[3:]), kept_channels(weight_hh.shape[1]))
    return (x.shape[0], *state), state, gates


def kept_channels(channels: int) -> int:
    return (channels + 15) // 16 * 16


def check_kept(
    op: str, x: Tensor, weight_hh: Tensor, grad_output: Tensor, grad_h_T: Tensor, output: Tensor, gates: Tensor | None
) -> None:
    """Refuses what the op `conv_gru_backward` is handed besides if it is not of the forward's shapes and dtypes."""
    like_output, like_h_T, like_gates = result_shapes(x, weight_hh)
    for name, value, shape, dtype in (
        ("grad_output", grad_output, like_output, x.dtype),
        ("grad_h_T", grad_h_T, like_h_T, accumulation_dtype(x.dtype)),
        ("output", output, like_output, x.dtype),
        ("gates", gates, like_gates, x.dtype),
    ):
        if value is not None:
            check_tensor(op, name, value, (dtype,))
            check_same_device(op, name, value, "x", x)
            if value.dim() != len(shape) or any(a != b for a, b in zip(value.shape, shape, strict=True)):
                raise ValueError(f"{op}: expected {name} of shape {tuple(shape)}, got {tuple(value.shape)}")


def _check_beside(op: str, name: str, value: Any, x: Tensor) -> None:
    check_tensor(op, name, value)
    check_same_dtype(op, name, value, "x", x)
    check_same_device(op, name, value, "x", x)


def checked_lengths(op: str, lengths: Any, x: Tensor) -> Tensor | None:
    """As int64 on x's device; their values are looked at where that is possible and makes nobody wait."""
    if lengths is None:
        return None
    check_tensor(op, "lengths", lengths, _INTEGERS)
    check_shape(op, "lengths", lengths, "B", {"B": x.shape[1]})
    if lengths.is_meta and not x.is_meta:
        raise ValueError(f"{op}: expected lengths with values, got a tensor on meta")
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if lengths.device.type == "cpu" and not traced and lengths.numel() > 0:
        least, most = (int(bound) for bound in lengths.aminmax())
        if least < 0 or most > x.shape[0]:
            raise ValueError(f"{op}: expected lengths of 0 to T = {x.shape[0]}, got {least} to {most}")
    return lengths.to(x.device, torch.int64)


def check_options(op: str, x: Tensor, weight_hh: Tensor, activation: str, algorithm: str, **switches: bool) -> None:
    """Refuses names that are not known, an algorithm that cannot take these tensors, and switches that are no bool."""
    check_option(op, "activation", activation, ACTIVATIONS)
    check_option(op, "algorithm", algorithm, ALGORITHMS)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{op}: expected {name} to be a bool, got {type(value).__name__}")
    if algorithm == "winograd":
        cannot = (
            f"device {x.device.type}" if x.device.type not in ("cpu", "meta") or _native.runs_cuda_kernels(x.device)
            else "float64" if x.dtype == torch.float64
            else f"k = {weight_hh.shape[-1]}" if weight_hh.shape[-1] != 3
            else None
        )  # fmt: skip
        if cannot:
            raise ValueError(f"{op}: expected algorithm 'auto' or 'direct' for {cannot}, got 'winograd'")
