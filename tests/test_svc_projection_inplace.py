"""svc_projection_: what it guarantees about values and bits, in all layouts, and about input that it refuses."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from op_suite import LOW_PRECISION, needs_native
from svc_projection_samples import (
    ABOVE,
    ERROR,
    SHAPES,
    SPECTRA,
    WIDE_ERROR,
    clipped,
    generator,
    hard_case,
    largest_value,
    relative_error,
    uniform,
    with_values,
)
from torch import Tensor

from vgkernels import _native, svc_projection_, svc_projection_inplace

law = settings(max_examples=40)
ALGORITHMS = [pytest.param("auto", marks=needs_native), "svd"]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def critic(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """TGAN's critic, an eighth as wide."""
    shapes = ((8, 3, 4, 4, 4), (16, 8, 4, 4, 4), (32, 16, 4, 4, 4), (64, 32, 4, 4, 4), (1, 64, 4, 4))
    return [
        with_values(s[0], math.prod(s[1:]), uniform(s[0], 0.3, 1.2, seed + i)).to(dtype).view(s)
        for i, s in enumerate(shapes)
    ]


# ---- values and bits ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_guarantees_on_hard_spectra(spectrum: str, algorithm: str, device: str) -> None:
    shapes = (*SHAPES, (1, 50), (50, 1)) if algorithm == "auto" else ((64, 192), (96, 96), (50, 1))
    for dtype in ABOVE:
        before = [hard_case(spectrum, m, n).to(device, dtype) for m, n in shapes]
        weights = [weight.clone() for weight in before]
        report = svc_projection_(weights, algorithm=algorithm)
        after = [weight.clone() for weight in weights]
        for i, (weight, got) in enumerate(zip(before, after, strict=True)):
            values = torch.linalg.svdvals(weight.double())
            assert largest_value(got) <= 1 + ABOVE[dtype]
            wide = spectrum == "wide" and dtype == torch.float32
            assert relative_error(got, clipped(weight)) <= (WIDE_ERROR if wide else ERROR[dtype])
            assert report.certified[i]
            margin = 1e-14 * 20 if dtype == torch.float64 else 3e-6  # twice the tolerance, and none of it
            assert int((values > 1 + 2 * margin).sum()) <= report.clipped[i] <= int((values > 1).sum())
            assert (report.state[i] == "clipped") == (report.clipped[i] > 0)
            if report.state[i] == "clipped":
                least, most = (1e-6, 0.011) if _native.runs_cuda_kernels(weight.device) else (1e-5, 1e-5)
                assert float(values[0]) * (1 - least) <= report.largest[i] <= float(values[0]) * (1 + most)
            else:
                assert torch.equal(bits(got), bits(weight))
                assert report.largest[i] >= float(values[0]) * (1 - 1e-5)
        if spectrum == "all inside":
            assert set(report.state) == {"inside"}
        again = svc_projection_(weights, algorithm=algorithm)
        assert set(again.state) == {"inside"}
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(weights, after, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", ABOVE)
def test_bits_depend_neither_on_threads_nor_on_company(dtype: torch.dtype) -> None:
    case = [hard_case(name, m, n).to(dtype) for name in ("to 3.9", "wide") for m, n in ((64, 192), (96, 96), (300, 40))]
    case += [weight.flatten(1) for weight in critic(dtype)] + [hard_case("few above 1", 128, 4096).to(dtype)]
    alone = [weight.clone() for weight in case]
    for weight in alone:
        svc_projection_(weight)
    threads = torch.get_num_threads()
    try:
        for count, order in ((1, 1), (2, 1), (2, -1)):
            torch.set_num_threads(count)
            together = [weight.clone() for weight in case]
            svc_projection_(together[::order])
            for a, b in zip(alone, together, strict=True):
                assert torch.equal(bits(a), bits(b))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision(dtype: torch.dtype, algorithm: str) -> None:
    for spectrum, (m, n) in itertools.product(SPECTRA, ((64, 192), (96, 96), (300, 40), (1, 50))):
        before = hard_case(spectrum, m, n).to(dtype)
        for bound in (1.0, 0.37):
            weight = before.clone()
            report = svc_projection_(weight, bound, algorithm=algorithm)
            assert report.certified == [True]
            assert largest_value(weight) <= bound * (1 + 2**-8)
            once = weight.clone()
            assert svc_projection_(weight, bound, algorithm=algorithm).clipped == [0]
            assert torch.equal(bits(weight), bits(once))
            assert relative_error(weight, clipped(before, bound)) <= 2 * torch.finfo(dtype).eps
            if largest_value(before) <= bound:
                assert torch.equal(bits(weight), bits(before))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bounds_of_all_sizes(algorithm: str, scale: float) -> None:
    for dtype, name in itertools.product(ABOVE, ("few above 1", "to 3.9", "all inside")):
        before = (hard_case(name, 64, 192) * scale).to(dtype)
        weight = before.clone()
        svc_projection_(weight, scale, algorithm=algorithm)
        assert largest_value(weight) <= scale * (1 + ABOVE[dtype])
        assert relative_error(weight, clipped(before, scale)) <= ERROR[dtype]


@law
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.sampled_from((0.3, 1.0, 2.5)),
    st.sampled_from((torch.float64, torch.float32)),
    st.integers(0, 999),
)
def test_every_small_shape(shapes: list[tuple[int, int]], bound: float, dtype: torch.dtype, seed: int) -> None:
    g = generator(seed)
    before = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    weights = [weight.clone() for weight in before]
    svc_projection_(weights, bound)
    for got, weight in zip(weights, before, strict=True):
        assert largest_value(got) <= bound * (1 + ABOVE[dtype])
        torch.testing.assert_close(got, clipped(weight, bound).to(dtype), rtol=0, atol=10 * ERROR[dtype])


