"""ConvGRU: against conv_gru layer by layer, its parameters, and what torch.nn modules can do."""

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conv_gru_samples import close, lengths, normal
from op_suite import needs_native
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vgkernels import ConvGRU, conv_gru
from vgkernels.conv_gru_call import run_conv_gru


def by_hand(gru: ConvGRU, x: Tensor, h0: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    last = []
    for layer in range(gru.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 2 if gru.bidirectional else 1]:
            names = (f"weight_ih_l{layer}", f"weight_hh_l{layer}", f"bias_l{layer}")
            w_ih, w_hh, bias = (getattr(gru, name + suffix) for name in names)
            state = None if h0 is None else h0[len(last)]
            output, h_T = conv_gru(
                x, state, w_ih, w_hh, bias, activation=gru.activation, reverse=bool(suffix), **options
            )
            outputs.append(output)
            last.append(h_T)
        x = torch.cat(outputs, 2)
    return x, torch.stack(last)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_layers_and_directions(num_layers: int, bidirectional: bool, dims: int, activation: str) -> None:
    torch.manual_seed(0)
    gru = ConvGRU(
        2, 3, num_layers=num_layers, bidirectional=bidirectional, dims=dims, activation=activation, dtype=torch.float64
    )
    extent, states = (4,) * dims, num_layers * (1 + bidirectional)
    x, h0 = normal(4, 2, 2, *extent), normal(states, 2, 3, *extent, seed=1)
    for options in ({}, {"lengths": lengths(4, 2)}):
        for state in (None, h0):
            output, h_n = gru(x, state, **options)
            assert output.shape == (4, 2, 3 * (1 + bidirectional), *extent)
            assert h_n.shape == (states, 2, 3, *extent)
            close((output, h_n), by_hand(gru, x, state, **options), 0)
    gru.batch_first = True
    output, h_n = gru(x.transpose(0, 1), h0)
    want = by_hand(gru, x, h0)
    close((output.transpose(0, 1), h_n), want, 0)
    gru.batch_first = False
    output, h_n = gru(x[:, 0], h0[:, 0])  # one clip
    close((output, h_n), (want[0][:, 0], want[1][:, 0]))
    gru.batch_first = True
    close(gru(x[:, 0])[0], by_hand(gru, x[:, :1])[0].squeeze(1))


def test_the_last_state_goes_on() -> None:
    torch.manual_seed(0)
    gru, x = ConvGRU(2, 3, num_layers=2, dtype=torch.bfloat16), normal(6, 2, 2, 5, 5).bfloat16()
    output, h_n = gru(x)
    assert (output.dtype, h_n.dtype) == (torch.bfloat16, torch.float32)
    early, state = gru(x[:2])
    late, last = gru(x[2:], state)
    tolerance = 1e-2 if gru.num_layers > 1 else 0
    close(torch.cat([early, late]).float(), output.float(), tolerance)
    close(last, h_n, tolerance)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters(bias: bool, dims: int) -> None:
    torch.manual_seed(0)
    gru = ConvGRU(5, 16, 3, num_layers=2, bidirectional=True, dims=dims, bias=bias)
    taps = (3,) * dims
    want = {}
    for layer, inputs in ((0, 5), (1, 32)):
        for suffix in ("", "_reverse"):
            want[f"weight_ih_l{layer}{suffix}"] = (48, inputs, *taps)
            want[f"weight_hh_l{layer}{suffix}"] = (48, 16, *taps)
            if bias:
                want[f"bias_l{layer}{suffix}"] = (48,)
    assert {name: tuple(p.shape) for name, p in gru.named_parameters()} == want
    assert all(isinstance(p, nn.Parameter) for p in gru.parameters())
    assert bias or gru.bias_l0 is None
    bound = 1 / math.sqrt(16 * 3**dims)
    every = torch.cat([p.detach().flatten() for p in gru.parameters()])
    assert every.abs().max() <= bound
    assert abs(every.std() - bound / math.sqrt(3)) < 0.02 * bound
    before = gru.weight_hh_l1.detach().clone()
    gru.reset_parameters()
    assert not torch.equal(gru.weight_hh_l1, before)


def test_state_dict_copies_and_pickle() -> None:
    torch.manual_seed(0)
    gru, x = (
        ConvGRU(2, 3, num_layers=2, bidirectional=True, batch_first=True, activation="tanh"),
        torch.randn(2, 4, 2, 5, 5),
    )
    want = gru(x)
    other = ConvGRU(2, 3, num_layers=2, bidirectional=True, batch_first=True, activation="tanh")
    assert not torch.equal(other(x)[0], want[0])
    file = io.BytesIO()
    torch.save(gru.state_dict(), file)
    file.seek(0)
    assert not any(other.load_state_dict(torch.load(file)))
    with torch.no_grad():
        gru(x)  # twice: with what the cache holds
        gru(x)
    for twin in (other, copy.deepcopy(gru), pickle.loads(pickle.dumps(gru))):
        for a, b in zip(twin(x), want, strict=True):
            assert torch.equal(a, b)
        assert repr(twin) == repr(gru)


def test_repr() -> None:
    assert repr(ConvGRU(2, 3)) == "ConvGRU(2, 3, kernel_size=3)"
    gru = ConvGRU(2, 3, 5, num_layers=2, bidirectional=True, dims=3, activation="tanh", bias=False, checkpoint=True)
    assert repr(gru) == (
        "ConvGRU(2, 3, kernel_size=5, num_layers=2, bidirectional=True, dims=3, activation='tanh', bias=False, "
        "checkpoint=True)"
    )


def test_options_reach_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args: Any, **options: Any) -> Any:
        seen.append({k: options[k] for k in ("checkpoint", "algorithm", "impl")})
        return run_conv_gru(*args, **options)

    monkeypatch.setattr("vgkernels.conv_gru_module.run_conv_gru", spy)
    ConvGRU(2, 3, checkpoint=True, algorithm="direct", impl="reference")(torch.randn(2, 1, 2, 4, 4))
    assert seen == [{"checkpoint": True, "algorithm": "direct", "impl": "reference"}]


