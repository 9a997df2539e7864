"""conv_gru's derivatives: of all orders, under torch.func, and what autograd keeps for them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conv_gru_samples import (
    LOW_PRECISION_ERROR,
    SAMPLES,
    TOLERANCE,
    arguments,
    close,
    definition,
    gradients,
    make,
    normal,
)
from op_suite import Sample, needs_native
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from vgkernels import conv_gru, conv_gru_reference

BOTH = [conv_gru, conv_gru_reference]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_lengths_have_the_gradients_of_the_definition(sample: Sample) -> None:
    want = gradients(definition, sample, torch.float64)
    got = gradients(conv_gru, sample, torch.float64)
    for k in want:
        close(got[k], want[k], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "tanh", "reverse-lengths-no-bias", "volume"])
def test_checkpoint_gives_the_same(name: str, dtype: torch.dtype) -> None:
    sample = next(s for s in SAMPLES if s.name == name)
    want = gradients(conv_gru, sample, dtype)
    got = gradients(conv_gru, sample, dtype, checkpoint=True)
    for k in want:
        if dtype == torch.bfloat16 and k not in ("output", "h_T"):  # gates are not rounded when they are not kept
            assert (got[k] - want[k]).abs().max() <= LOW_PRECISION_ERROR * want[k].abs().max()
        else:
            close(got[k], want[k], TOLERANCE[dtype].get(k, 0) if dtype != torch.bfloat16 else 0)


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_result_alone(which: int) -> None:
    found = []
    for function in BOTH:
        leaves = {k: t.requires_grad_() for k, t in arguments(SAMPLES[0]).items() if isinstance(t, Tensor)}
        results = function(**leaves)
        results[which].square().sum().backward()
        found.append({k: t.grad for k, t in leaves.items()})
    for k in found[0]:
        close(found[0][k], found[1][k], 1e-12)


def derivatives(function: Any, given: dict[str, Any], order: int) -> list[Tensor]:
    """Of a nonlinear function of both results, in all tensors, down to the order-th."""
    leaves = {k: t.detach().requires_grad_() for k, t in given.items() if isinstance(t, Tensor) and k != "lengths"}
    value = sum(each.square().sum() for each in function(**{**given, **leaves}))
    found = []
    for k in range(order):
        first = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
        found += [g.detach() for g in first]
        value = sum((g * normal(*g.shape, seed=k)).sum() for g in first)
    return found


@needs_native
@pytest.mark.parametrize("name", ["tanh", "reverse-lengths-no-bias", "volume"])
def test_three_orders_of_derivatives_agree_with_the_reference(name: str) -> None:
    given = arguments(next(s for s in SAMPLES if s.name == name))
    got, want = (derivatives(function, given, 3) for function in BOTH)
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-11 * (1 + b.abs().max().item()))


@needs_native
def test_two_derivatives_under_autocast_round_no_more() -> None:
    given = arguments(make("", 3, 2, 2, 3, 4, 3, activation="tanh"), torch.bfloat16)
    want = derivatives(conv_gru, given, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = derivatives(conv_gru, given, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@needs_native
def test_non_reentrant_checkpoint_and_a_second_backward() -> None:
    given = arguments(SAMPLES[0])

    def gradient(call: Any) -> Tensor:
        leaf = given["x"].clone().requires_grad_()
        call(leaf).sum().backward()
        return leaf.grad

    def run(x: Tensor) -> Tensor:
        return conv_gru(**{**given, "x": x})[0].square()

    want = gradient(run)
    assert torch.equal(gradient(lambda x: checkpoint(run, x, use_reentrant=False)), want)
    leaf = given["x"].clone().requires_grad_()
    value = run(leaf).sum()
    for _ in range(2):
        value.backward(retain_graph=True)
    close(leaf.grad, 2 * want)


@needs_native
def test_vmap_over_clips_weights_and_lengths() -> None:
    given = arguments(SAMPLES[0])
    x, weight = torch.stack([given["x"], given["x"].flip(1)], 2), torch.stack([given["weight_hh"]] * 2)
    many = torch.tensor([[3, 1], [0, 2]])

    def run(x: Tensor, weight_hh: Tensor, lengths: Tensor) -> Any:
        return conv_gru(**{**given, "x": x, "weight_hh": weight_hh, "lengths": lengths})

    for dims in ((2, None, 0), (2, 0, None), (None, None, 0), (None, 0, None)):
        full = [
            t if d is not None else t.select(e, 0) for t, d, e in zip((x, weight, many), dims, (2, 0, 0), strict=True)
        ]
        got = torch.vmap(run, in_dims=dims)(*full)
        each = [run(*(t if d is None else t.select(d, i) for t, d in zip(full, dims, strict=True))) for i in range(2)]
        close(got, tuple(torch.stack(results) for results in zip(*each, strict=True)))
    empty = torch.vmap(lambda x: run(x, given["weight_hh"], many[0]))(given["x"].new_zeros((0, *given["x"].shape)))
    assert empty[0].shape == (0, 3, 2, 3, 4, 3)


@needs_native
def test_gradients_for_each_clip() -> None:
    given = arguments(make("", 3, 4, 2, 3, 4, 3, activation="tanh"))
    names = ("weight_ih", "weight_hh", "bias")

    def loss(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, x: Tensor, h0: Tensor) -> Tensor:
        output, h_T = conv_gru(x.unsqueeze(1), h0.unsqueeze(0), weight_ih, weight_hh, bias, activation="tanh")
        return output.square().sum() + h_T.sum()

    weights = [given[k] for k in names]
    mapped = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)), in_dims=(None, None, None, 1, 0))
    got = mapped(*weights, given["x"], given["h0"])
    for b in range(4):
        leaves = [t.clone().requires_grad_() for t in (*weights, given["x"][:, b])]
        want = torch.autograd.grad(loss(*leaves, given["h0"][b]), leaves)
        close(tuple(g[b] for g in got), want, 1e-12)


@needs_native
def test_hessian() -> None:
    given = arguments(make("", 2, 1, 1, 2, 2, 2, activation="tanh"))

    def hessian(function: Any) -> Tensor:
        inner = lambda h0: function(**{**given, "h0": h0})[1].sum()  # noqa: E731
        return torch.func.jacrev(torch.func.jacrev(inner))(given["h0"])

    close(hessian(conv_gru), hessian(conv_gru_reference), 1e-12)


def test_forward_mode_takes_the_reference() -> None:
    given = arguments(SAMPLES[0])
    tangent = normal(*given["x"].shape, seed=9)
    got, want = (torch.func.jvp(lambda x, f=f: f(**{**given, "x": x}), (given["x"],), (tangent,)) for f in BOTH)
    close(got, want)
    with pytest.raises(ValueError, match="expected impl='auto' or 'reference' for forward-mode AD, got impl='native'"):
        torch.func.jvp(lambda x: conv_gru(**{**given, "x": x}, impl="native"), (given["x"],), (tangent,))


# ---- what is kept ----


def kept_bytes(function: Any, given: dict[str, Any]) -> int:
    """What autograd holds after a call, counted once for each storage, without the arguments themselves."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaves = {k: t.detach().clone().requires_grad_() for k, t in given.items() if k != "lengths"}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function(**leaves)
    parameters = [t.untyped_storage().data_ptr() for k, t in leaves.items() if k not in ("x", "h0")]
    assert result[0].requires_grad
    return sum(size for place, size in held.items() if place not in parameters)


