"""Random unit directions: independent, orthogonal in blocks, or structured for a fast Walsh-Hadamard transform.

    kind="hadamard":  theta_(k K + l)[j] = s_k[j] H_K[l, j mod K] / sqrt(D),   H_K[l, c] = (-1)^popcount(l & c)

with random signs s_k and K the largest power of two up to D and up to the next one from L. Decides how directions are
drawn, and how samples are projected on the structured ones without forming them: signs, a sum over the blocks of K
coordinates, log2 K additions a value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._checks import FLOATING, accumulation_dtype, check_option
from ._forked import one_thread_in_forked_child

KINDS = ("gaussian", "orthogonal", "hadamard")


def random_projections(
    n_projections: int,
    dim: int,
    *,
    kind: str = "gaussian",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Random directions for `sliced_wasserstein`: (n_projections, dim), rows of length 1.

    Args:
        n_projections: how many, L.
        dim: D, the samples' dimension.
        kind: "gaussian", independent and uniform on the sphere. "orthogonal": blocks of D (the last one fewer) that are
            orthogonal to each other within, each uniform (Haar), by QR with the signs fixed: fewer are needed for the
            same accuracy. "hadamard": entries of +-1 / sqrt(D), each block of K (see above) orthogonal within if K
            divides D; not uniform, but `sliced_wasserstein` projects on them many times faster.
        generator: draws on its own device; None: torch's default.
        dtype: float64, float32, float16 or bfloat16; None: torch's default.
        device: None: the generator's, else torch's default.

    Returns:
        (n_projections, dim). The last two types are drawn in float32 and rounded.

    Raises:
        TypeError: a number that is no int, a dtype that is none of the four, no generator.
        ValueError: a number below 1 or from 2^63, an unknown kind.

    Determinism: the same for a generator's state, dtype and kind of device.

    Example:
        >>> import torch, vgkernels
        >>> vgkernels.random_projections(4, 1, generator=torch.Generator().manual_seed(0)).abs()
        tensor([[1.],
                [1.],
                [1.],
                [1.]])
    """
    op = "random_projections"
    check_count(op, "n_projections", n_projections)
    check_count(op, "dim", dim)
    check_option(op, "kind", kind, KINDS)
    check_generator(op, generator)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in FLOATING:
        raise TypeError(f"{op}: expected dtype to be float64, float32, float16 or bfloat16, got {dtype}")
    if device is not None and torch.device(device).type == "meta":
        generator = None  # on its own device it would draw what nobody sees
    place = _place(device, generator)
    rows = _DRAW[kind](n_projections, dim, generator, accumulation_dtype(dtype), place)
    return rows.to(device=device if device is not None else place, dtype=dtype)


def check_count(op: str, name: str, value: Any) -> None:
    """TypeError unless `value` is an int, ValueError unless it is at least 1 and less than 2^63."""
    one_thread_in_forked_child()  # random_projections has no tensors to check
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{op}: expected {name} to be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{op}: expected {name} > 0, got {value}")
    if isinstance(value, int) and value >= 2**63:
        raise ValueError(f"{op}: expected {name} < 2^63, got {value}")


