"""Backward warping by a flow in pixels, and vid2vid's occlusion composite over it.

    warped(c, p) = sum_q w_q(p + flow(p)) image(c, q)               q: the taps around p + flow(p)
    out(c, p)    = (1 - mask(p)) warped(c, p) + mask(p) new(c, p)   the composite; mask 1 = newly painted

Source: Wang et al., Video-to-Video Synthesis, arXiv 1808.06601, equation 4. This file decides what the op accepts and
how it is differentiated; the kernels are in csrc/flow_warp, the reference's padding and weights in flow_warp_taps.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce
from operator import and_, mul
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native
from ._autograd import needs_function, register_batched, second_order
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
    use_native,
)
from .flow_warp_taps import axis_taps

_MODES = ("bilinear", "nearest", "bicubic")
_PADDING_MODES = ("border", "zeros", "reflection")


def flow_warp(
    image: Tensor, flow: Tensor, *, mode: str = "bilinear", padding_mode: str = "border", impl: str = "auto"
) -> Tensor:
    """Warps `image` backward: out(c, p) = image(c, p + flow(p)), interpolated.

    Equals `grid_sample(..., align_corners=True)` on the grid p + flow(p), without a grid and with a second derivative.

    Args:
        image: (B, C, H, W), float64, float32, float16 or bfloat16, of any strides; or 5-D, (B, C, D, H, W).
        flow: (B, 2, Ho, Wo) in pixels of `image`, channel 0 = x (dx), 1 = y (dy); for a 5-D image (B, 3, Do, Ho, Wo),
            (dx, dy, dz). Any of the four dtypes, whatever the image's.
        mode: "bilinear" (trilinear for 5-D), "nearest" (half to even) or "bicubic" (4-D only; A = -0.75).
        padding_mode: what lies outside of the image: "border" repeats its edge, "zeros" is 0, "reflection" mirrors
            about the centres of the edge pixels.
        impl: "native", "reference", or "auto", the kernel where there is one. Bicubic, 5-D and forward-mode AD have
            none and take the reference. Where none is loaded, "auto" warns once and takes it
            (VGKERNELS_REQUIRE_NATIVE=1: raises).

    Returns:
        (B, C, Ho, Wo) or (B, C, Do, Ho, Wo), of image's dtype, channels_last where the image is, contiguous otherwise.
        An empty batch, no channels or an empty flow give an empty result and gradients of 0.

    Raises:
        TypeError: an argument is no tensor, or of an integer, complex or other dtype.
        ValueError: shapes, devices or options that don't fit; an image without rows or columns.

    Arithmetic: float64 for a float64 image, otherwise float32 (a float64 flow is rounded to it), rounded once to the
    image's dtype. A tap of weight 0 or outside of the image adds exactly 0 even where the image holds Inf or NaN.
    With "border" an infinite coordinate is clamped and NaN counts as 0; with "reflection" both count as 0; with "zeros"
    both give 0. The gradient of `flow` is 0 there.

    Autocast: nothing is cast, the result has the image's dtype. A flow in 16 bits is only as fine as its 16 bits.

    Differentiability: once in `image` and `flow`, only in what is asked, gradients in the dtypes of the arguments;
    twice and more in plain PyTorch, right but slow. On an integer coordinate the gradient of `flow` looks towards
    larger ones; with "border" and "reflection" it is 0 on the edge pixels' centres, with "border" also beyond. With
    "nearest" it is 0.

    Determinism: on the CPU bitwise repeatable, for any number of threads. On CUDA the forward too; the gradient of
    `image` may use float atomics unless `torch.use_deterministic_algorithms(True)`, which takes another kernel.

    Source: vid2vid (arXiv 1808.06601), section 3.1.

    Example:
        >>> import torch, vgkernels
        >>> image = torch.tensor([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]])
        >>> flow = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
        >>> vgkernels.flow_warp(image, flow)
        tensor([[[[3.5000, 4.5000, 5.0000],
                  [3.5000, 4.5000, 5.0000]]]])
    """
    _check("flow_warp", image, flow, mode, padding_mode, blend=False)
    if not use_native("flow_warp", impl, image.device, _without_kernel(image, mode)):
        return _reference(image, flow, None, None, mode, padding_mode)
    return _native_call(image, flow, None, None, mode, padding_mode)


def flow_warp_blend(
    image: Tensor,
    flow: Tensor,
    mask: Tensor,
    new: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "border",
    impl: str = "auto",
) -> Tensor:
    """Warps `image`, paints `new` where `mask` says so: out = (1 - mask) * flow_warp(image, flow) + mask * new.

    All that `flow_warp` says holds here. One pass: the warped image is neither written nor rounded on its way.

    Args:
        image: (B, C, H, W) or (B, C, D, H, W), as in `flow_warp`: the previous frame.
        flow: (B, 2, Ho, Wo) or (B, 3, Do, Ho, Wo), pixels.
        mask: (B, 1, Ho, Wo) or (B, 1, Do, Ho, Wo), any of the four dtypes; 1 = newly painted. Not clamped to [0, 1].
        new: (B, C, Ho, Wo) or (B, C, Do, Ho, Wo), of image's dtype: the newly painted frame.
        mode: as in `flow_warp`.
        padding_mode: as in `flow_warp`.
        impl: as in `flow_warp`.

    Returns:
        Of the shape of `new`, as `flow_warp` otherwise.

    Raises:
        TypeError: as in `flow_warp`; `new` of another dtype than `image` (outside of autocast).
        ValueError: as in `flow_warp`.

    The composite is the plain formula: a mask of 0 does not hide Inf or NaN in `new` (0 * Inf = NaN), nor does a mask
    of 1 hide it in the warped image.

    Autocast: `image` and `new` are promoted to their common dtype (a bfloat16 `new` on a float32 frame gives float32);
    nothing else is cast.

    Differentiability: as `flow_warp`, in `mask` and `new` too. Determinism: as `flow_warp`.

    Source: vid2vid (arXiv 1808.06601), equation 4.

    Example:
        >>> import torch, vgkernels
        >>> previous, painted = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
        >>> mask = torch.tensor([[[[0.0, 0.5, 1.0]]]])
        >>> vgkernels.flow_warp_blend(previous, torch.zeros(1, 2, 1, 3), mask, painted)
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    image, new = _promoted(image, new)
    _check("flow_warp_blend", image, flow, mode, padding_mode, mask, new)
    if not use_native("flow_warp_blend", impl, image.device, _without_kernel(image, mode)):
        return _reference(image, flow, mask, new, mode, padding_mode)
    return _native_call(image, flow, mask, new, mode, padding_mode)