# ---- layouts ----


def laid_out(case: str) -> tuple[Tensor, int, Tensor | None]:
    """A weight, its dim, and what lies around it in memory."""
    values = torch.linspace(0.3, 2.1, 6, dtype=torch.float64)
    if case.startswith("convolution"):
        weight = with_values(6, 24, values).float().view(6, 6, 2, 2)
        return (weight.contiguous(memory_format=torch.channels_last) if "last" in case else weight), 0, None
    if case == "transposed convolution":
        return with_values(6, 20, values).float().view(6, 5, 2, 2).transpose(0, 1).contiguous(), 1, None
    if case == "cropped":  # copied
        around = torch.full((6, 5, 3, 3), 7.0)
        around[:, :, :2, :2] = with_values(6, 20, values).float().view(6, 5, 2, 2)
        return around[:, :, :2, :2], 0, around
    around = torch.full((9, 30), 7.0)
    if case == "strided":  # no stride of 1: copied
        around[:6, :28:2] = with_values(6, 14, values).float()
        return around[:6, :28:2], 0, around
    around[1:7, 2:22] = with_values(6, 20, values).float()
    inner = around[1:7, 2:22]
    return {"slice": (inner, 0), "slice.t()": (inner.t(), 0), "slice, dim=1": (inner, 1)}[case] + (around,)


CASES = ("convolution", "convolution, channels_last", "transposed convolution", "strided", "cropped")
SLICES = ("slice", "slice.t()", "slice, dim=1")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", [*CASES, *SLICES])
def test_layouts(case: str, algorithm: str) -> None:
    weight, dim, around = laid_out(case)
    moved = weight.movedim(dim, 0).clone()
    want = clipped(moved.flatten(1)).view(moved.shape).movedim(0, dim)
    mask = None if around is None else around == 7
    strides, address = weight.stride(), weight.data_ptr()
    report = svc_projection_(weight, dim=dim, algorithm=algorithm)
    assert report.clipped == [4]
    assert (weight.stride(), weight.data_ptr()) == (strides, address)
    assert relative_error(weight, want) <= ERROR[torch.float32]
    if around is not None:
        assert torch.equal(around == 7, mask)


@needs_native
def test_what_has_a_stride_of_1_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    op = torch.ops.vgkernels.svc_projection_
    monkeypatch.setattr(
        torch.ops.vgkernels, "svc_projection_", lambda weights, *more: (seen.extend(weights), op(weights, *more))[1]
    )
    for case in (*CASES, *SLICES):
        weight, dim, _ = laid_out(case)
        svc_projection_(weight, dim=dim)
        assert (seen.pop().data_ptr() == weight.data_ptr()) == (case not in CASES[2:])


def test_the_same_with_requires_grad_and_in_inference_mode() -> None:
    want = critic()
    svc_projection_(want)
    leaves = [weight.requires_grad_() for weight in critic()]
    versions = [weight._version for weight in leaves]
    product = (leaves[0] * leaves[0]).sum()
    svc_projection_(leaves)
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in leaves)
    assert all(leaf._version > version for leaf, version in zip(leaves, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        inferred = critic()
        svc_projection_(inferred)
    for other in (leaves, inferred):
        assert all(torch.equal(a, b) for a, b in zip(other, want, strict=True))


def test_dtypes_may_be_mixed() -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16)
    mixed = [weight.to(dtype) for weight, dtype in zip(critic(), dtypes, strict=True)]
    alone = [weight.clone() for weight in mixed]
    report = svc_projection_(mixed)
    for i, weight in enumerate(alone):
        single = svc_projection_(weight)
        assert torch.equal(weight, mixed[i])
        assert (single.clipped[0], single.largest[0]) == (report.clipped[i], report.largest[i])


@pytest.mark.parametrize("algorithm", [pytest.param("gram", marks=needs_native), "sign"])
def test_algorithms_agree(algorithm: str) -> None:
    want, got = critic(), critic()
    svc_projection_(want, algorithm="svd")
    report = svc_projection_(got, algorithm=algorithm)
    assert all(report.certified)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b.double()) <= 2 * ERROR[torch.float32]