def test_spectral_norm_on_the_recurrent_weight() -> None:
    torch.manual_seed(0)
    gru = ConvGRU(2, 4, dtype=torch.float64)
    with torch.no_grad():
        gru.weight_hh_l0.mul_(10)
    spectral_norm(gru, "weight_hh_l0", n_power_iterations=50)
    x = normal(3, 2, 2, 5, 5)
    output, _ = gru(x)
    gru.eval()
    torch.testing.assert_close(torch.linalg.matrix_norm(gru.weight_hh_l0.flatten(1), 2).item(), 1.0, rtol=1e-6, atol=0)
    with torch.no_grad():
        close(gru(x)[0], conv_gru(x, None, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_l0)[0], 0)
        close(gru(x)[0], output, 1e-4)
    gru.train()
    output.square().sum().backward()
    assert gru.parametrizations.weight_hh_l0.original.grad.any()
    assert "parametrizations.weight_hh_l0.original" in gru.state_dict()


def test_autocast_and_training() -> None:
    torch.manual_seed(0)
    gru, x = ConvGRU(2, 8, num_layers=2), torch.randn(4, 2, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = gru(x)
        wide = gru(x, torch.zeros(2, 2, 8, 8, 8, dtype=torch.bfloat16))[1]
    assert (output.dtype, h_n.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(h_n, wide)
    optimizer = torch.optim.Adam(gru.parameters(), lr=1e-2)
    target, losses = torch.rand(4, 2, 8, 8, 8), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (gru(x)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@needs_native
def test_compiled() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    gru, x = ConvGRU(2, 3, num_layers=2, bidirectional=True), torch.randn(4, 2, 2, 5, 5)
    compiled = torch.compile(gru, fullgraph=True, backend="aot_eager")
    found = []
    for module in (gru, compiled):
        gru.zero_grad()
        output, h_n = module(x, lengths=lengths(4, 2))
        (output.sum() + h_n.sin().sum()).backward()
        found.append([output.detach(), h_n.detach(), *(p.grad.clone() for p in gru.parameters())])
    close(found[1], found[0], 1e-6)


def test_functional_call_and_per_clip_gradients() -> None:
    torch.manual_seed(0)
    gru, x = ConvGRU(2, 3, activation="tanh", dtype=torch.float64), normal(3, 4, 2, 4, 4)
    parameters = {k: p.detach() for k, p in gru.named_parameters()}

    def loss(parameters: dict[str, Tensor], clip: Tensor) -> Tensor:
        return torch.func.functional_call(gru, parameters, (clip.unsqueeze(1),))[0].square().sum()

    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for b in range(4):
        gru.zero_grad()
        gru(x[:, b : b + 1])[0].square().sum().backward()
        for name, parameter in gru.named_parameters():
            close(got[name][b], parameter.grad, 1e-12)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"kernel_size": 4}, ValueError, "expected an odd kernel_size, got 4"),
    ({"kernel_size": (3, 3)}, TypeError, "expected kernel_size to be an int, got tuple"),
    ({"hidden_channels": 0}, ValueError, "expected hidden_channels > 0, got 0"),
    ({"input_channels": 2.0}, TypeError, "expected input_channels to be an int, got float"),
    ({"num_layers": True}, TypeError, "expected num_layers to be an int, got bool"),
    ({"dims": 1}, ValueError, "expected dims 2 or 3, got 1"),
    ({"activation": "gelu"}, ValueError, "expected activation to be one of 'relu', 'tanh', got 'gelu'"),
    ({"algorithm": "fft"}, ValueError, "expected algorithm to be one of .*, got 'fft'"),
    ({"impl": "cuda"}, ValueError, "expected impl to be one of .*, got 'cuda'"),
    ({"dims": 2.0}, ValueError, "expected dims 2 or 3, got 2.0"),
    ({"bidirectional": "no"}, TypeError, "expected bidirectional to be a bool, got str"),
    ({"checkpoint": 1}, TypeError, "expected checkpoint to be a bool, got int"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD, ids=[str(options) for options, *_ in BAD])
def test_bad_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"^ConvGRU: {match}"):
        ConvGRU(**{"input_channels": 2, "hidden_channels": 3, **options})