def _check(
    op: str,
    image: Tensor,
    flow: Tensor,
    mode: str,
    padding_mode: str,
    mask: Any = None,
    new: Any = None,
    blend: bool = True,
) -> None:
    check_tensor(op, "image", image)
    check_tensor(op, "flow", flow)
    check_option(op, "mode", mode, _MODES)
    check_option(op, "padding_mode", padding_mode, _PADDING_MODES)
    sizes: dict[str, int] = {}
    volume = image.dim() == 5
    if volume and mode == "bicubic":
        raise ValueError(f"{op}: expected mode 'bilinear' or 'nearest' for a 5-D image, got 'bicubic'")
    check_shape(op, "image", image, "B C D H W" if volume else "B C H W", sizes)
    check_not_empty(op, "image", image, {s: n for s, n in sizes.items() if s in ("D", "H", "W")})
    out = "Do Ho Wo" if volume else "Ho Wo"
    check_shape(op, "flow", flow, f"B 3 {out}" if volume else f"B 2 {out}", sizes)
    check_same_device(op, "flow", flow, "image", image)
    if not blend:
        return
    check_tensor(op, "mask", mask)
    check_shape(op, "mask", mask, f"B 1 {out}", sizes)
    check_same_device(op, "mask", mask, "image", image)
    check_tensor(op, "new", new)
    check_same_dtype(op, "new", new, "image", image)
    check_shape(op, "new", new, f"B C {out}", sizes)
    check_same_device(op, "new", new, "image", image)


