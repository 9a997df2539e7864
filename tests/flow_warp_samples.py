"""What the tests of flow_warp share: numbers to try, tolerances, bad input, and the suite of each of the two functions.

Decides how large an error may be; what is checked is decided in op_suite.py and the test files.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from op_suite import Bad, OpSuite, Sample
from torch import Tensor

from vgkernels import _native

MODES = ("bilinear", "nearest")  # the native ones
PADDINGS = ("border", "zeros", "reflection")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Absolute, on N(0, 1) data of at most 64 channels: the specification's figures; float64 is rounding alone.
TOLERANCE = {
    torch.float64: {"out": 1e-12, "image": 1e-12, "flow": 1e-11, "mask": 1e-11, "new": 1e-12},
    torch.float32: {"out": 2e-5, "image": 5e-5, "flow": 4e-4, "mask": 4e-4, "new": 2e-5},
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_flow(shape: tuple[int, ...], reach: float, seed: int) -> Tensor:
    """Random, and at least 0.1 away from where a derivative or a nearest neighbour jumps: n / 2 for every integer n."""
    g = generator(seed)
    halves = (reach * torch.randn(shape, generator=g, dtype=torch.float64)).round() / 2
    return halves + 0.1 + 0.3 * torch.rand(shape, generator=g, dtype=torch.float64)


def make(
    name: str,
    image: tuple[int, ...],
    out: tuple[int, ...],
    blend: bool = False,
    reach: float = 4,
    seed: int = 0,
    **options: Any,
) -> Sample:
    g = generator(seed)
    tensors = {
        "image": torch.randn(image, generator=g, dtype=torch.float64),
        "flow": smooth_flow((image[0], len(out), *out), reach, seed + 1),
    }
    if blend:
        tensors["mask"] = torch.rand((image[0], 1, *out), generator=g, dtype=torch.float64)
        tensors["new"] = torch.randn((*image[:2], *out), generator=g, dtype=torch.float64)
    return Sample(name, tensors, options)


def some_samples(blend: bool) -> list[Sample]:
    return [
        make(f"{mode}-{padding}", (2, 3, 5, 6), (4, 7), blend, mode=mode, padding_mode=padding)
        for mode, padding in itertools.product(MODES, PADDINGS)
        if not blend or mode == "bilinear" or padding == "border"
    ]


def empties(blend: bool) -> list[Sample]:
    return [
        make("no-batch", (0, 3, 4, 5), (4, 5), blend),
        make("no-channels", (2, 0, 4, 5), (3, 2), blend),
        make("no-rows", (2, 3, 4, 5), (0, 5), blend),
        make("no-columns", (2, 3, 4, 5), (4, 0), blend),
    ]


def changed(**change: Any) -> Any:
    """For `Bad`: name=function of the tensor there, or name=value of the option there."""

    def change_in_place(tensors: dict[str, Any], options: dict[str, Any]) -> None:
        for k, value in change.items():
            if k in tensors:
                tensors[k] = value(tensors[k]) if callable(value) else value
            else:
                options[k] = value

    return change_in_place


BAD = [
    Bad("no-tensor", changed(image=3), TypeError, "expected image to be a tensor, got int"),
    Bad("list", changed(flow=lambda t: t.tolist()), TypeError, "expected flow to be a tensor, got list"),
    Bad("integer-image", changed(image=Tensor.int), TypeError, "expected image of dtype float64 or .*, got int32"),
    Bad("complex-image", changed(image=Tensor.cfloat), TypeError, "expected image of dtype .*, got complex64"),
    Bad("integer-flow", changed(flow=Tensor.long), TypeError, "expected flow of dtype .*, got int64"),
    Bad(
        "3-D-image",
        changed(image=lambda t: t[0]),
        ValueError,
        r"expected image of shape \(B, C, H, W\), got \(3, 5, 6\)",
    ),
    Bad(
        "flow-channels",
        changed(flow=lambda t: t[:, [0, 1, 1]]),
        ValueError,
        r"expected flow of shape \(B, 2, Ho, Wo\) = \(2, 2, Ho, Wo\), got \(2, 3, 4, 7\)",
    ),
    Bad(
        "flow-batch",
        changed(flow=lambda t: t[:1]),
        ValueError,
        r"expected flow of shape \(B, 2, Ho, Wo\) = \(2, 2, Ho, Wo\), got \(1, 2, 4, 7\)",
    ),
    Bad("flow-rank", changed(flow=lambda t: t[0]), ValueError, r"expected flow of shape .*, got \(2, 4, 7\)"),
    Bad(
        "5-D-image",
        changed(image=lambda t: t[:, :, None]),
        ValueError,
        r"expected flow of shape \(B, 3, Do, Ho, Wo\) = \(2, 3, Do, Ho, Wo\), got \(2, 2, 4, 7\)",
    ),
    Bad(
        "5-D-bicubic",
        changed(image=lambda t: t[:, :, None], mode="bicubic"),
        ValueError,
        "expected mode 'bilinear' or 'nearest' for a 5-D image, got 'bicubic'",
    ),
    Bad(
        "no-height",
        changed(image=lambda t: t[:, :, :0]),
        ValueError,
        r"expected image with H > 0, got shape \(2, 3, 0, 6\)",
    ),
    Bad("no-width", changed(image=lambda t: t[..., :0]), ValueError, "expected image with W > 0, got shape"),
    Bad("device", changed(flow=lambda t: t.to("meta")), ValueError, "expected flow on image's device cpu, got meta"),
    Bad("mode", changed(mode="linear"), ValueError, "expected mode to be one of 'bilinear', .*, got 'linear'"),
    Bad("padding", changed(padding_mode="wrap"), ValueError, "expected padding_mode to be one of .*, got 'wrap'"),
    Bad("impl", changed(impl="cuda"), ValueError, "expected impl to be one of 'auto', 'native', .*, got 'cuda'"),
    Bad(
        "native-bicubic",
        changed(impl="native", mode="bicubic"),
        ValueError,
        "expected impl='auto' or 'reference' for mode='bicubic', got impl='native'",
    ),
]
BAD_BLEND = [
    Bad("no-mask", changed(mask=None), TypeError, "expected mask to be a tensor, got NoneType"),
    Bad("no-new", changed(new=None), TypeError, "expected new to be a tensor, got NoneType"),
    Bad("boolean-mask", changed(mask=Tensor.bool), TypeError, "expected mask of dtype .*, got bool"),
    Bad(
        "mask-channels",
        changed(mask=lambda t: t.expand(-1, 3, -1, -1)),
        ValueError,
        r"expected mask of shape \(B, 1, Ho, Wo\) = \(2, 1, 4, 7\), got \(2, 3, 4, 7\)",
    ),
    Bad("new-dtype", changed(new=Tensor.half), TypeError, "expected new of image's dtype float32, got float16"),
    Bad(
        "new-size",
        changed(new=lambda t: t[..., 1:]),
        ValueError,
        r"expected new of shape \(B, C, Ho, Wo\) = \(2, 3, 4, 7\), got \(2, 3, 4, 6\)",
    ),
    Bad("mask-device", changed(mask=lambda t: t.to("meta")), ValueError, "expected mask on image's device cpu"),
]
# Through torch.ops nothing is cast, and whatever could touch memory out of bounds is refused.
BAD_NATIVE = [
    Bad("integer-image", changed(image=Tensor.int), RuntimeError, "expected image "),
    Bad("flow-dtype", changed(flow=Tensor.double), RuntimeError, "expected flow "),
    Bad("3-D-image", changed(image=lambda t: t[0]), RuntimeError, "expected image "),
    Bad("flow-rank", changed(flow=lambda t: t[0]), RuntimeError, "expected flow "),
    Bad("flow-batch", changed(flow=lambda t: t[:1]), RuntimeError, "expected flow "),
    Bad("flow-channels", changed(flow=lambda t: t[:, [0, 1, 1]]), RuntimeError, "expected flow "),
    Bad("no-height", changed(image=lambda t: t[:, :, :0]), RuntimeError, "expected image "),
    Bad("mode", changed(mode="bicubic"), RuntimeError, "expected mode"),
    Bad("padding", changed(padding_mode="wrap"), RuntimeError, "expected padding_mode"),
]
BAD_NATIVE_BLEND = [
    Bad("mask-alone", changed(new=None), RuntimeError, "expected .*(mask|new)"),
    Bad("new-alone", changed(mask=None), RuntimeError, "expected .*(mask|new)"),
    Bad("mask-size", changed(mask=lambda t: t[..., 1:]), RuntimeError, "expected mask "),
    Bad("mask-channels", changed(mask=lambda t: t.expand(-1, 2, -1, -1)), RuntimeError, "expected mask "),
    Bad("mask-dtype", changed(mask=Tensor.half), RuntimeError, "expected mask "),
    Bad("new-channels", changed(new=lambda t: t[:, 1:]), RuntimeError, "expected new "),
    Bad("new-size", changed(new=lambda t: t[:, :, 1:]), RuntimeError, "expected new "),
    Bad("new-dtype", changed(new=Tensor.double), RuntimeError, "expected new "),
]


class FlowWarpSuite(OpSuite):
    wide = frozenset({"flow", "mask"})
    tolerance = TOLERANCE

    def native_calls(self, sample: Sample) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        t = sample.tensors
        blend = "mask" in t
        shared = (t["image"], t["flow"], t.get("mask"), t.get("new"), *sample.options.values())
        yield _native.kernels.flow_warp.default, shared
        image = self.samples[0].tensors["image"]
        grad_out = torch.randn(*image.shape[:2], *self.samples[0].tensors["flow"].shape[2:], generator=generator(5))
        grad_out = grad_out.to(t["image"].device, t["image"].dtype if t["image"].is_floating_point() else torch.float32)
        yield _native.kernels.flow_warp_backward.default, (grad_out, *shared, True, True, blend, blend, False)


class PlainSuite(FlowWarpSuite):
    op = "flow_warp"
    samples = some_samples(blend=False)
    empty = empties(blend=False)
    bad = BAD
    bad_native = BAD_NATIVE


class BlendSuite(FlowWarpSuite):
    op = "flow_warp_blend"
    samples = some_samples(blend=True)
    empty = empties(blend=True)
    bad = BAD + BAD_BLEND
    bad_native = BAD_NATIVE + BAD_NATIVE_BLEND