def test_sizes_of_numpy() -> None:
    assert ConvGRU(np.int64(2), np.int32(3))(torch.ones(1, 1, 2, 4, 4))[0].shape == (1, 1, 3, 4, 4)


def test_bad_input() -> None:
    gru, x = ConvGRU(2, 3, num_layers=2), torch.randn(3, 2, 2, 4, 4)
    for call, error, match in (
        (lambda: gru(3), TypeError, "ConvGRU: expected x to be a tensor, got int"),
        (lambda: gru(x[0, 0]), ValueError, r"ConvGRU: expected x with 5 dims, or 4 for one clip, got \(2, 4, 4\)"),
        (lambda: gru(x, 3), TypeError, "ConvGRU: expected h0 to be a tensor, got int"),
        (lambda: gru(x, x.new_zeros(1, 2, 3, 4, 4)), ValueError, r"ConvGRU: expected h0 of shape \(2, ...\), a state"),
        (lambda: gru(x, x.new_zeros(2, 2, 4, 4, 4)), ValueError, "ConvGRU: expected h0 of shape"),
        (lambda: gru(x[:, :, :1]), ValueError, "ConvGRU: expected weight_ih of shape"),
        (lambda: gru(x.double()), TypeError, "ConvGRU: expected weight_hh of x's dtype float64, got float32"),
        (lambda: gru(x, lengths=lengths(1, 4)), ValueError, "ConvGRU: expected lengths of 0 to T = 3, got 1 to 4"),
    ):
        with pytest.raises(error, match=f"^{match}"):
            call()