def _promoted(image: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast, both in their common dtype; tensors of an image's dtype or else left for the checks to refuse."""
    if not isinstance(image, Tensor) or not isinstance(new, Tensor) or image.dtype == new.dtype:
        return image, new
    if image.dtype not in FLOATING or new.dtype not in FLOATING or not is_autocast_on(image.device):
        return image, new
    common = torch.promote_types(image.dtype, new.dtype)
    return image.to(common), new.to(common)


def _without_kernel(image: Tensor, mode: str) -> str | None:
    if image.dim() == 5:
        return "a 5-D image"
    if forward_ad._current_level >= 0:  # the op would drop tangents without a word
        return "forward-mode AD"
    return "mode='bicubic'" if mode == "bicubic" else None


def _native_call(
    image: Tensor, flow: Tensor, mask: Tensor | None, new: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    accumulation = accumulation_dtype(image.dtype)  # cast out here: autograd casts the gradients back
    flow = flow.to(accumulation)
    mask = None if mask is None else mask.to(accumulation)
    if needs_function(image, flow, mask, new):
        return _FlowWarp.apply(image, flow, mask, new, mode, padding_mode)
    return _native.kernels.flow_warp(image, flow, mask, new, mode, padding_mode)


# ---- the reference ----


def flow_warp_reference(image: Tensor, flow: Tensor, *, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """`flow_warp` in plain PyTorch: any device, all modes, 4-D and 5-D, any order of derivative. Arguments as there."""
    _check("flow_warp_reference", image, flow, mode, padding_mode, blend=False)
    return _reference(image, flow, None, None, mode, padding_mode)


def flow_warp_blend_reference(
    image: Tensor, flow: Tensor, mask: Tensor, new: Tensor, *, mode: str = "bilinear", padding_mode: str = "border"
) -> Tensor:
    """`flow_warp_blend` in plain PyTorch: any device, all modes, 4-D and 5-D. Arguments as there."""
    image, new = _promoted(image, new)
    _check("flow_warp_blend_reference", image, flow, mode, padding_mode, mask, new)
    return _reference(image, flow, mask, new, mode, padding_mode)


def _reference(
    image: Tensor, flow: Tensor, mask: Tensor | None, new: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    accumulation = accumulation_dtype(image.dtype)
    pixels, flow = image.to(accumulation).flatten(2), flow.to(accumulation)  # (B, C, H W)
    extents, out_extents = image.shape[2:], flow.shape[2:]
    taps = []  # of each axis, slowest first
    for axis, (n, out_n) in enumerate(zip(extents, out_extents, strict=True)):
        along = [1] * len(extents)
        along[axis] = out_n
        p = torch.arange(out_n, dtype=accumulation, device=flow.device).view(along)
        shift = flow[:, len(extents) - 1 - axis]  # channel 0 moves the last axis
        taps.append(axis_taps(p + shift, n, mode, padding_mode))
    out = pixels.new_zeros(()).expand(*image.shape[:2], *out_extents)
    for corner in itertools.product(*taps):
        rows, weights = zip(*corner, strict=True)
        weight = reduce(mul, weights).unsqueeze(1)
        inside = reduce(and_, ((row >= 0) & (row < n) for row, n in zip(rows, extents, strict=True))).unsqueeze(1)
        index = torch.zeros_like(rows[0])
        for row, n in zip(rows, extents, strict=True):
            index = index * n + row.clamp(0, n - 1)
        index = index.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)  # (B, C, Ho Wo)
        value = pixels.gather(2, index).view(out.shape)
        counts = inside & ((weight != 0) | value.isfinite())  # finite ones of weight 0 stay: flow's gradient
        out = out + weight * torch.where(counts, value, 0)
    if mask is not None and new is not None:
        out = (1 - mask.to(accumulation)) * out + mask.to(accumulation) * new.to(accumulation)
    out = out.to(image.dtype)
    return out.movedim(1, -1).contiguous().movedim(-1, 1) if _is_channels_last(image) else out.contiguous()


# ---- autograd ----


class _FlowWarp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        image: Tensor, flow: Tensor, mask: Tensor | None, new: Tensor | None, mode: str, padding_mode: str
    ) -> Any:
        return _native.kernels.flow_warp(image, flow, mask, new, mode, padding_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])  # the warped image is not kept
        ctx.options = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        needs = ctx.needs_input_grad[:4]
        tensors = ctx.saved_tensors  # once: non-reentrant checkpoints give them out no second time
        again = needs_function(grad_out, *tensors)  # else a second Function costs more than a small backward
        gradients = (_FlowWarpBackward.apply if again else _FlowWarpBackward.forward)(
            grad_out, *tensors, *ctx.options, *needs
        )
        return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), None, None


