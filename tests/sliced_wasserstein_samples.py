"""What the tests of sliced_wasserstein share: samples, tolerances, bad input, the definition in numpy, and the suite.

Decides how large an error may be; what is checked is decided in op_suite.py and the test files.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from op_suite import Bad, OpSuite, Sample
from torch import Tensor

import vgkernels
from vgkernels import _native

# On N(0, 1) samples in a few dimensions, p <= 3; float64 is rounding alone.
TOLERANCE = {
    torch.float64: {"out": 1e-13, "x": 1e-13, "y": 1e-13, "projections": 1e-13},
    torch.float32: {"out": 1e-5, "x": 1e-5, "y": 1e-5, "projections": 2e-5},
}
VALUE_ERROR = {torch.float32: 2e-6, torch.float64: 1e-13}  # the specification's, relative to float64
REFUSED: Any = (RuntimeError, TypeError, ValueError)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def directions(count: int, dim: int, seed: int = 0) -> Tensor:
    return vgkernels.random_projections(count, dim, generator=generator(seed), dtype=torch.float64)


def definition(s: np.ndarray, t: np.ndarray, a: np.ndarray, b: np.ndarray, p: float) -> float:
    """W_p^p of two weighted sets of numbers: the integral of |F_s^-1 - F_t^-1|^p, piece by piece, in a loop."""
    s, a = s[np.argsort(s, kind="stable")], a[np.argsort(s, kind="stable")].copy()
    t, b = t[np.argsort(t, kind="stable")], b[np.argsort(t, kind="stable")].copy()
    i = j = 0
    total = 0.0
    while i < len(s) and j < len(t):
        mass = min(a[i], b[j])
        total += mass * abs(s[i] - t[j]) ** p
        a[i] -= mass
        b[j] -= mass
        i, j = i + (a[i] <= 1e-15), j + (b[j] <= 1e-15)
    return total


def expected(
    x: Tensor, y: Tensor, theta: Tensor, p: float, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> float:
    """The distance of one entry by the definition, in float64."""
    a, b = ((torch.ones(len(v)) if w is None else w).double() for v, w in ((x, x_weights), (y, y_weights)))
    s, t = (v.double() @ theta.double().T for v in (x, y))
    a, b = (w.numpy() / w.numpy().sum() for w in (a, b))
    return sum(definition(s[:, k].numpy(), t[:, k].numpy(), a, b, p) for k in range(len(theta))) / len(theta)


# ---- the suite ----


def make(
    name: str, x: tuple[int, ...], m: int, count: int, weights: tuple[str, ...] = (), seed: int = 0, **options: Any
) -> Sample:
    """Samples x of that shape, y with `m`, `count` directions of any length; weights of the sides that are named."""
    y = (*x[:-2], m, x[-1])
    tensors = {"x": normal(*x, seed=seed), "y": normal(*y, seed=seed + 1) + 0.5}
    tensors["projections"] = normal(count, x[-1], seed=seed + 2)
    for k in weights:
        shape = tensors[k[0]].shape[:-1]
        options[k] = torch.rand(shape, generator=generator(seed + 3), dtype=torch.float64) + 0.1
    return Sample(name, tensors, options)


SAMPLES = [
    make("plain", (2, 6, 3), 6, 2),  # sizes that the suite's tests with a dynamic batch need: as many directions
    make("absolute", (2, 6, 3), 6, 4, p=1),
    make("cube", (2, 6, 3), 6, 4, p=3.0),
    make("fraction", (2, 6, 3), 6, 4, p=1.5),
    make("root", (3, 5, 4), 5, 3, root=True),
    make("unequal", (2, 5, 3), 8, 4, reduction="none", p=3, root=True),
    make("multiple", (2, 3, 3), 9, 4, p=1),
    make("weighted", (2, 6, 3), 6, 4, ("x_weights", "y_weights")),
    make("weighted-unequal", (2, 7, 3), 5, 4, ("y_weights",), p=1.5),
    make("one-entry", (7, 4), 7, 5),
    make("two-batch-dims", (2, 3, 5, 3), 5, 4, reduction="sum"),
    make("one-sample", (2, 1, 3), 1, 4),
    make("one-against-many", (2, 1, 3), 6, 4, reduction="none"),
    make("one-dimension", (2, 6, 1), 6, 3),
]
EMPTY = [
    make("no-batch", (0, 4, 3), 4, 2, reduction="none"),
    make("no-batch-unequal-root", (2, 0, 4, 3), 5, 2, reduction="none", root=True),
]


def changed(**change: Any) -> Any:
    """For `Bad`: name=function of the tensor there, or name=value of the tensor or option."""

    def change_in_place(tensors: dict[str, Any], options: dict[str, Any]) -> None:
        for k, value in change.items():
            if k in tensors:
                tensors[k] = value(tensors[k]) if callable(value) else value
            else:
                options[k] = value

    return change_in_place


def weight_bad(value: float) -> Any:
    return changed(x_weights=torch.tensor([1.0, 1, 1, 1, 1, value]))


BAD = [
    Bad("no-tensor", changed(x=3), TypeError, "expected x to be a tensor, got int"),
    Bad("list", changed(y=Tensor.tolist), TypeError, "expected y to be a tensor, got list"),
    Bad("integer", changed(x=Tensor.int), TypeError, "expected x of dtype float64 or .*, got int32"),
    Bad("complex", changed(y=Tensor.cfloat), TypeError, "expected y of dtype .*, got complex64"),
    Bad("sparse", changed(x=Tensor.to_sparse), TypeError, "expected x to be a dense tensor"),
    Bad("two-dtypes", changed(y=Tensor.double), TypeError, "expected y of x's dtype float32, got float64"),
    Bad("two-devices", changed(y=lambda t: t.to("meta")), ValueError, "expected y on x's device cpu, got meta"),
    Bad("1-D", changed(x=lambda t: t[0, 0]), ValueError, r"expected x of shape \(..., N, D\), got \(3,\)"),
    Bad(
        "dimension",
        changed(y=lambda t: t[..., 1:]),
        ValueError,
        r"expected y of shape \(..., M, D\) = \(2, M, 3\), got \(2, 6, 2\)",
    ),
    Bad("batch", changed(y=lambda t: t[:1]), ValueError, r"expected y of shape .* = \(2, M, 3\), got \(1, 6, 3\)"),
    Bad("rank", changed(y=lambda t: t[0]), ValueError, r"expected y of shape .* = \(2, M, 3\), got \(6, 3\)"),
    Bad("no-x", changed(x=lambda t: t[:, :0]), ValueError, r"expected x with N > 0, got shape \(2, 0, 3\)"),
    Bad("no-y", changed(y=lambda t: t[:, :0]), ValueError, r"expected y with M > 0, got shape \(2, 0, 3\)"),
    Bad(
        "no-coordinates",
        changed(x=lambda t: t[..., :0], y=lambda t: t[..., :0]),
        ValueError,
        r"expected x with D > 0, got shape \(2, 6, 0\)",
    ),
    Bad("no-direction", changed(projections=lambda t: t[:0]), ValueError, "expected projections with L > 0, got shape"),
    Bad(
        "projections-dimension",
        changed(projections=lambda t: t[:, 1:]),
        ValueError,
        r"expected projections of shape \(L, D\) = \(L, 3\), got \(2, 2\)",
    ),
    Bad("projections-rank", changed(projections=lambda t: t[None]), ValueError, "expected projections of shape"),
    Bad("projections-integer", changed(projections=Tensor.int), TypeError, "expected projections of dtype float64 or"),
    Bad("projections-device", changed(projections=lambda t: t.to("meta")), ValueError, "expected projections on x's"),
    Bad("small-p", changed(p=0.99), ValueError, "expected p >= 1 and finite, got 0.99"),
    Bad("nan-p", changed(p=math.nan), ValueError, "expected p >= 1 and finite, got nan"),
    Bad("infinite-p", changed(p=math.inf), ValueError, "expected p >= 1 and finite, got inf"),
    Bad("text-p", changed(p="2"), TypeError, "expected p to be a float, got str"),
    Bad("tensor-p", changed(p=torch.ones(())), TypeError, "expected p to be a float, got Tensor"),
    Bad("root", changed(root=2), TypeError, "expected root to be a bool, got int"),
    Bad(
        "reduction", changed(reduction="max"), ValueError, "expected reduction to be one of 'mean', 'sum', 'none', got"
    ),
    Bad("kind", changed(kind="sobol"), ValueError, "expected kind to be one of 'gaussian', 'orthogonal', 'hadamard'"),
    Bad("count", changed(projections=None, n_projections=0), ValueError, "expected n_projections > 0, got 0"),
    Bad(
        "hadamard-count",
        changed(projections=None, n_projections=-1, kind="hadamard"),
        ValueError,
        "expected n_projections > 0, got -1",
    ),
    Bad("float-count", changed(projections=None, n_projections=8.0), TypeError, "expected n_projections to be an int"),
    Bad("generator", changed(projections=None, generator=3), TypeError, "expected generator to be a torch.Generator"),
    Bad("negative-weight", weight_bad(-1e-9), ValueError, "expected x_weights to be finite and not negative"),
    Bad("nan-weight", weight_bad(math.nan), ValueError, "expected x_weights to be finite and not negative"),
    Bad("infinite-weight", weight_bad(math.inf), ValueError, "expected x_weights to be finite and not negative"),
    Bad("zero-weights", changed(y_weights=torch.zeros(6)), ValueError, "expected y_weights with a sum > 0, got all"),
    Bad(
        "weights-of-no-mass-in-one-entry",
        changed(y_weights=torch.tensor([[1.0] * 6, [0.0] * 6])),
        ValueError,
        "expected y_weights with a sum > 0",
    ),
    Bad(
        "weights-shape",
        changed(x_weights=torch.ones(5)),
        ValueError,
        r"expected x_weights of shape \(N,\) = \(6,\) or \(..., N\) = \(2, 6\), got \(5,\)",
    ),
    Bad("weights-batch", changed(y_weights=torch.ones(1, 6)), ValueError, r"expected y_weights of shape \(M,\) = "),
    Bad("integer-weights", changed(x_weights=torch.ones(6).int()), TypeError, "expected x_weights of dtype float64 or"),
    Bad("list-of-weights", changed(x_weights=[1.0] * 6), TypeError, "expected x_weights to be a tensor, got list"),
    Bad("weights-device", changed(y_weights=torch.ones(6, device="meta")), ValueError, "expected y_weights on x's dev"),
    Bad("impl", changed(impl="cuda"), ValueError, "expected impl to be one of 'auto', 'native', .*, got 'cuda'"),
]
# Through torch.ops everything has a batch, one dtype, float64 or float32, and weights are float64.
BAD_NATIVE = [
    Bad("integer", changed(x=Tensor.int), REFUSED, "expected x"),
    Bad("half", changed(x=Tensor.half), REFUSED, "expected x"),
    Bad("two-dtypes", changed(y=Tensor.double), REFUSED, "expected y"),
    Bad("dimension", changed(y=lambda t: t[..., 1:]), REFUSED, "expected y"),
    Bad("batch", changed(y=lambda t: t[:1]), REFUSED, "expected y"),
    Bad("no-x", changed(x=lambda t: t[:, :0]), REFUSED, "expected"),
    Bad("no-y", changed(y=lambda t: t[:, :0]), REFUSED, "expected"),
    Bad("no-coordinates", changed(x=lambda t: t[..., :0], y=lambda t: t[..., :0]), REFUSED, "expected"),
    Bad("no-direction", changed(projections=lambda t: t[:0]), REFUSED, "expected projections"),
    Bad("projections-dimension", changed(projections=lambda t: t[:, 1:]), REFUSED, "expected projections"),
    Bad("projections-dtype", changed(projections=Tensor.double), REFUSED, "expected projections"),
    Bad("small-p", changed(p=0.99), REFUSED, "expected .*p >= 1"),
    Bad("nan-p", changed(p=math.nan), REFUSED, "expected .*p >= 1"),
    Bad("infinite-p", changed(p=math.inf), REFUSED, "expected .*p >= 1"),
    Bad("one-side-of-weights", changed(x_weights=torch.ones(2, 6).double() / 6), REFUSED, "expected weights of both"),
]


class SlicedWassersteinSuite(OpSuite):
    op = "sliced_wasserstein"
    samples = SAMPLES
    empty = EMPTY
    bad = BAD
    bad_native = BAD_NATIVE
    tolerance = TOLERANCE

    def call(self, sample: Sample, **more: Any) -> Tensor:
        return getattr(vgkernels, self.op)(**self.arguments(sample), **more)

    def reference(self, sample: Sample) -> Tensor:
        return getattr(vgkernels, f"{self.op}_reference")(**self.arguments(sample))

    def arguments(self, sample: Sample) -> dict[str, Any]:
        """By name, weights beside the samples."""
        device = sample.tensors["x"].device
        options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in sample.options.items()}
        return {**sample.tensors, **options}

    def has_kernel(self, sample: Sample) -> bool:
        return not {"x_weights", "y_weights"} & set(sample.options) or not _native.runs_cuda_kernels(
            sample.tensors["x"].device
        )

    def native_calls(self, sample: Sample) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        x, y, projections = (t.float() if t.dtype == torch.bfloat16 else t for t in sample.tensors.values())
        if x.dim() != 3:
            x, y = (t.reshape(-1, *t.shape[-2:]) for t in (x, y))
        weights = [sample.options.get(k) for k in ("x_weights", "y_weights")]
        if any(w is not None for w in weights) and sample.name != "plain":  # of which bad input is made
            pairs = zip(weights, (x, y), strict=True)
            full = (torch.ones(t.shape[:2], dtype=torch.float64) if w is None else w for w, t in pairs)
            weights = [w / w.sum(-1, keepdim=True) for w in full]
        arguments = (x, y, projections.unsqueeze(0), *weights, float(sample.options.get("p", 2)))
        yield _native.kernels.sliced_wasserstein.default, arguments
        yield _native.kernels.sliced_wasserstein_gradients.default, (*arguments, True, True, True)
