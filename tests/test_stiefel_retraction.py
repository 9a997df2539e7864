"""stiefel_retraction_: orthonormal to the tolerance, the right matrix, no sign flipped, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vgkernels import stiefel_retraction_

METHODS = ["polar", "qr"]
SHAPES = [(1, 1), (5, 1), (1, 5), (4, 4), (7, 3), (3, 7), (64, 64), (128, 40), (40, 128), (3, 6, 6), (2, 3, 9, 4)]
ORTHOGONALITY = {torch.float64: 1e-12, torch.float32: 2e-6}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defect(weight: Tensor) -> float:
    """The largest entry of W^T W - I, for wide ones of W W^T - I."""
    w = weight.detach().double()
    w = w.mT if w.shape[-2] < w.shape[-1] else w
    return float((w.mT @ w - torch.eye(w.shape[-1], dtype=torch.float64, device=w.device)).abs().max())


def nearest(weight: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return u @ vh


def gram_schmidt(weight: Tensor) -> Tensor:
    """Of one tall matrix, twice for accuracy."""
    columns: list[Tensor] = []
    for column in weight.double().T:
        for _ in range(2):
            column = column - sum(((column @ other) * other for other in columns), torch.zeros_like(column))
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


@pytest.mark.without_kernels
@pytest.mark.parametrize("dtype", ORTHOGONALITY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_orthonormal_and_the_right_one(method: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    for scale in (1.0, 1e-8, 1e6):
        before = (scale * normal(*shape)).to(device, dtype)
        weight = before.clone()
        assert stiefel_retraction_(weight, method) is weight
        assert defect(weight) <= ORTHOGONALITY[dtype]
        matrices = (t.cpu().reshape(-1, *shape[-2:]) for t in (before, weight))
        for old, new in zip(*matrices, strict=True):
            wide = shape[-2] < shape[-1]
            want = nearest(old) if method == "polar" else gram_schmidt(old.T if wide else old)
            want = want.T if method == "qr" and wide else want
            spread = float(torch.linalg.cond(old.double()))
            torch.testing.assert_close(
                new.double(), want, rtol=0, atol=spread * (1e-5 if dtype == torch.float32 else 1e-12)
            )


@pytest.mark.parametrize("method", METHODS)
def test_signs_and_place_survive_a_thousand_small_steps(method: str) -> None:
    weight = stiefel_retraction_(normal(24, 24).float())
    start, moved = weight.clone(), torch.zeros(())
    for step in range(1000):
        before = weight.clone()
        weight += 1e-4 * normal(24, 24, seed=step).float()
        stiefel_retraction_(weight, method)
        assert (weight * before).sum(0).min() > 0.99  # no column turned
        moved += (weight - before).norm()
    assert defect(weight) <= ORTHOGONALITY[torch.float32]
    assert (weight - start).norm() < moved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ORTHOGONALITY)
def test_stays_on_the_manifold(dtype: torch.dtype, method: str) -> None:
    for shape in ((50, 50), (90, 20), (20, 90)):
        weight = stiefel_retraction_(normal(*shape).to(dtype), method)
        again = stiefel_retraction_(weight.clone(), method)
        assert (again - weight).abs().max() <= ORTHOGONALITY[dtype]
    start = torch.empty(30, 20)
    nn.init.orthogonal_(start, generator=torch.Generator().manual_seed(0))
    assert (stiefel_retraction_(start.clone(), method) - start).abs().max() <= 2e-6


@pytest.mark.parametrize("method", ["polar", "qr"])
def test_huge_and_tiny_matrices(method: str) -> None:
    weight = normal(5, 5).float()
    want = stiefel_retraction_(weight.clone(), method)
    for scale in (2.0**-120, 2.0**125):
        torch.testing.assert_close(stiefel_retraction_(weight * scale, method), want, rtol=0, atol=2e-6)


def test_polar_is_the_nearest() -> None:
    weight = normal(20, 12)
    polar, qr = (stiefel_retraction_(weight.clone(), method) for method in METHODS)
    assert (polar - weight).norm() < (qr - weight).norm()
    left, right = (torch.linalg.qr(normal(n, n, seed=n))[0] for n in (20, 12))
    turned = stiefel_retraction_(left @ weight @ right)
    torch.testing.assert_close(turned, left @ polar @ right, rtol=0, atol=1e-12)


def test_singular_values_far_apart() -> None:
    u, v = (torch.linalg.qr(normal(12, 12, seed=k))[0] for k in (1, 2))
    for smallest, dtype in (
        (1e-3, torch.float32),
        (1e-5, torch.float32),
        (1e-6, torch.float64),
        (1e-12, torch.float64),
    ):
        weight = ((u * torch.logspace(0, math.log10(smallest), 12).double()) @ v.T).to(dtype)
        want = nearest(weight)
        both = torch.stack([weight, normal(12, 12).to(dtype)])
        stiefel_retraction_(both)
        assert defect(both) <= ORTHOGONALITY[dtype]
        torch.testing.assert_close(both[0].double(), want, rtol=0, atol=2e-3)


def test_ordinary_matrices_take_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("took an SVD"))
    for dtype in ORTHOGONALITY:
        for shape in ((2, 64, 64), (200, 60), (1, 1)):
            weight = stiefel_retraction_(normal(*shape).to(dtype))
            weight += 1e-2 * normal(*shape, seed=1).to(dtype)
            assert defect(stiefel_retraction_(weight)) <= ORTHOGONALITY[dtype]


def test_layouts_and_parameters() -> None:
    want = stiefel_retraction_(normal(2, 6, 4))
    for laid in (
        normal(2, 6, 4).mT.contiguous().mT,
        torch.nn.functional.pad(normal(2, 6, 4), (1, 2))[..., 1:5],
        normal(2, 6, 4).permute(1, 2, 0).contiguous().permute(2, 0, 1),
    ):
        torch.testing.assert_close(stiefel_retraction_(laid), want, rtol=0, atol=1e-14)
    padded = torch.zeros(6, 7).double()
    padded[:, 1:5] = normal(2, 6, 4)[0]
    stiefel_retraction_(padded[:, 1:5])
    assert not padded[:, 0].any() and not padded[:, 5:].any()
    parameter = nn.Parameter(normal(8, 3))
    version = parameter._version
    assert stiefel_retraction_(parameter) is parameter
    assert parameter.requires_grad and parameter.is_leaf and parameter._version > version
    assert stiefel_retraction_(torch.empty(0, 3, 2)).shape == (0, 3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert defect(stiefel_retraction_(normal(9, 9).float())) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_float32_rounded_once(dtype: torch.dtype) -> None:
    for method in METHODS:
        weight = normal(16, 9).to(dtype)
        want = stiefel_retraction_(weight.float(), method).to(dtype)
        assert torch.equal(stiefel_retraction_(weight, method), want)


def test_reduced_precision_of_products_takes_float64() -> None:
    want = stiefel_retraction_(normal(64, 64).float().double()).float()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        got = stiefel_retraction_(normal(64, 64).float())
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got, want)


# ---- what is refused, with nothing written ----

DEFICIENT = {
    "zero": torch.zeros(5, 5).double(),
    "two equal columns": normal(9, 4)[:, [0, 1, 2, 0]],
    "rank 30 of 64": normal(64, 30) @ normal(30, 64, seed=1),
    "rank 63 of 64": normal(64, 63) @ normal(63, 64, seed=1),
    "wide, a row the sum of others": torch.cat([normal(3, 8), normal(3, 8).sum(0, keepdim=True)]),
    "a column of zeros": normal(6, 3) * torch.tensor([1.0, 0, 1]).double(),
}


@pytest.mark.parametrize("weight", DEFICIENT.values(), ids=DEFICIENT)
@pytest.mark.parametrize("method", METHODS)
def test_short_of_full_rank(method: str, weight: Tensor) -> None:
    for dtype in ORTHOGONALITY:
        both = torch.stack([normal(*weight.shape, seed=5).to(dtype), weight.to(dtype)])
        before = both.clone()
        with pytest.raises(
            RuntimeError, match=r"^stiefel_retraction_: expected weight of full rank, .* in matrix 1 of 2"
        ):
            stiefel_retraction_(both, method)
        assert torch.equal(both, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value: float, method: str) -> None:
    weight = normal(2, 4, 3)
    weight[1, 2, 0] = value
    before = weight.clone()
    with pytest.raises(RuntimeError, match=r"^stiefel_retraction_: expected finite weight, got NaN or Inf"):
        stiefel_retraction_(weight, method)
    assert torch.equal(weight.nan_to_num(), before.nan_to_num())


BAD = [
    ((3,), TypeError, "expected weight to be a tensor, got int"),
    ((torch.ones(3, 3).int(),), TypeError, "expected weight of dtype float64 or .*, got int32"),
    ((torch.ones(3),), ValueError, r"expected weight of shape \(..., n, m\), got \(3,\)"),
    ((torch.ones(2, 0, 3),), ValueError, r"expected weight with n > 0, got shape \(2, 0, 3\)"),
    ((torch.ones(2, 3, 0),), ValueError, r"expected weight with m > 0, got shape \(2, 3, 0\)"),
    ((torch.eye(3), "cayley"), ValueError, "expected method to be one of 'polar', 'qr', got 'cayley'"),
    ((torch.eye(3).expand(2, 3, 3),), ValueError, "expected weight without elements that share memory, got shape"),
    ((torch.eye(4).flatten().as_strided((3, 3), (2, 1)),), ValueError, "expected weight without elements that share"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD)
def test_bad_input(arguments: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^stiefel_retraction_: {text}"):
        stiefel_retraction_(*arguments)