def check_generator(op: str, generator: Any) -> None:
    """TypeError unless `generator` is one, or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: expected generator to be a torch.Generator, got {type(generator).__name__}")


def _place(device: torch.device | str | None, generator: torch.Generator | None) -> torch.device | str | None:
    return device if generator is None else generator.device


def drawing(generator: torch.Generator | None) -> dict[str, Any]:
    """As an argument of torch.rand*: a None there picks an overload that takes no symbolic sizes."""
    return {} if generator is None else {"generator": generator}


def _draw_gaussian(count: int, dim: int, generator: Any, dtype: torch.dtype, device: Any) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, **drawing(generator), dtype=dtype, device=device))


def _draw_orthogonal(count: int, dim: int, generator: Any, dtype: torch.dtype, device: Any) -> Tensor:
    shape = (-(-count // dim), dim, min(count, dim))
    q, r = torch.linalg.qr(torch.randn(shape, **drawing(generator), dtype=dtype, device=device))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)  # else Q follows LAPACK's habit, and is not Haar
    return (q * signs.unsqueeze(-2)).mT.flatten(0, 1)[:count]


def _draw_hadamard(count: int, dim: int, generator: Any, dtype: torch.dtype, device: Any) -> Tensor:
    signs = hadamard_signs(count, dim, generator=generator, dtype=dtype, device=device)
    size = _block(count, dim)
    matrix = _transform(torch.eye(size, dtype=dtype, device=signs.device))
    columns = torch.arange(dim, device=signs.device) % size
    return (signs.unsqueeze(1) * matrix[:, columns]).flatten(0, 1)[:count]


_DRAW = {"gaussian": _draw_gaussian, "orthogonal": _draw_orthogonal, "hadamard": _draw_hadamard}

# ---- structured directions ----


def hadamard_signs(count: int, dim: int, *, generator: Any, dtype: torch.dtype, device: Any) -> Tensor:
    """s_k / sqrt(D), (blocks, D): all that is random in `count` structured directions."""
    shape = (-(-count // _block(count, dim)), dim)
    bits = torch.randint(2, shape, **drawing(generator), dtype=dtype, device=_place(device, generator))
    return ((2 * bits - 1) / math.sqrt(dim)).to(device)


def project_hadamard(samples: Tensor, signs: Tensor, count: int) -> Tensor:
    """samples (..., N, D) on the first `count` directions of those signs: (..., N, count)."""
    size = _block(count, samples.shape[-1])
    if forward_ad._current_level >= 0:  # a Function with a jvp of its own could not be compiled
        folded = (_in_blocks(samples, size).unsqueeze(-3) * _in_blocks(signs, size)).sum(-2)
    else:
        folded = _Fold.apply(samples, signs, size)  # (..., N, blocks, K)
    return _transform(folded).flatten(-2)[..., :count]


def _block(count: int, dim: int) -> int:
    """K."""
    return 1 << min(dim.bit_length() - 1, (count - 1).bit_length())


def _in_blocks(values: Tensor, size: int) -> Tensor:
    """(..., D) as (..., D / K, K), with zeros to fill the last block."""
    return torch.nn.functional.pad(values, (0, -values.shape[-1] % size)).unflatten(-1, (-1, size))


def _transform(values: Tensor) -> Tensor:
    """values H_K along the last dim, K = 2^k: butterflies. Not a product, which might be rounded to TF32."""
    size = values.shape[-1]
    half = size // 2
    while half:
        a, b = values.unflatten(-1, (-1, 2, half)).unbind(-2)
        values = torch.stack((a + b, a - b), -2).flatten(-3)
        half //= 2
    return values


class _Fold(torch.autograd.Function):
    """z[..., k, c] = sum over j = c mod K of s_k[j] x[..., j]; autograd of a loop would fill D / K arrays like x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(samples: Tensor, signs: Tensor, size: int) -> Tensor:
        blocks = []
        for row in signs:
            total = samples[..., :size] * row[:size]
            for start in range(size, row.shape[0], size):
                some = slice(start, min(start + size, row.shape[0]))
                total[..., : some.stop - start].addcmul_(samples[..., some], row[some])
            blocks.append(total)
        return torch.stack(blocks, -2) if len(blocks) > 1 else blocks[0].unsqueeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (signs,) = ctx.saved_tensors
        dim, padded = signs.shape[-1], _in_blocks(signs, ctx.size)
        gradient = grad[..., 0, None, :] * padded[0]  # (..., N, D / K, K)
        for k in range(1, len(padded)):
            gradient = gradient + grad[..., k, None, :] * padded[k]
        return gradient.flatten(-2)[..., :dim], None, None