# ---- the patch bound ----


def test_patch_bound_divides_by_the_overlap() -> None:
    weights = [torch.eye(4)[:, :, None, None].repeat(1, 1, 3, 3) * 10 for _ in range(3)]
    svc_projection_(weights, 2.0, bound="patch", strides=[1, (1, 3), 2], dilations=[None, 1, (2, 1)])
    for weight, patches in zip(weights, (9, 3, 6), strict=True):
        assert largest_value(weight.flatten(1)) == pytest.approx(2 / math.sqrt(patches), rel=1e-5)
    for options, patches in (({}, 9), ({"strides": 2}, 4), ({"strides": (3, 3), "dilations": 2}, 1)):
        weight = torch.eye(4)[:, :, None, None].repeat(1, 1, 3, 3)
        svc_projection_(weight, bound="patch", **options)
        assert largest_value(weight.flatten(1)) == pytest.approx(1 / math.sqrt(patches), rel=1e-5)


# ---- what is refused, and nothing written ----


def unchanged(weights: list[Tensor], call: Callable[[], Any]) -> Iterator[bool]:
    before = [bits(weight).clone() for weight in weights]
    versions = [weight._version for weight in weights]
    call()
    yield from (torch.equal(bits(w), b) for w, b in zip(weights, before, strict=True))
    yield versions == [weight._version for weight in weights]


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "sign"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_anywhere_changes_nothing(value: float, algorithm: str) -> None:
    def call() -> None:
        match = rf"^svc_projection_: expected finite weights, got NaN or Inf in weights\[{i}\]; nothing was modified$"
        with pytest.raises(RuntimeError, match=match):
            svc_projection_(weights, algorithm=algorithm)

    for i, place in itertools.product(range(5), (0, 13, -1)):
        weights = critic()
        weights[i].view(-1)[place] = value
        assert all(unchanged(weights, call))
    for place in (value, 1e100, 1e75):  # the last at the edge of the kernels' range
        weights = [weight.double() if j % 2 else weight for j, weight in enumerate(critic())]  # two groups
        weights[i := 3].view(-1)[5] = place
        assert all(unchanged(weights, call))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_skip_leaves_that_weight_alone(algorithm: str) -> None:
    weights, want = critic(), critic()
    weights[2].view(-1)[5] = math.nan
    before = weights[2].clone()
    report = svc_projection_(weights, nonfinite="skip", algorithm=algorithm)
    svc_projection_(want, algorithm=algorithm)
    assert report.state[2] == "nonfinite"
    assert "nonfinite" not in report.state[:2] + report.state[3:]
    assert math.isnan(report.largest[2])
    assert not report.certified[2]
    assert torch.equal(bits(weights[2]), bits(before))
    assert all(torch.equal(weights[i], want[i]) for i in (0, 1, 3, 4))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_zeros_are_inside(algorithm: str) -> None:
    for dtype in (*ABOVE, *LOW_PRECISION):
        report = svc_projection_([torch.zeros(3, 5, dtype=dtype), -torch.zeros(6, 2, dtype=dtype)], algorithm=algorithm)
        assert report.state == ["inside", "inside"]