def eager(x: Tensor, h0: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The plain code: three convolutions a step."""
    channels = weight_hh.shape[1]
    w_r, w_z, w_n = torch.cat([weight_hh, weight_ih], 1).split(channels)
    b_r, b_z, b_n = bias.split(channels)
    h, outputs = h0, []
    for x_t in x:
        both = torch.cat([h, x_t], 1)
        r = torch.sigmoid(torch.conv2d(both, w_r, b_r, padding=1))
        z = torch.sigmoid(torch.conv2d(both, w_z, b_z, padding=1))
        n = torch.relu(torch.conv2d(torch.cat([r * h, x_t], 1), w_n, b_n, padding=1))
        h = z * h + (1 - z) * n
        outputs.append(h)
    return torch.stack(outputs), h


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_kept_for_the_backward(dtype: torch.dtype) -> None:
    given = {k: t for k, t in arguments(make("", 12, 2, 64, 64, 8, 8), dtype).items() if isinstance(t, Tensor)}
    plain = kept_bytes(eager, {k: t.to(dtype) for k, t in given.items()})
    assert kept_bytes(conv_gru, given) <= 0.6 * plain
    assert kept_bytes(lambda **leaves: conv_gru(**leaves, checkpoint=True), given) <= 0.25 * plain


class Largest(TorchDispatchMode):
    """The most elements that any op but ours returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "vgkernels":
            every = out if isinstance(out, tuple | list) else [out]
            self.elements = max([self.elements, *(t.numel() for t in every if isinstance(t, Tensor))])
        return out


@needs_native
def test_backward_makes_no_gradient_of_the_gates() -> None:
    given = {
        k: t.requires_grad_() for k, t in arguments(make("", 12, 2, 2, 3, 8, 8), torch.float32).items() if t is not None
    }
    output, _ = conv_gru(**given)
    grad = torch.ones_like(output)
    with Largest() as largest:
        torch.autograd.grad(output, list(given.values()), grad)
    assert largest.elements <= output.numel()


@needs_native
def test_calls_at_the_same_time() -> None:
    given = [arguments(make("", 5, 2, 8, 17, 9, 10, seed=seed), torch.float32) for seed in range(6)]
    want = [gradients(conv_gru, make("", 5, 2, 8, 17, 9, 10, seed=seed), torch.float32) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(conv_gru, **given[i % 6]) for i in range(24)]
        again = [
            pool.submit(gradients, conv_gru, make("", 5, 2, 8, 17, 9, 10, seed=i % 6), torch.float32) for i in range(24)
        ]
        for i, call in enumerate(calls):
            assert torch.equal(call.result()[0], want[i % 6]["output"])
        for i, call in enumerate(again):
            assert all(torch.equal(call.result()[k], want[i % 6][k]) for k in want[i % 6])
