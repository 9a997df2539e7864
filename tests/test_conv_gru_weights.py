"""pack_conv_gru_weights: against the plain loop over concatenated channels, with spectral norm, and its bad input."""

import itertools
from typing import Any

import pytest
import torch
from conv_gru_samples import close, normal
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vgkernels import conv_gru, pack_conv_gru_weights

ORDERS = list(itertools.product(("hx", "xh"), repeat=3))


def loop(gates: list[nn.Module], x: Tensor, h: Tensor, order: tuple[str, ...]) -> Tensor:
    """The model's own code: one convolution for each gate, over what `order` says."""
    states = []
    for x_t in x:
        named = {"x": x_t, "h": h}
        r, z = (
            torch.sigmoid(gate(torch.cat([named[k] for k in o], 1))) for gate, o in zip(gates, order[:2], strict=False)
        )
        named["h"] = r * h
        n = torch.relu(gates[2](torch.cat([named[k] for k in order[2]], 1)))
        h = z * h + (1 - z) * n
        states.append(h)
    return torch.stack(states)


def convolutions(dims: int, inputs: int, channels: int, k: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return [kind(inputs + channels, channels, k, padding=k // 2).double() for _ in range(3)]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_equals_the_loop_over_concatenated_channels(order: tuple[str, ...], dims: int) -> None:
    gates = convolutions(dims, 2, 3)
    x, h0 = normal(4, 2, 2, *[4] * dims), normal(2, 3, *[4] * dims, seed=1)
    weights = pack_conv_gru_weights(*(gate.weight for gate in gates), order=order)
    got = conv_gru(x, h0, *weights, torch.cat([gate.bias for gate in gates]))[0]
    want = loop(gates, x, h0, order)
    close(got, want)
    parameters = [p for gate in gates for p in gate.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (got, want)), strict=True):
        close(a, b, 1e-11)
    if order == ("hx", "hx", "xh"):  # DVD-GAN's is the default
        default = pack_conv_gru_weights(*(gate.weight for gate in gates))
        assert all(torch.equal(a, b) for a, b in zip(default, weights, strict=True))


def test_an_update_gate_of_the_other_sense() -> None:
    gates = convolutions(2, 2, 3)
    x, h = normal(4, 2, 2, 4, 4), normal(2, 3, 4, 4, seed=1)
    w, b = [gate.weight for gate in gates], [gate.bias for gate in gates]
    got = conv_gru(x, h, *pack_conv_gru_weights(w[0], -w[1], w[2]), torch.cat([b[0], -b[1], b[2]]))[1]
    for x_t in x:
        both = torch.cat([h, x_t], 1)
        r, z = torch.sigmoid(gates[0](both)), torch.sigmoid(gates[1](both))
        h = (1 - z) * h + z * torch.relu(gates[2](torch.cat([x_t, r * h], 1)))
    close(got, h)


def test_spectral_norm_of_each_gate_then_split() -> None:
    """DVD-GAN's: the norm of the whole (C, Cin + C) convolution; training moves its estimate and the weights."""
    x, h0 = normal(3, 2, 4, 5, 5), normal(2, 6, 5, 5, seed=1)
    found = []
    for ours in (True, False):
        gates = [spectral_norm(gate, n_power_iterations=3) for gate in convolutions(2, 4, 6)]
        optimizer = torch.optim.SGD([p for gate in gates for p in gate.parameters()], lr=0.1)
        for _ in range(3):
            with torch.nn.utils.parametrize.cached():  # one power iteration a call, as in a layer called once
                if ours:
                    weights = pack_conv_gru_weights(*(gate.weight for gate in gates))
                    output = conv_gru(x, h0, *weights, torch.cat([gate.bias for gate in gates]))[0]
                else:
                    output = loop(gates, x, h0, ("hx", "hx", "xh"))
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
        found.append((output.detach(), *(p.detach() for gate in gates for p in gate.state_dict().values())))
        for gate in gates:  # whose norm is estimated by a few power iterations
            gate.eval()
            assert 0.9 < torch.linalg.matrix_norm(gate.weight.flatten(1), 2) < 1.1
    assert len(found[0]) == len(found[1]) > 9
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-12)


W = torch.zeros(3, 5, 3, 3)
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ((W, W, 3), {}, TypeError, "expected candidate to be a tensor, got int"),
    ((W.int(), W, W), {}, TypeError, "expected reset of dtype float64 or .*, got int32"),
    ((W, W.double(), W), {}, TypeError, "expected update of reset's dtype float32, got float64"),
    ((W, W, W.to("meta")), {}, ValueError, "expected candidate on reset's device cpu, got meta"),
    ((W, W, W[:, :4]), {}, ValueError, r"expected candidate of reset's shape \(3, 5, 3, 3\), got \(3, 4, 3, 3\)"),
    ((W[:, :3],) * 3, {}, ValueError, r"expected reset of shape \(C, Cin \+ C, k, k\) or .*, got \(3, 3, 3, 3\)"),
    ((W[0],) * 3, {}, ValueError, r"expected reset of shape .*, got \(5, 3, 3\)"),
    (
        (W, W, W),
        {"order": ("hx", "xh")},
        ValueError,
        r"expected order to be three of 'hx' and 'xh', got \('hx', 'xh'\)",
    ),
    ((W, W, W), {"order": ("hx", "hx", "hh")}, ValueError, "expected order to be three of"),
    ((W, W, W), {"order": "hxh"}, ValueError, "expected order to be three of 'hx' and 'xh', got 'hxh'"),
    ((W, W, W), {"order": None}, ValueError, "expected order to be three of 'hx' and 'xh', got None"),
]


@pytest.mark.parametrize(("weights", "options", "error", "match"), BAD, ids=[match for *_, match in BAD])
def test_bad_input(weights: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"^pack_conv_gru_weights: {match}"):
        pack_conv_gru_weights(*weights, **options)
