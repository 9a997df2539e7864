"""conv_gru's numbers: errors against float64, all sizes and dtypes, what is not finite, strides, and bit for bit."""

import itertools
import math
import os
from typing import Any

import pytest
import torch
from conv_gru_samples import (
    ALGORITHMS,
    LOW_PRECISION_ERROR,
    ConvGRUSuite,
    arguments,
    gradients,
    make,
    normal,
    without_ours,
)
from op_suite import LOW_PRECISION, Sample, needs_native, run_tests_again
from torch import Tensor

from vgkernels import conv_gru, conv_gru_reference

WINOGRAD_ERROR = 3e-5  # the specification's, relative to the largest


def direct_error(steps: int) -> float:
    return 1e-6 * math.sqrt(max(steps, 1))


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def error(got: Tensor, want: Tensor) -> float:
    """The largest, relative to the largest value."""
    return largest(got.double() - want) / max(largest(want), 1e-30)


def exact(sample: Sample, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients in float64 of the numbers that `dtype` holds."""
    tensors = {k: t.to(dtype).double() if k != "h0" else t.float().double() for k, t in sample.tensors.items()}
    options = {k: v for k, v in sample.options.items() if k not in ("algorithm", "checkpoint")}
    return gradients(conv_gru_reference, Sample(sample.name, tensors, options), torch.float64)


def narrowed(sample: Sample, dtype: torch.dtype, **options: Any) -> Sample:
    tensors = {k: t.to(dtype).double() if k != "h0" else t.float().double() for k, t in sample.tensors.items()}
    return Sample(sample.name, tensors, {**sample.options, **options})


# ---- errors ----


@needs_native
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
@pytest.mark.parametrize(
    "shape", [(1, 2, 16, 33, 17, 18), (12, 2, 24, 32, 16, 16), (48, 1, 32, 32, 8, 8)], ids=lambda shape: f"T{shape[0]}"
)
def test_error_of_float32(shape: tuple[int, ...], algorithm: str, activation: str) -> None:
    sample = narrowed(make("", *shape, activation=activation), torch.float32)
    want = exact(sample, torch.float32)
    got = gradients(conv_gru, sample, torch.float32, algorithm=algorithm)
    allowed = direct_error(shape[0]) if algorithm == "direct" else WINOGRAD_ERROR
    for k in ("output", "h_T"):
        assert error(got[k], want[k]) <= allowed, k
    if activation == "tanh":  # ReLU's derivative jumps: of 10^5 candidates some are on the other side in float32
        for k in sample.tensors:
            assert error(got[k], want[k]) <= allowed, k


@needs_native
def test_error_does_not_grow_where_the_state_is_kept() -> None:
    """ReLU and a z near 1 do not contract: rounding adds up over all 48 steps."""
    sample = make("", 48, 1, 16, 32, 8, 8)
    sample.tensors["bias"][32:64] = 4
    sample = narrowed(sample, torch.float32)
    want = exact(sample, torch.float32)
    for algorithm, allowed in (("direct", direct_error(48)), ("winograd", WINOGRAD_ERROR)):
        got = gradients(conv_gru, sample, torch.float32, algorithm=algorithm)
        assert max(error(got[k], want[k]) for k in ("output", "h_T")) <= allowed


@needs_native
@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_error_of_16_bits(algorithm: str, checkpoint: bool, dtype: torch.dtype) -> None:
    sample = narrowed(make("", 48, 1, 16, 20, 9, 10, activation="tanh"), dtype)
    want = exact(sample, dtype)
    got = gradients(conv_gru, sample, dtype, algorithm=algorithm, checkpoint=checkpoint)
    for k in want:
        assert error(got[k], want[k]) <= LOW_PRECISION_ERROR, k
    assert error(got["h_T"], want["h_T"]) <= WINOGRAD_ERROR  # the state itself is carried in float32


@pytest.mark.parametrize("function", [conv_gru, conv_gru_reference])
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_a_state_in_16_bits_would_stand_still(dtype: torch.dtype, function: Any) -> None:
    """Steps of less than half a unit in the last place of the output."""
    weight_ih, weight_hh = torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)
    bias = torch.tensor([0.0, 7.0, 2.0])  # z = 0.9991: h goes from 1 towards 2 by 0.0009 a step
    h0 = torch.ones(1, 1, 1, 1)
    given = [t.to(dtype) for t in (torch.zeros(200, 1, 1, 1, 1), weight_ih, weight_hh, bias)]
    output, h_T = function(given[0], h0, *given[1:])
    want = 2 - torch.sigmoid(torch.tensor(7.0)) ** 200
    assert abs(h_T.item() - want) <= 1e-5
    assert torch.equal(output[-1].float(), h_T.to(dtype).float())


# ---- sizes ----

# Around the lines, tiles and panels of the kernels.
SIZES = [
    *((2, 1, c, c, 5, 6) for c in (1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65)),
    *((2, 1, 3, c, 4, 4) for c in (96, 97)),
    *((3, 2, 17, 5, h, w) for h, w in ((1, 1), (1, 16), (15, 1), (2, 2), (4, 4), (5, 3), (8, 9), (16, 33), (13, 2))),
    (2, 5, 3, 18, 7, 11),
    (1, 1, 1, 1, 40, 41),
    (20, 1, 2, 3, 3, 3),
]
VOLUMES = [
    *((2, 1, c, c, 2, 3, 4) for c in (1, 15, 17, 33)),
    *((2, 2, 3, 5, *extent) for extent in ((1, 1, 1), (1, 5, 6), (4, 1, 2), (3, 4, 1), (5, 6, 7))),
]


def check_sizes(shape: tuple[int, ...], k: int, **options: Any) -> None:
    steps, batch = shape[:2]
    lengths = torch.tensor([steps - b % (steps + 1) for b in range(batch)])
    for some in ({}, {"reverse": True, "lengths": lengths}):
        sample = make("", *shape, k=k, activation="tanh", seed=sum(shape), **some)
        sample = narrowed(sample, torch.bfloat16)  # numbers that every dtype holds
        want = exact(sample, torch.float64)
        for dtype, algorithm in itertools.product((torch.float64, torch.float32, torch.bfloat16), ALGORITHMS):
            if algorithm == "winograd" and (k != 3 or dtype == torch.float64):
                continue
            got = gradients(conv_gru, sample, dtype, algorithm=algorithm, **options)
            for name in want:
                narrow = dtype == torch.bfloat16 and name != "h_T"
                bound = LOW_PRECISION_ERROR if narrow else 1e-13 if dtype == torch.float64 else WINOGRAD_ERROR
                assert got[name].shape == want[name].shape
                assert largest(got[name].double() - want[name]) <= bound * max(largest(want[name]), 1), (
                    f"{name}, {dtype}, {algorithm}, {some}"
                )


@needs_native
@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def test_sizes(shape: tuple[int, ...]) -> None:
    check_sizes(shape, 3)


@needs_native
@pytest.mark.parametrize("shape", VOLUMES, ids=lambda shape: "x".join(map(str, shape)))
def test_sizes_of_volumes(shape: tuple[int, ...]) -> None:
    check_sizes(shape, 3, checkpoint=sum(shape) % 2 == 0)


@needs_native
@pytest.mark.parametrize("k", [1, 5, 7])
@pytest.mark.parametrize("extent", [(1, 1), (6, 5), (9, 20), (2, 3, 4)], ids=lambda extent: "x".join(map(str, extent)))
def test_sizes_of_kernels(extent: tuple[int, ...], k: int) -> None:
    check_sizes((2, 2, 3, 17, *extent), k, checkpoint=k == 5)


# ---- numbers that are not finite ----


@pytest.mark.parametrize("function", [conv_gru, conv_gru_reference])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_nan_stays_in_its_clip(activation: str, value: float, algorithm: str, function: Any) -> None:
    given = arguments(make("", 4, 5, 3, 17, 9, 10, activation=activation, algorithm=algorithm), torch.float32)
    given = without_ours(given, function)
    clean = function(**given)
    for name, place in (("x", (1, 2, 0, 4, 4)), ("h0", (2, 3, 4, 4))):
        spoilt = given[name].clone()
        spoilt[place] = value
        leaves = {k: given[k].clone().requires_grad_() for k in ("x", "h0")} | {name: spoilt.requires_grad_()}
        output, h_T = function(**{**given, **leaves})
        others = [0, 1, 3, 4]
        assert torch.equal(output[:, others], clean[0][:, others])
        assert torch.equal(h_T[others], clean[1][others])
        assert output[1:, 2, :, 4, 4].isnan().any() or value == math.inf
        assert name == "h0" or torch.equal(output[0], clean[0][0])
        output.sum().backward()
        assert leaves["x"].grad[:, others].isfinite().all()
        assert leaves["h0"].grad[others].isfinite().all()


@pytest.mark.parametrize("function", [conv_gru, conv_gru_reference])
def test_nan_through_relu_stays_nan(function: Any) -> None:
    given = arguments(make("", 1, 1, 1, 2, 3, 3), torch.float32)
    given["bias"][-1] = math.nan
    output, _ = function(**given)
    assert output[:, :, 1].isnan().all()
    assert not output[:, :, 0].isnan().any()


# ---- strides ----


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("volumes", [False, True])
def test_any_strides_in_all_arguments_at_once(volumes: bool, dtype: torch.dtype) -> None:
    extent = (2, 5, 6) if volumes else (5, 6)
    sample = make("", 3, 2, 3, 17, *extent, lengths=torch.tensor([3, 1]))
    given = arguments(sample, dtype)
    want = conv_gru(**given)

    def strided(tensor: Tensor) -> Tensor:
        last_first = tensor.movedim(-1, 0).contiguous().movedim(0, -1)
        return torch.stack([last_first, torch.zeros_like(last_first)], -1)[..., 0]

    laid = {k: strided(v) if isinstance(v, Tensor) else v for k, v in given.items()}
    assert not laid["bias"].is_contiguous() and not laid["lengths"].is_contiguous()
    got = conv_gru(**laid)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    batch_first = given["x"].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(conv_gru(**{**given, "x": batch_first})[0], want[0])
    broadcast = given["x"][:1].expand(3, *given["x"].shape[1:])  # DVD-GAN's first layer: one map for all steps
    got = conv_gru(**{**given, "x": broadcast})
    assert torch.equal(got[0], conv_gru(**{**given, "x": broadcast.contiguous()})[0])


@needs_native
def test_gradients_of_any_strides() -> None:
    suite = ConvGRUSuite()
    leaves = {
        k: t.requires_grad_() for k, t in arguments(make("", 3, 2, 3, 5, 4, 6), torch.float32).items() if t is not None
    }
    found = []
    for grad in (normal(4, 2, 5, 6, 4).float().transpose(-1, -2), normal(4, 2, 5, 1, 1).float().expand(4, 2, 5, 4, 6)):
        for laid in (grad, grad.contiguous()):
            output, h_T = conv_gru(**leaves)
            torch.autograd.backward([output, h_T], [laid[:3], laid[3]])
            found.append({k: t.grad for k, t in leaves.items()})
            for t in leaves.values():
                t.grad = None
    for a, b in (found[:2], found[2:]):
        suite.assert_close(a, b, torch.float32)


# ---- bit for bit ----


@needs_native
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(4, 2, 17, 33, 13, 14), (3, 3, 16, 64, 4, 4), (2, 2, 3, 17, 3, 7, 6)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_bitwise_the_same_for_any_number_of_threads(
    shape: tuple[int, ...], dtype: torch.dtype, checkpoint: bool
) -> None:
    sample = make("", *shape, lengths=torch.arange(shape[1]) + shape[0] - shape[1] + 1)
    before = torch.get_num_threads()
    for algorithm in ALGORITHMS:
        if algorithm == "winograd" and dtype == torch.float64:
            continue
        runs = []
        try:
            for threads in (1, 2, 3, 7, 1):
                torch.set_num_threads(threads)
                found = gradients(conv_gru, sample, dtype, algorithm=algorithm, checkpoint=checkpoint)
                given = arguments(sample, dtype)
                for _ in range(2):  # of which the second packs the weights
                    alone = conv_gru(**{**given, "algorithm": algorithm})
                    assert torch.equal(alone[0], found["output"])
                runs.append(found)
        finally:
            torch.set_num_threads(before)
        for other in runs[1:]:
            assert all(torch.equal(other[k], runs[0][k]) for k in other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    bound = {torch.float64: 1e-12, torch.float32: WINOGRAD_ERROR, torch.bfloat16: LOW_PRECISION_ERROR}[dtype]
    for shape in SIZES + VOLUMES:
        sample = make("", *shape, activation="tanh")
        on_gpu = Sample("", {k: t.cuda() for k, t in sample.tensors.items()}, sample.options)
        want, got = (gradients(conv_gru, each, dtype) for each in (sample, on_gpu))
        for k in want:
            assert error(got[k].cpu(), want[k].double()) <= bound, f"{k}, {shape}"


@needs_native
@pytest.mark.slow
def test_scratch_is_never_read_before_it_is_written() -> None:
    """glibc fills what malloc returns with 0x7F: as a float 3e38, which no sum survives."""
    run_tests_again(__file__, "test_sizes", MALLOC_PERTURB_="128", OMP_NUM_THREADS="1")


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
    run_tests_again(__file__, "test_sizes or test_error or test_nan", VGKERNELS_CPU_ISA=isa, OMP_NUM_THREADS="1")
