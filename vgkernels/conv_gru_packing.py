"""Keeps the form in which the CPU kernels want a layer's weights, while the weights stay the same.

Decides for which calls that pays and when it still holds. Versions of tensors don't tell: what is written through
`.data` counts as no change there. So the bits themselves are compared, by a hash, at every call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import _native


@dataclass(frozen=True)
class _Packed:
    call: tuple[object, ...]  # what the choice among engines depends on
    fingerprint: int  # of both weights
    weights: Tensor | None  # None: seen once, not packed yet


# By weight_hh; an entry goes with its weight.
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_lock = threading.Lock()


def packed_weights(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, algorithm: int) -> Tensor | None:
    """What `conv_gru` takes as `packed` in a call without gradients, or None: the kernel packs for itself.

    A tensor is packed when it comes for the second time: one that was made for a single call would only cost more.
    """
    tensors = (x, weight_ih, weight_hh)
    if _native.runs_cuda_kernels(x.device):
        return None
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu" for tensor in tensors):
        return None  # fake tensors, and others that hold no numbers
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or torch._C._are_functorch_transforms_active() or x.numel() == 0:
        return None
    with _lock:
        entry = _kept.get(weight_hh)
        if entry is None:
            _kept[weight_hh] = _Packed((), 0, None)
            return None
    call = (x.shape, x.dtype, weight_ih.shape, weight_hh.shape, algorithm)
    fingerprint = _native.kernels.conv_gru_fingerprint(weight_ih, weight_hh)
    if entry.weights is not None and (entry.call, entry.fingerprint) == (call, fingerprint):
        return entry.weights
    packed = _native.kernels.conv_gru_pack(x, weight_ih, weight_hh, algorithm)
    with _lock:
        _kept[weight_hh] = _Packed(call, fingerprint, packed)
    return packed