class _FlowWarpBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(  # no *args: torch.compile tells a forward without ctx by its number of parameters
        grad_out: Tensor,
        image: Tensor,
        flow: Tensor,
        mask: Tensor | None,
        new: Tensor | None,
        mode: str,
        padding_mode: str,
        need_image: bool,
        need_flow: bool,
        need_mask: bool,
        need_new: bool,
    ) -> Any:
        needs = (need_image, need_flow, need_mask, need_new)
        deterministic = torch.are_deterministic_algorithms_enabled()
        return _native.kernels.flow_warp_backward(
            grad_out, image, flow, mask, new, mode, padding_mode, *needs, deterministic
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.options, ctx.needs = inputs[5:7], inputs[7:]

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor) -> Any:
        grad_out, *tensors = ctx.saved_tensors
        gradients = second_order(
            lambda *arguments: _reference(*arguments, *ctx.options),
            tensors,
            ctx.needs,
            grad_out,
            grad_grads,
            ctx.needs_input_grad[:5],
        )
        return *gradients, *[None] * 6


# ---- registration, on the ops that the native library defines ----


def _empty_like(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    layout = torch.channels_last if _is_channels_last(image) else torch.contiguous_format
    return torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=layout)


def _is_channels_last(image: Tensor) -> bool:
    """channels_last (or channels_last_3d) and not contiguous; by strides, since vmap can't be asked for the former."""
    last = [0, *range(2, image.dim()), 1]
    return image.numel() > 0 and not _is_packed(image, range(image.dim())) and _is_packed(image, last)


def _is_packed(image: Tensor, order: Sequence[int]) -> bool:
    expected = 1
    for dim in reversed(order):
        if image.shape[dim] != 1 and image.stride(dim) != expected:
            return False
        expected = expected * image.shape[dim]
    return True


def _flow_warp_fake(
    image: Tensor, flow: Tensor, mask: Tensor | None, new: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    _check("flow_warp", image, flow, mode, padding_mode, mask, new, blend=mask is not None or new is not None)
    return _empty_like(image, (*image.shape[:2], *flow.shape[2:]))


def _flow_warp_backward_fake(
    grad_out: Tensor,
    image: Tensor,
    flow: Tensor,
    mask: Tensor | None,
    new: Tensor | None,
    mode: str,
    padding_mode: str,
    need_image: bool,
    need_flow: bool,
    need_mask: bool,
    need_new: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = _flow_warp_fake(image, flow, mask, new, mode, padding_mode)
    check_same_device("flow_warp_backward", "grad_out", grad_out, "image", image)
    sizes = dict(zip(("B", "C", "Ho", "Wo"), out.shape, strict=True))
    check_shape("flow_warp_backward", "grad_out", grad_out, "B C Ho Wo", sizes)
    return (
        _empty_like(image, tuple(image.shape)) if need_image else image.new_empty(0),
        flow.new_empty(flow.shape) if need_flow else flow.new_empty(0),
        flow.new_empty((flow.shape[0], 1, *flow.shape[2:])) if need_mask else flow.new_empty(0),
        _empty_like(image, tuple(grad_out.shape)) if need_new else image.new_empty(0),
    )


def register(namespace: str) -> None:
    """Gives the ops of a loaded library their fake and vmap rules."""
    register_batched(namespace, {"flow_warp": _flow_warp_fake, "flow_warp_backward": _flow_warp_backward_fake})


_native.native_status()  # the libraries are loaded from here on
if hasattr(torch.ops.vgkernels, "flow_warp"):
    register("vgkernels")
