"""SingularValueClipping: TGAN's constraint on a critic, held by clipping the singular values of its layers in place.

Source: Saito et al., TGAN, arXiv 1611.06624, section 3.3 and table 2; the authors' code for batch norm's lower limit.
This file decides which layer is bounded how and when; how a weight is clipped is decided in svc_projection_inplace.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from ._checks import check_option
from ._forked import one_thread_in_forked_child
from .svc_projection_inplace import clip_in_place, patch_factor
from .svc_projection_matrix import check_bound, check_weight, tolerance
from .svc_projection_report import SVCReport, nonfinite_error

_OP = "SingularValueClipping"
_CACHED = 2**17  # elements of a weight whose difference to its copy stays in the cache


@dataclass(frozen=True)
class _Matrix:
    name: str
    weight: Tensor  # the parameter, or one group's rows of it
    dim: int
    bound: float


class SingularValueClipping:
    """Bounds the layers of a module as TGAN bounds its critic's: call `step()` after each step of its optimiser.

    | layer | what `step()` does |
    |---|---|
    | Linear | clips the singular values of its weight |
    | Conv1-3d | of its weight as an (out, in k) matrix, for each group |
    | ConvTranspose1-3d | likewise, (out, in k); with bound="patch" (in, out k), the matrix of its adjoint |
    | BatchNorm1-3d, SyncBatchNorm | clamps its weight to [0.01 s, s], s = sqrt(running_var), if it has both |
    | LeakyReLU, PReLU | nothing: a slope beyond 1 is refused at construction |

    Biases and all other layers are left alone, as are embeddings, recurrent layers, Bilinear and the in_proj_weight of
    MultiheadAttention; other activations are not looked at. A weight that several layers share is clipped once, to the
    least bound.

    Args:
        module: the critic. Its weights are looked up at each step, so it may be moved or cast meanwhile.
        every: act at each `every`-th call; TGAN's is 5.
        max_singular_value: the bound c of every matrix; batch norm's rule does not depend on it.
        batch_norm: whether to clamp batch norm's weights.
        bound: "reshaped", TGAN's, bounds the matrix: a convolution with it has a norm from its largest singular value
            to sqrt(prod ceil(k / s)) times that, so it is not 1-Lipschitz; TGAN's layers stay within 2.83. "patch"
            divides c by that factor, and bounds the convolution itself; see `svc_projection_`. It refuses reflect and
            replicate padding, and circular padding of more than half a kernel; under circular padding the stride must
            divide the maps' sizes.
        lazy: a margin below every bound; implies every=1. Clips to bound - margin and keeps a copy of each weight (as
            much memory as the weights). While a weight is within the margin of its copy (Frobenius norm) no singular
            value can exceed the bound (Weyl), and nothing else is done. On CUDA looking at that waits for the device.

    Attributes:
        calls: how often `step()` was called.
        checks, certified_runs: with `lazy`, how many matrices were compared with their copies, and how many of them had
            to go through the certified projection.

    Raises:
        TypeError: no module, a bound that is no number, a batch_norm that is no bool.
        ValueError: options that don't fit, no layer to clip, an uninitialised lazy layer, a weight that spectral_norm,
            weight_norm or another parametrization computes, LeakyReLU or PReLU with a slope beyond 1.
        RuntimeError: from `step()`, a weight with NaN or Inf; nothing is modified. On CUDA as in `svc_projection_`.

    Example:
        >>> import torch, vgkernels
        >>> critic = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.LeakyReLU(0.2))
        >>> with torch.no_grad():
        ...     _ = critic[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        >>> clipping = vgkernels.SingularValueClipping(critic, every=1)
        >>> clipping.step()  # after optimiser.step()
        SVCReport of 1 weight
          0.weight: 1 clipped, largest 3
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        every: int = 5,
        max_singular_value: float = 1.0,
        batch_norm: bool = True,
        bound: str = "reshaped",
        lazy: float | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"{_OP}: expected module to be a torch.nn.Module, got {type(module).__name__}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"{_OP}: expected every to be an int > 0, got {every!r}")
        if not isinstance(batch_norm, bool):
            raise TypeError(f"{_OP}: expected batch_norm to be a bool, got {type(batch_norm).__name__}")
        check_bound(_OP, max_singular_value)
        check_option(_OP, "bound", bound, ("reshaped", "patch"))
        self.module, self.every, self.lazy = module, every if lazy is None else 1, lazy
        self.max_singular_value, self.batch_norm, self.bound = float(max_singular_value), batch_norm, bound
        self.calls = self.checks = self.certified_runs = 0
        self._copies: dict[str, Tensor] = {}
        self._clipped: dict[str, tuple[int, float]] = {}  # of each copy: dim, and what its singular values are within
        for name, layer in module.named_modules():
            _check_layer(name, layer, bound)
        matrices, norms = self._matrices(), self._norms()
        if not matrices and not norms:
            raise ValueError(f"{_OP}: expected a module with linear, convolution or batch norm layers, got none")
        for matrix in matrices:
            check_weight(_OP, matrix.name, matrix.weight, matrix.dim)
            check_bound(_OP, matrix.bound, f"the bound of {matrix.name}")
            if lazy is not None:
                check_bound(_OP, lazy, "lazy")
                if lazy >= matrix.bound:
                    raise ValueError(f"{_OP}: expected lazy < {matrix.bound:.6g}, {matrix.name}'s bound, got {lazy}")

    @torch.no_grad()
    def step(self) -> SVCReport | None:
        """Clips what exceeds its bound, at each `every`-th call; at the others returns None.

        With `lazy` the report has the weights that went through the certified projection, none of the others.
        """
        one_thread_in_forked_child()
        self.calls += 1
        if self.calls % self.every:
            return None
        norms = self._norms()
        bad = [
            f"{name}.{kind}".lstrip(".")
            for name, *tensors in norms
            for kind, tensor in zip(("weight", "running_var"), tensors, strict=True)
            if not (tensor.is_cuda or tensor.isfinite().all())
        ]
        if bad:
            raise nonfinite_error(_OP, bad)
        matrices = self._matrices()
        due = matrices if self.lazy is None else [matrix for matrix in matrices if self._has_moved(matrix)]
        bounds = [matrix.bound - (self.lazy or 0) for matrix in due]
        # All memory first: where there is none, nothing has been changed yet.
        copies = {matrix.name: torch.empty_like(matrix.weight) for matrix in due} if self.lazy is not None else {}
        clamped = []
        for _, gamma, variance in norms:
            std = variance.clamp(min=0).sqrt().to(gamma.dtype)
            clamped.append(gamma.clamp(min=0.01 * std, max=std))
        report = clip_in_place(
            _OP,
            [matrix.name for matrix in due],
            [matrix.weight for matrix in due],
            [matrix.dim for matrix in due],
            bounds,
        )
        if self.lazy is not None:
            self.checks, self.certified_runs = self.checks + len(matrices), self.certified_runs + len(due)
            for matrix in due:
                copies[matrix.name].copy_(matrix.weight)
            self._copies |= copies
            self._clipped |= {matrix.name: (matrix.dim, bound) for matrix, bound in zip(due, bounds, strict=True)}
        for (_, gamma, _), new in zip(norms, clamped, strict=True):
            refused = report.refused(gamma.device)
            gamma.copy_(new if refused is None else torch.where(refused, gamma, new))
        return report

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to take the same steps: counts, and the copies of `lazy` with their bounds."""
        counts = {name: getattr(self, name) for name in ("calls", "checks", "certified_runs")}
        copies = {name: copy.clone() for name, copy in self._copies.items()}
        return counts | {"copies": copies, "clipped": dict(self._clipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where the `state_dict()` of an instance left off; `lazy` sees where its arguments were others."""
        if not isinstance(state, dict):
            raise TypeError(f"{_OP}: expected state to be a dict, got {type(state).__name__}")
        missing = {"calls", "checks", "certified_runs", "copies", "clipped"} ^ state.keys()
        if missing:
            raise ValueError(f"{_OP}: expected the keys of state_dict(), got others or none for {sorted(missing)}")
        self.calls, self.checks, self.certified_runs = (state[k] for k in ("calls", "checks", "certified_runs"))
        self._copies = {name: copy.clone() for name, copy in state["copies"].items()}
        self._clipped = dict(state["clipped"])

    def _matrices(self) -> list[_Matrix]:
        """One for each weight, or for each group of a grouped one; a shared weight at its first place."""
        found: dict[int, tuple[str, Tensor, int, int, float]] = {}
        for name, layer in self.module.named_modules():
            if not isinstance(layer, nn.Linear | _ConvNd):
                continue
            name, weight = _plain_weight(name, layer)
            dim, groups, bound = 0, 1, self.max_singular_value
            if isinstance(layer, _ConvNd):
                groups = layer.groups
                if self.bound == "patch":
                    bound /= patch_factor(_OP, weight.shape[2:], layer.stride, layer.dilation)
                elif isinstance(layer, _ConvTransposeNd):
                    dim = 1
            first = found.setdefault(id(weight), (name, weight, dim, groups, bound))
            if first[2:4] != (dim, groups):
                raise ValueError(f"{_OP}: expected the layers that share {first[0]} to see one matrix, got {name}")
            found[id(weight)] = (*first[:4], min(first[4], bound))
        return [matrix for entry in found.values() for matrix in _grouped(*entry)]

    def _norms(self) -> list[tuple[str, Tensor, Tensor]]:
        """The layer's name, weight and running variance of each batch norm that has both."""
        layers = self.module.named_modules() if self.batch_norm else ()
        return [
            (name, _plain_weight(name, layer)[1], layer.running_var)
            for name, layer in layers
            if isinstance(layer, _BatchNorm) and layer.affine and layer.running_var is not None
        ]

    def _has_moved(self, matrix: _Matrix) -> bool:
        """Whether its singular values may exceed its bound, by Weyl's inequality; true for NaN."""
        weight, copy = matrix.weight, self._copies.get(matrix.name)
        dim, within = self._clipped.get(matrix.name, (-1, 0.0))
        if copy is None or dim != matrix.dim or (copy.shape, copy.dtype) != (weight.shape, weight.dtype):
            return True
        if copy.device != weight.device:
            copy = self._copies[matrix.name] = copy.to(weight.device)
        rows = min(weight.shape[matrix.dim], weight.numel() // weight.shape[matrix.dim])
        return not _distance(weight, copy) <= matrix.bound - within * (1 + tolerance(weight.dtype, rows))


def _grouped(name: str, weight: Tensor, dim: int, groups: int, bound: float) -> Iterator[_Matrix]:
    """The blocks of the block-diagonal matrix that a grouped convolution is: its singular values are all of theirs."""
    if groups == 1:
        yield _Matrix(name, weight, dim, bound)
        return
    rows = weight.shape[0] // groups
    for begin in range(0, weight.shape[0], rows):
        yield _Matrix(f"{name}[{begin}:{begin + rows}]", weight[begin : begin + rows], dim, bound)


def _distance(weight: Tensor, copy: Tensor) -> float:
    """||weight - copy||_F, rounded up; in blocks that stay in the cache, one pass over both."""
    per_row = weight.numel() // weight.shape[0]
    block = max(1, _CACHED // per_row) if weight.device.type == "cpu" else weight.shape[0]
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    norms = [
        torch.linalg.vector_norm(torch.sub(a.to(wide), b.to(wide)), dim=tuple(range(1, weight.dim())))
        for a, b in zip(weight.split(block), copy.split(block), strict=True)
    ]
    rounding = 1 + (per_row + 2) * torch.finfo(wide).eps  # whatever the order in which a row was summed
    return float(torch.cat(norms).double().norm()) * rounding


def _plain_weight(name: str, layer: nn.Module) -> tuple[str, Tensor]:
    name = f"{name}.weight" if name else "weight"
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"{_OP}: expected {name} to be a parameter, got one that a parametrization computes (spectral_norm, "
            "weight_norm, ...): remove it, or leave that layer out of the module"
        )
    if is_lazy(weight):
        raise ValueError(f"{_OP}: expected {name} to be initialised, got a lazy one: run the module once before")
    return name, weight


def _check_layer(name: str, layer: nn.Module, bound: str) -> None:
    if isinstance(layer, nn.LeakyReLU | nn.PReLU):
        slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else float(layer.weight.detach().abs().max())
        if not abs(slope) <= 1:
            raise ValueError(
                f"{_OP}: expected slopes of at most 1, or it is not 1-Lipschitz, got {type(layer).__name__} {name!r} "
                f"with {slope:.6g}"
            )
    if bound != "patch" or not isinstance(layer, _ConvNd) or layer.padding_mode == "zeros":
        return
    if layer.padding_mode != "circular":
        raise ValueError(
            f"{_OP}: expected zero or circular padding for bound='patch', since repeated cells lie in more patches, "
            f"got {layer.padding_mode!r} in {name!r}"
        )
    if isinstance(layer.padding, str):
        return
    for padding, dilation, k in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True):
        if 2 * padding > dilation * (k - 1):
            raise ValueError(
                f"{_OP}: expected circular padding of at most half a kernel for bound='patch', "
                f"got {layer.padding} in {name!r}"
            )