BAD = {
    "no tensor": (lambda w: ([w[0], 3], {}), TypeError, r"expected weights\[1\] to be a tensor, got int"),
    "nothing to iterate": (lambda w: (3, {}), TypeError, "expected weights to be a tensor or a sequence of them"),
    "integer": (lambda w: ([w[0], w[1].int()], {}), TypeError, r"expected weights\[1\] of dtype .*, got int32"),
    "complex": (lambda w: ([w[1].cfloat()], {}), TypeError, r"expected weights\[0\] of dtype .*, got complex64"),
    "1-D": (lambda w: ([w[0], w[1][0]], {}), ValueError, r"expected weights\[1\] of at least 2 dimensions, got"),
    "empty": (lambda w: ([w[0], w[1][:, :0]], {}), ValueError, r"expected weights\[1\] with size\(1\) > 0, got"),
    "meta": (lambda w: ([w[0], w[1].to("meta")], {}), ValueError, r"expected weights\[1\] on a device that holds data"),
    "expanded": (lambda w: ([w[0], w[1][:1].expand(4, 6)], {}), ValueError, r"expected weights\[1\] without elements"),
    "overlapping": (lambda w: ([w[0], w[1].as_strided((4, 5), (3, 1))], {}), ValueError, r"expected weights\[1\] with"),
    "twice": (lambda w: ([w[0], w[1], w[0]], {}), ValueError, r"expected weights that don't .* weights\[0\] and weigh"),
    "bound": (lambda w: (w, {"max_singular_value": -1}), ValueError, "expected max_singular_value from 1e-30 to"),
    "bound type": (lambda w: (w, {"max_singular_value": None}), TypeError, "expected max_singular_value to be a float"),
    "dim": (lambda w: (w, {"dim": 2}), ValueError, "expected dim from -2 to 1, got 2"),
    "dims": (lambda w: (w, {"dim": [0]}), ValueError, "expected dim to be an int or one for each of 2 weights"),
    "kind of bound": (lambda w: (w, {"bound": "exact"}), ValueError, "expected bound to be one of 'reshaped', 'patch'"),
    "nonfinite": (lambda w: (w, {"nonfinite": "warn"}), ValueError, "expected nonfinite to be one of 'raise', 'skip'"),
    "algorithm": (lambda w: (w, {"algorithm": "qr"}), ValueError, "expected algorithm to be one of 'auto', 'gram'"),
    "strides alone": (lambda w: (w, {"strides": 2}), ValueError, "expected strides and dilations only with bound='pat"),
    "patch, dim 1": (lambda w: (w, {"bound": "patch", "dim": [0, 1]}), ValueError, "expected dim 0 for bound='patch'"),
    "list of strides": (lambda w: (w, {"bound": "patch", "strides": [1]}), ValueError, "expected a list of strides to"),
    "stride's axes": (lambda w: (w, {"bound": "patch", "strides": (1, 1)}), ValueError, "expected strides to be an"),
    "stride 0": (lambda w: (w, {"bound": "patch", "strides": 0}), ValueError, "expected strides of ints > 0, got 0"),
    "stride's dilation": (lambda w: (w, {"bound": "patch", "dilations": 0}), ValueError, "expected dilations of ints"),
    "bound of a patch": (lambda w: ([w[0], w[1][..., None].expand(4, 6, 2).contiguous()], {
        "bound": "patch", "max_singular_value": 1e-30}), ValueError, r"expected the bound of weights\[1\] from"),
    "columns in common": (lambda w: ([w[0], w[1][:, :4], w[1][:, 2:]], {}), ValueError,
        r"expected weights that don't share memory, got weights\[1\] and weights\[2\]"),
    "rows in common": (lambda w: ([w[1], w[0], w[1][1:]], {}), ValueError, r".*got weights\[0\] and weights\[2\]"),
    "bytes in common": (lambda w: ([w[0], w[0].view(torch.bfloat16)[:, 3:]], {}), ValueError, r".*weights\[0\] and w"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_written(case: str) -> None:
    change, error, match = BAD[case]
    weights = [5 * torch.randn(4, 6, 3)[..., 0].contiguous() for _ in range(2)]
    if case.startswith(("stride", "list")):
        weights = [weight[..., None].contiguous() for weight in weights]

    def call() -> None:
        given, options = change(weights)
        with pytest.raises(error, match=f"^svc_projection_: {match}"):
            svc_projection_(given, **options)

    assert all(unchanged(weights, call))


def test_a_later_group_that_fails_leaves_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [weight.double() if i % 2 else weight for i, weight in enumerate(critic())]
    view = svc_projection_inplace.matrix_view

    def fails(weight: Tensor, dim: int) -> Tensor | None:
        if weight.dtype == torch.float64:
            raise MemoryError
        return view(weight, dim)

    def call() -> None:
        with pytest.raises(MemoryError):
            svc_projection_(weights)

    monkeypatch.setattr(svc_projection_inplace, "matrix_view", fails)
    assert all(unchanged(weights, call))


def test_no_weights() -> None:
    report = svc_projection_([])
    assert (len(report), report.clipped, report.largest) == (0, [], [])


def test_fallback_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = _native.NativeStatus(False, False, "it was taken away", "it was taken away")
    monkeypatch.setattr(_native, "_status", nothing)
    monkeypatch.setattr(_native, "_warned", set())
    monkeypatch.delenv("VGKERNELS_REQUIRE_NATIVE", raising=False)
    weights, want = critic(), critic()
    with pytest.warns(UserWarning, match="^svc_projection_: .*it was taken away"):
        svc_projection_(weights)
    svc_projection_(want, algorithm="svd")
    assert all(torch.equal(a, b) for a, b in zip(weights, want, strict=True))
    with pytest.raises(RuntimeError, match=r"^svc_projection_: expected algorithm 'auto' or 'svd', got 'gram', but it"):
        svc_projection_(weights, algorithm="gram")
