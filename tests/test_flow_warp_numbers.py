"""flow_warp's numbers: against grid_sample, at all sizes and dtypes, where they are not finite, and bit for bit."""

import itertools
import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flow_warp_samples import DTYPES, MODES, PADDINGS, TOLERANCE, BlendSuite, PlainSuite, generator, make
from op_suite import Sample, needs_native, run_tests_again
from torch import Tensor

from vgkernels import flow_warp, flow_warp_blend, flow_warp_blend_reference, flow_warp_reference

# ---- the peer: grid_sample ----


def grid_sample(image: Tensor, flow: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    extents = image.shape[2:]
    axes = torch.meshgrid(
        *(torch.arange(n, device=flow.device, dtype=flow.dtype) for n in flow.shape[2:]), indexing="ij"
    )
    grid = [2 * (axes[-1 - i] + flow[:, i]) / max(extents[-1 - i] - 1, 1) - 1 for i in range(len(extents))]
    return F.grid_sample(image, torch.stack(grid, -1), mode=mode, padding_mode=padding_mode, align_corners=True)


def with_gradients(function: Any, image: Tensor, flow: Tensor, **options: Any) -> tuple[Tensor, ...]:
    image, flow = image.detach().requires_grad_(), flow.detach().requires_grad_()
    out = function(image, flow, **options)
    grad_out = torch.randn(out.shape, generator=generator(11), dtype=torch.float32).to(out)
    return out.detach(), *torch.autograd.grad(out, (image, flow), grad_out)


@pytest.mark.parametrize("function", [flow_warp, flow_warp_reference])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", [*MODES, "bicubic"])
def test_equals_grid_sample(function: Any, mode: str, padding_mode: str, device: str) -> None:
    for image, out in (
        ((2, 3, 6, 7), (5, 9)),
        ((1, 17, 16, 15), (17, 16)),
        ((1, 2, 2, 9), (3, 3)),
        ((1, 1, 3, 2), (2, 5)),
    ):
        sample = make("peer", image, out, reach=12, seed=sum(out)).tensors
        got, want = (
            with_gradients(f, *(t.to(device) for t in sample.values()), mode=mode, padding_mode=padding_mode)
            for f in (function, grid_sample)
        )
        for name, a, b in zip(("out", "image", "flow"), got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("function", [flow_warp, flow_warp_reference])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_grid_sample_on_and_beyond_the_edges(function: Any, mode: str, padding_mode: str) -> None:
    # 5 rows and 9 columns: the peer's normalisation is exact, so both stand on the very same kinks, halves included
    image = torch.randn(1, 3, 5, 9, generator=generator(1), dtype=torch.float64)
    x, y = torch.meshgrid(torch.arange(-6, 24.5, 0.5), torch.arange(-4, 13.5, 0.5), indexing="xy")
    ho, wo = x.shape
    flow = torch.stack([x - torch.arange(wo), y - torch.arange(ho)[:, None]])[None].double()
    got, want = (with_gradients(f, image, flow, mode=mode, padding_mode=padding_mode) for f in (function, grid_sample))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    beyond = (x <= 0) | (x >= 8)
    if padding_mode == "border":
        assert not got[2][0, 0][beyond].any()
        assert mode == "nearest" or got[2][0, 0][~beyond].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_5d_equals_grid_sample(mode: str, padding_mode: str) -> None:
    sample = make("volume", (2, 3, 4, 5, 6), (3, 6, 4), reach=6).tensors.values()
    got, want = (with_gradients(f, *sample, mode=mode, padding_mode=padding_mode) for f in (flow_warp, grid_sample))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "sample",
    [
        *(make(f"5-D-{p}", (1, 2, 3, 2, 4), (2, 3, 2), padding_mode=p) for p in PADDINGS),
        make("5-D-nearest", (1, 2, 3, 2, 4), (2, 3, 2), mode="nearest"),
        *(make(f"bicubic-{p}", (1, 2, 4, 5), (3, 4), mode="bicubic", padding_mode=p) for p in PADDINGS),
        make("5-D-blend", (1, 2, 3, 2, 4), (2, 3, 2), blend=True),
        make("bicubic-blend", (1, 2, 4, 5), (3, 4), blend=True, mode="bicubic"),
    ],
    ids=lambda sample: sample.name,
)
def test_bicubic_and_5d_twice_differentiable(sample: Sample) -> None:
    function = flow_warp_blend if "mask" in sample.tensors else flow_warp
    tensors = [t.requires_grad_() for t in sample.tensors.values()]
    assert torch.autograd.gradcheck(lambda *t: function(*t, **sample.options), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t, **sample.options), tensors, fast_mode=True)


def test_bicubic_and_5d_raise_no_warning_and_keep_layout(recwarn: pytest.WarningsRecorder) -> None:
    volume = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    out = flow_warp(volume, torch.zeros(2, 3, 4, 5, 6))
    assert torch.equal(out, volume)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    flow_warp(torch.randn(1, 2, 4, 5), torch.zeros(1, 2, 4, 5), mode="bicubic")
    assert not recwarn.list


# Around the vectors and tiles of the kernels; every path of theirs has its channels.
SIZES = [
    *(((1, c, 15, 17), (16, 15)) for c in (1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 48, 64, 65)),
    *(((2, 3, h, w), (h, w)) for h, w in ((1, 1), (1, 16), (15, 1), (2, 2), (16, 33), (31, 2))),
    *(((2, 16, h, w), (17, 31)) for h, w in ((1, 1), (1, 7), (9, 1), (2, 2))),
    ((1, 3, 40, 56), (3, 200)),
    ((3, 20, 7, 5), (40, 3)),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize(("image", "out"), SIZES, ids=lambda shape: "x".join(map(str, shape)))
def test_sizes(image: tuple[int, ...], out: tuple[int, ...], layout: torch.memory_format, device: str) -> None:
    for mode, padding_mode in itertools.product(MODES, PADDINGS):
        full = make("", image, out, blend=True, reach=8, seed=image[1], mode=mode, padding_mode=padding_mode)
        full = BlendSuite().cast(full, torch.bfloat16, device)  # numbers that every dtype holds
        plain = replace(full, tensors={k: full.tensors[k] for k in ("image", "flow")})
        for suite, sample in ((BlendSuite(), full), (PlainSuite(), plain)):
            want = suite.run(suite.reference, suite.cast(sample, torch.float64))
            for dtype in DTYPES:
                case = suite.cast(sample, dtype)
                case.tensors["image"] = case.tensors["image"].contiguous(memory_format=layout)
                for k, got in suite.run(suite.call, case).items():
                    table = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
                    allowed = table[k] + want[k].abs() * torch.finfo(got.dtype).eps
                    error = (got.double() - want[k]).abs()
                    assert (error <= allowed).all(), f"{k}, {dtype}, {sample.options}: off by {error.max()}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_is_kept(dtype: torch.dtype, device: str) -> None:
    sample = BlendSuite().cast(make("", (2, 5, 6, 7), (4, 9), blend=True), dtype, device)
    for layout in (torch.contiguous_format, torch.channels_last):
        image, flow, mask, new = sample.tensors.values()
        image = image.contiguous(memory_format=layout).detach().requires_grad_()
        for out in (
            flow_warp(image, flow),
            flow_warp_blend(image, flow, mask, new),
            flow_warp(image, flow, mode="bicubic"),
            flow_warp(image, flow, impl="reference"),
        ):
            assert out.is_contiguous(memory_format=layout)
        flow_warp(image, flow).sum().backward()
        assert image.grad.is_contiguous(memory_format=layout)
    for odd in (image.detach().transpose(-1, -2), image.detach()[:, :, ::2]):
        assert flow_warp(odd, flow).is_contiguous()


# ---- numbers ----


@pytest.mark.parametrize("flow_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flow_and_mask_dtype(dtype: torch.dtype, flow_dtype: torch.dtype, device: str) -> None:
    sample = make("", (2, 3, 6, 7), (6, 7), blend=True)
    image, flow, mask, new = (t.to(device) for t in sample.tensors.values())
    image, new = image.to(dtype), new.to(dtype)
    flow, mask = flow.to(flow_dtype).requires_grad_(), mask.to(flow_dtype).requires_grad_()
    out = flow_warp_blend(image, flow, mask, new)
    want = flow_warp_blend_reference(*(t.detach().double() for t in (image, flow, mask, new)))
    assert out.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), want, rtol=eps, atol=1e-12 if dtype == torch.float64 else 2e-5)
    out.sum().backward()
    assert (flow.grad.dtype, mask.grad.dtype) == (flow_dtype, flow_dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_accuracy(layout: torch.memory_format, device: str) -> None:
    exact = make("", (1, 64, 40, 56), (40, 56), reach=16).tensors
    single = [t.to(device, torch.float32) for t in exact.values()]
    single[0] = single[0].contiguous(memory_format=layout)
    want = with_gradients(flow_warp_reference, *(t.double() for t in single))
    ours, peer = (
        [(a.double() - b).abs().max().item() for a, b in zip(with_gradients(f, *single), want, strict=True)]
        for f in (flow_warp, grid_sample)
    )
    for name, our, their in zip(("out", "image", "flow"), ours, peer, strict=True):
        assert our <= TOLERANCE[torch.float32][name], name
        assert our <= 1.5 * their, name


@pytest.mark.parametrize("function", [flow_warp, flow_warp_reference])
@pytest.mark.parametrize("dtype", DTYPES)
def test_flow_that_is_not_finite(dtype: torch.dtype, function: Any, device: str) -> None:
    image = torch.randn(1, 3, 4, 5, generator=generator(2)).to(device, dtype)
    first, last = image[..., 0], image[..., -1]
    zero = torch.zeros_like(first)
    for value, border, reflected in ((math.nan, first, first), (math.inf, last, first), (-math.inf, first, first)):
        for mode in (*MODES, "bicubic"):
            for padding, want in (("border", border), ("reflection", reflected), ("zeros", zero)):
                if mode == "bicubic" and function is flow_warp:
                    continue
                flow = torch.zeros(1, 2, 4, 5, device=device)
                flow[:, 0] = value
                flow.requires_grad_()
                out = function(image, flow, mode=mode, padding_mode=padding)
                torch.testing.assert_close(out, want[..., None].expand_as(out), rtol=0, atol=0)
                out.sum().backward()
                assert not flow.grad[:, 0].any()
    for huge in (1e30, -1e30, 3e38, 2.0**31, -(2.0**31), 2.0**63):
        for padding, mode in itertools.product(PADDINGS, MODES):
            flow = torch.full((1, 2, 4, 5), huge, device=device)
            out = function(image, flow, mode=mode, padding_mode=padding)
            assert torch.isfinite(out).all()
            if padding == "zeros":
                assert not out.any()
            elif padding == "border":
                edge = image[:, :, -1, -1] if huge > 0 else image[:, :, 0, 0]
                assert torch.equal(out, edge[..., None, None].expand_as(out))


@pytest.mark.parametrize("function", [flow_warp, flow_warp_reference])
@pytest.mark.parametrize("channels", [1, 3, 16, 20])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_taps_of_weight_0_add_nothing(value: float, channels: int, function: Any, device: str) -> None:
    clean = torch.randn(1, channels, 6, 20, generator=generator(3)).to(device)
    image = clean.clone()
    image[:, :, ::2, ::2] = value
    bad = torch.zeros(6, 20, dtype=torch.bool, device=device)
    bad[::2, ::2] = True
    for laid, padding, mode in itertools.product(
        (image, image.contiguous(memory_format=torch.channels_last)), PADDINGS, (*MODES, "bicubic")
    ):
        still = torch.zeros(1, 2, 6, 20, device=device)
        assert torch.equal(function(laid, still, mode=mode, padding_mode=padding)[:, :, ~bad], clean[:, :, ~bad])
        away = torch.full_like(still, 1e6)
        if padding == "zeros":  # taps outside of the image
            assert not function(laid, away, mode=mode, padding_mode=padding).any()
        half = still.clone()
        half[:, 0, 1] = 0.5  # row 1 lies between two clean pixels of its own row
        out = function(laid, half, mode=mode, padding_mode=padding)
        assert out[:, :, 1, :-1].isfinite().all()
        blended = laid.detach().requires_grad_()
        function(blended, half, mode=mode, padding_mode=padding)[:, :, 1, :-1].sum().backward()
        assert blended.grad.isfinite().all()


def test_mask_does_not_hide_inf(device: str) -> None:
    image, flow = torch.zeros(1, 3, 4, 5, device=device), torch.zeros(1, 2, 4, 5, device=device)
    mask, new = torch.zeros(1, 1, 4, 5, device=device), torch.full((1, 3, 4, 5), math.inf, device=device)
    assert flow_warp_blend(image, flow, mask, new).isnan().all()
    assert flow_warp_blend_reference(image, flow, mask, new).isnan().all()


# ---- determinism ----


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("channels", [1, 3, 5, 16, 20, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_the_same_for_any_number_of_threads(
    dtype: torch.dtype, channels: int, layout: torch.memory_format
) -> None:
    suite = BlendSuite()
    case = suite.cast(make("", (2, channels, 37, 41), (53, 67), blend=True, reach=60), dtype)  # many meet in one pixel
    case.tensors["image"] = case.tensors["image"].contiguous(memory_format=layout)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 7, 1):
            torch.set_num_threads(threads)
            runs.append(suite.run(suite.call, case))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for k, tensor in runs[0].items():
            assert torch.equal(other[k], tensor), k


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("channels", [1, 3, 16, 64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_cuda_is_repeatable_on_request(channels: int, layout: torch.memory_format) -> None:
    suite = BlendSuite()
    case = suite.cast(make("", (2, channels, 64, 96), (96, 64), blend=True, reach=90), torch.float32, "cuda")
    case.tensors["image"] = case.tensors["image"].contiguous(memory_format=layout)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (suite.run(suite.call, case) for _ in range(5))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(torch.equal(other[k], first[k]) for k in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("channels", [1, 3, 16, 64])
def test_cuda_equals_cpu_on_another_stream(channels: int) -> None:
    suite = BlendSuite()
    case = suite.cast(make("", (2, channels, 33, 41), (37, 50), blend=True, reach=30), torch.float32)
    want = suite.run(suite.call, case)
    with torch.cuda.stream(torch.cuda.Stream()):
        got = suite.run(suite.call, suite.cast(case, torch.float32, "cuda"))
        got = {k: t.cpu() for k, t in got.items()}
    suite.assert_close(got, want, torch.float32)


@needs_native
@pytest.mark.parametrize("channels", [1, 3, 16, 18])
@pytest.mark.parametrize("dy", [-100.0, -20.0, 20.0, 100.0])
def test_rows_that_land_beyond_the_image(dy: float, channels: int) -> None:
    """The last cell's other row has weight 0 and is read all the same, by the gradient of the flow."""
    image = torch.randn(1, channels, 40, 33, generator=generator(3))
    flow = torch.stack((torch.full((40, 33), 0.5), torch.full((40, 33), dy))).unsqueeze(0)
    got = with_gradients(flow_warp, image, flow)
    want = with_gradients(flow_warp_reference, image, flow)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@needs_native
@pytest.mark.slow
def test_scratch_is_never_read_before_it_is_written() -> None:
    """glibc fills what malloc returns with 0x7F: as a float 3e38, which no sum survives."""
    select = "test_rows_that_land_beyond_the_image or test_sizes or test_flow_that_is_not_finite"
    run_tests_again(__file__, select, MALLOC_PERTURB_="128")


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    instruction_sets = ["baseline", "avx2", "avx512"]
    best = {"AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    if instruction_sets.index(isa) > best:
        pytest.skip(f"this CPU has no {isa}")
    if instruction_sets.index(isa) == best and "VGKERNELS_CPU_ISA" not in os.environ:
        pytest.skip(f"{isa} is what all the other tests ran on")
    run_tests_again(
        __file__,
        "test_sizes or test_layout_is_kept or test_flow_that_is_not_finite or test_taps",
        VGKERNELS_CPU_ISA=isa,
    )
