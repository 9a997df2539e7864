"""SingularValueClipping: TGAN's rule for each layer, the norm of clipped convolutions, lazy clipping, resumed runs."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from svc_projection_samples import clipped, generator, largest_value, relative_error
from torch import Tensor, nn

from vgkernels import SingularValueClipping, SVCReport


@torch.no_grad()
def scaled(module: nn.Module, factor: float = 1.0, seed: int = 0) -> nn.Module:
    """All weights of a linear or convolution layer drawn anew, their largest singular values about `factor` times 3."""
    g = generator(seed)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            scale = 3 * factor / (math.sqrt(parameter.shape[0]) + math.sqrt(parameter[0].numel()))
            parameter.copy_(scale * torch.randn(parameter.shape, generator=g))
    return module


def small_critic() -> nn.Module:
    layers = [
        nn.Conv3d(3, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv3d(8, 16, 4, 2, 1, bias=False),
        nn.BatchNorm3d(16),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(16 * 2 * 4 * 4, 1),
    ]
    return scaled(nn.Sequential(*layers))


# ---- the table of rules ----

LAYERS = {
    "Linear": (lambda: nn.Linear(6, 9), lambda w: [w]),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), lambda w: [w.flatten(1)]),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), lambda w: [w.flatten(1)]),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), lambda w: [w.flatten(1)]),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda w: list(w.flatten(1).split(3))),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), lambda w: list(w.flatten(1).split(1))),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), lambda w: [w.transpose(0, 1).flatten(1)]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3), lambda w: [w.transpose(0, 1).flatten(1)]),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 2), lambda w: [w.transpose(0, 1).flatten(1)]),
    "grouped transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda w: [part.transpose(0, 1).flatten(1) for part in w.split(2)],
    ),
    "channels_last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), lambda w: [w.flatten(1)]),
    "float64": (lambda: nn.Linear(6, 9).double(), lambda w: [w]),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_is_clipped_as_its_matrix(layer: str) -> None:
    make, matrices = LAYERS[layer]
    module = scaled(make())
    before, bias = module.weight.detach().clone(), module.bias.detach().clone()
    report = SingularValueClipping(module, every=1, max_singular_value=0.8).step()
    parts = zip(matrices(module.weight.detach()), matrices(before), strict=True)
    for (got, was), count in zip(parts, report.clipped, strict=True):
        assert count > 0
        assert relative_error(got, clipped(was, 0.8)) <= 1e-6
    assert torch.equal(module.bias, bias)
    assert report.names[0] == ("weight" if len(report) == 1 else f"weight[0:{len(before) // len(report)}]")


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_batch_norm(make: Any) -> None:
    norm = make(7)
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([4.0, 4.0, 4.0, 4.0, 0.25, 0.0, -1e-9]))
        norm.weight.copy_(torch.tensor([3.0, -1.0, 0.5, 0.01, 1.0, 1.0, 1.0]))
        norm.bias.fill_(9)
    model = nn.Sequential(nn.Linear(6, 7), norm)
    off = copy.deepcopy(model)
    assert SingularValueClipping(model, every=1).step() is not None
    torch.testing.assert_close(norm.weight, torch.tensor([2.0, 0.02, 0.5, 0.02, 0.5, 0.0, 0.0]), rtol=0, atol=1e-7)
    assert norm.bias.eq(9).all()
    SingularValueClipping(off, every=1, batch_norm=False).step()
    assert off[1].weight[0] == 3
    assert len(SingularValueClipping(norm, every=1).step()) == 0


def test_layers_without_a_rule_are_left_alone() -> None:
    model = nn.Sequential(
        nn.Embedding(9, 9), nn.LayerNorm(9), nn.Linear(9, 9), nn.BatchNorm1d(9, affine=False), nn.InstanceNorm1d(9),
        nn.BatchNorm1d(9, track_running_stats=False), nn.LeakyReLU(1.0), nn.PReLU(), nn.ReLU(),
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    report = SingularValueClipping(model, every=1, max_singular_value=0.01).step()
    assert report.names == ["2.weight"]
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["2.weight"]


def test_every_fifth_call() -> None:
    model = small_critic()
    clipping = SingularValueClipping(model)
    acted = [clipping.step() is not None for _ in range(12)]
    assert [i + 1 for i, did in enumerate(acted) if did] == [5, 10]
    assert clipping.calls == 12


def test_a_shared_weight_is_clipped_once_to_the_least_bound() -> None:
    model = scaled(nn.Sequential(nn.Conv2d(3, 3, 3, stride=3), nn.Conv2d(3, 3, 3), nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1].weight, model[3].weight = model[0].weight, model[2].weight
    report = SingularValueClipping(model, every=1, bound="patch").step()
    assert report.names == ["0.weight", "2.weight"]
    assert largest_value(model[0].weight.detach().flatten(1)) == pytest.approx(1 / 3, rel=1e-5)
    other = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1))
    other[1].weight = other[0].weight
    with pytest.raises(ValueError, match=r"expected the layers that share 0\.weight to see one matrix, got 1\.weight"):
        SingularValueClipping(other)


def test_moved_and_cast_modules_and_low_precision() -> None:
    model = small_critic()
    clipping = SingularValueClipping(model, every=1)
    for dtype, above in ((torch.float64, 1e-12), (torch.float32, 4e-6), (torch.bfloat16, 2**-8)):
        scaled(model.to(dtype), seed=3)
        clipping.step()
        for parameter in model.parameters():
            assert parameter.dtype == dtype
            assert parameter.dim() < 2 or largest_value(parameter.detach().flatten(1)) <= 1 + above


def parametrized(layer: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return layer


REFUSED = {
    "no module": (lambda: 3, {}, TypeError, "expected module to be a torch.nn.Module, got int"),
    "no layer": (nn.ReLU, {}, ValueError, "expected a module with linear, convolution or batch norm layers, got none"),
    "every": (small_critic, {"every": 0}, ValueError, "expected every to be an int > 0, got 0"),
    "bound": (small_critic, {"bound": "exact"}, ValueError, "expected bound to be one of 'reshaped', 'patch', got 'ex"),
    "c": (small_critic, {"max_singular_value": 0}, ValueError, "expected max_singular_value from 1e-30 to 1e30, got 0"),
    "lazy": (small_critic, {"lazy": 1.0}, ValueError, r"expected lazy < 1, 0\.weight's bound, got 1\.0"),
    "lazy, patch": (small_critic, {"lazy": 0.4, "bound": "patch"}, ValueError, "expected lazy < 0.353553, 0.weight's"),
    "no margin": (small_critic, {"lazy": 0}, ValueError, "expected lazy from 1e-30 to 1e30, got 0"),
    "patch, c": (small_critic, {"max_singular_value": 1e-30, "bound": "patch"}, ValueError,
        r"expected the bound of 0\.weight from 1e-30 to 1e30, got"),
    "batch_norm": (small_critic, {"batch_norm": 1}, TypeError, "expected batch_norm to be a bool, got int"),
    "LazyBatchNorm2d": (lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.LazyBatchNorm2d()), {}, ValueError,
        "expected 1.weight to be initialised, got a lazy one"),
    "batch norm's parametrization": (lambda: nn.Sequential(nn.Linear(3, 3), parametrized(nn.BatchNorm1d(3))), {},
        ValueError, "expected 1.weight to be a parameter, got one that a parametrization computes"),
    "LazyLinear": (lambda: nn.Sequential(nn.LazyLinear(3)), {}, ValueError, "expected 0.weight to be initialised, got"),
    "LazyConv2d": (lambda: nn.LazyConv2d(3, 3), {}, ValueError, "expected weight to be initialised, got a lazy one"),
    "LeakyReLU": (lambda: nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(1.5)), {}, ValueError, "expected slopes of at"),
    "negative slope": (lambda: nn.Sequential(nn.LeakyReLU(-1.5)), {}, ValueError, ".*got LeakyReLU '0' with -1.5"),
    "PReLU": (lambda: nn.Sequential(nn.PReLU(init=2)), {}, ValueError, ".*got PReLU '0' with 2"),
    "reflect": (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), {"bound": "patch"},
        ValueError, "expected zero or circular padding for bound='patch', .*got 'reflect' in '0'"),
    "replicate": (lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate"), {"bound": "patch"}, ValueError,
        "expected zero or circular padding for bound='patch'"),
    "circular": (lambda: nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"), {"bound": "patch"}, ValueError,
        "expected circular padding of at most half a kernel for bound='patch'"),
    "spectral_norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))), {}, ValueError,
        "expected 0.weight to be a parameter, got one that a parametrization computes"),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), {}, ValueError,
        "expected weight to be a parameter"),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(2, 2)), {}, ValueError, "expected weight to be a p"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*spectral_norm.*deprecated")
def test_refused_at_construction(case: str) -> None:
    make, options, error, match = REFUSED[case]
    with pytest.raises(error, match=f"^SingularValueClipping: {match}"):
        SingularValueClipping(make(), **options)


@pytest.mark.parametrize("lazy", [None, 0.1])
def test_not_finite_names_the_layer_and_changes_nothing(lazy: float | None) -> None:
    for name in ("0.weight", "2.weight", "3.weight", "3.running_var", "6.weight"):
        model = small_critic()
        clipping = SingularValueClipping(model, every=1, lazy=lazy)
        if lazy:
            clipping.step()
            scaled(model, seed=1)
        model.state_dict()[name].view(-1)[0] = math.nan
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            RuntimeError, match=f"SingularValueClipping: expected finite weights, got NaN or Inf in {name};"
        ):
            clipping.step()
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor.nan_to_num(77.0), before[key].nan_to_num(77.0))


# ---- the norm of the convolution itself ----

CONVOLUTIONS = {
    "1-D, stride 1": (lambda: nn.Conv1d(3, 4, 3, padding=1), (20,)),
    "1-D, stride 2, kernel 5": (lambda: nn.Conv1d(3, 4, 5, 2), (23,)),
    "2-D, stride 1": (lambda: nn.Conv2d(3, 4, 3, padding=1), (9, 10)),
    "2-D, stride 2, kernel 3": (lambda: nn.Conv2d(3, 4, 3, 2, 1), (11, 9)),
    "2-D, stride 2, dilation 2": (lambda: nn.Conv2d(3, 4, 3, 2, 2, dilation=2), (14, 13)),
    "2-D, stride 3, dilation 2": (lambda: nn.Conv2d(3, 4, 4, 3, 2, dilation=2), (19, 17)),
    "2-D, stride 4, dilation 6": (lambda: nn.Conv2d(2, 3, 3, 4, 0, dilation=6), (29, 27)),
    "2-D, oblong": (lambda: nn.Conv2d(3, 4, (3, 5), (1, 2), (1, 0), dilation=(2, 1)), (12, 13)),
    "2-D, grouped": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), (9, 9)),
    "2-D, same": (lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), (9, 9)),
    "2-D, circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (6, 6)),
    "2-D, circular, stride 2": (lambda: nn.Conv2d(3, 4, 4, 2, 1, padding_mode="circular"), (8, 6)),
    "3-D, TGAN": (lambda: nn.Conv3d(3, 4, 4, 2, 1), (8, 8, 8)),
    "transposed, stride 2": (lambda: nn.ConvTranspose2d(4, 3, 4, 2, 1), (6, 7)),
    "transposed, dilation, output padding": (lambda: nn.ConvTranspose1d(4, 3, 3, 3, 1, 1, dilation=2), (9,)),
    "transposed, 3-D, grouped": (lambda: nn.ConvTranspose3d(4, 4, 3, 2, groups=2), (4, 4, 4)),
}


def operator_norm(layer: nn.Module, size: tuple[int, ...]) -> float:
    """By power iteration with the layer and its transpose, in float64: a lower bound that converges to the norm."""
    layer = copy.deepcopy(layer).double()
    layer.bias.data.zero_()
    x = torch.rand(1, layer.in_channels, *size, generator=generator(0), dtype=torch.float64)
    norm = 0.0
    for _ in range(150):
        x = (x / x.norm()).requires_grad_()
        y = layer(x)
        norm = float(y.detach().norm())
        (x,) = torch.autograd.grad(y, x, y.detach())
    return norm


@pytest.mark.parametrize("positive", [False, True], ids=["random", "positive"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_patch_bound_bounds_the_convolution(case: str, positive: bool) -> None:
    make, size = CONVOLUTIONS[case]
    layer = scaled(make(), 2)
    if positive:  # the kernels that come close to the bound
        layer.weight.data.abs_()
    reshaped = copy.deepcopy(layer)
    SingularValueClipping(layer, every=1, bound="patch").step()
    norm = operator_norm(layer, size)
    assert norm <= 1 + 1e-5
    assert norm >= (0.6 if positive else 0.3)  # what small maps lose at their edges, no more
    SingularValueClipping(reshaped, every=1).step()
    if positive and not case.endswith("dilation 6"):  # where no two patches share a cell
        assert operator_norm(reshaped, size) > 1.2  # so a factor of 1 would be noticed


# ---- lazy ----


@settings(max_examples=10)
@given(st.integers(0, 999), st.sampled_from(("reshaped", "patch")), st.sampled_from((torch.float32, torch.float64)))
def test_lazy_holds_the_bound_at_every_step(seed: int, bound: str, dtype: torch.dtype) -> None:
    model = scaled(nn.Sequential(nn.Linear(12, 9), nn.Conv2d(3, 4, 2, groups=1)), seed=seed).to(dtype)
    limits = {"0.weight": 1.0, "1.weight": 1.0 if bound == "reshaped" else 0.5}
    clipping, g, runs = SingularValueClipping(model, lazy=0.1, bound=bound), generator(seed), 0
    for step in range(40):
        for parameter in model.parameters():
            move = torch.randn(parameter.shape, generator=g).to(dtype)
            parameter.data += move * (0.03 * (1 + step % 3) / move.norm())
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        report = clipping.step()
        assert isinstance(report, SVCReport)
        runs += len(report)
        for name, limit in limits.items():
            weight = model.get_parameter(name)
            assert largest_value(weight.flatten(1)) <= limit * (1 + 1e-12 if dtype == torch.float64 else 1)
            if name not in report.names:
                assert torch.equal(weight, before[name])
    assert clipping.certified_runs == runs
    assert clipping.checks == 80
    assert 20 < runs < 60  # it neither sleeps nor runs always


def test_lazy_counts_every_move_since_the_copy() -> None:
    layer = nn.Linear(1000, 300, bias=False)  # several blocks of rows
    nn.init.orthogonal_(layer.weight, 0.5)
    clipping = SingularValueClipping(layer, every=7, lazy=0.25)
    assert len(clipping.step()) == 1
    start, direction = layer.weight.detach().clone(), torch.randn(300, 1000, generator=generator(0))
    direction /= direction.norm()
    for distance, runs in ((0.2499, 0), (-0.2499, 0), (0.2501, 1), (0.2501 + 0.2499, 0), (0.2501 + 0.2501, 1)):
        layer.weight.data = start + distance * direction
        assert len(clipping.step()) == runs, distance


def train(model: nn.Module, clipping: SingularValueClipping, steps: range) -> None:
    for step in steps:
        g = generator(step)
        for parameter in model.parameters():
            parameter.data += 0.002 * torch.randn(parameter.shape, generator=g)
        clipping.step()


@pytest.mark.parametrize("options", [{"every": 3}, {"lazy": 0.2}])
def test_a_resumed_run_has_the_same_bits(options: dict[str, Any]) -> None:
    model = small_critic()
    clipping = SingularValueClipping(model, **options)
    train(model, clipping, range(7))
    resumed, state = copy.deepcopy(model), copy.deepcopy(clipping.state_dict())
    again = SingularValueClipping(resumed, **options)
    again.load_state_dict(state)
    train(model, clipping, range(7, 17))
    train(resumed, again, range(7, 17))
    for (name, a), b in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (again.calls, again.checks, again.certified_runs) == (17, clipping.checks, clipping.certified_runs)
    with pytest.raises(ValueError, match=r"expected the keys of state_dict\(\), got others or none for \['calls'\]"):
        again.load_state_dict({k: v for k, v in state.items() if k != "calls"})
    with pytest.raises(TypeError, match="SingularValueClipping: expected state to be a dict, got NoneType"):
        again.load_state_dict(None)


@pytest.mark.parametrize("change", ["bound", "margin", "resumed"])
def test_lazy_sees_another_bound_or_margin(change: str) -> None:
    layer = scaled(nn.Linear(6, 6))
    clipping = SingularValueClipping(layer, lazy=0.1)
    clipping.step()  # to 0.9
    if change == "resumed":
        state, clipping = clipping.state_dict(), SingularValueClipping(layer, max_singular_value=0.5, lazy=0.1)
        clipping.load_state_dict(state)
    elif change == "bound":
        clipping.max_singular_value = 0.5
    else:
        clipping.lazy = 0.8
        assert len(clipping.step()) == 0
        with torch.no_grad():
            layer.weight.mul_(
                1.0 + 0.3 / layer.weight.norm()
            )  # moved by 0.3: within that margin, not within the copy's
    assert clipping.step().clipped[0] > 0
    assert largest_value(layer.weight) <= (0.4 if change != "margin" else 0.2) * (1 + 4e-6)
    assert len(clipping.step()) == 0


def test_lazy_sees_that_another_matrix_of_the_weight_is_bounded() -> None:
    layer = scaled(nn.ConvTranspose2d(4, 6, 3, 3))
    clipping = SingularValueClipping(layer, lazy=0.1)
    clipping.step()
    again = SingularValueClipping(layer, lazy=0.1, bound="patch")
    again.load_state_dict(clipping.state_dict())
    again.step()
    assert largest_value(layer.weight.flatten(1)) <= 1


def test_batch_norm_waits_for_a_refusal_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for refused in (True, False):
        model = small_critic()
        model[3].weight.data.fill_(5)
        monkeypatch.setattr(SVCReport, "refused", lambda self, device, refused=refused: torch.tensor(refused))
        SingularValueClipping(model, every=1).step()
        assert model[3].weight.eq(5 if refused else 1).all()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def test_a_training_step_stays_inside() -> None:
    model = small_critic()
    optimiser = torch.optim.RMSprop(model.parameters(), lr=0.02)
    clipping = SingularValueClipping(model, every=1)
    for step in range(3):
        clip = torch.rand(2, 3, 8, 16, 16, generator=generator(step))
        model(clip).sum().backward()
        optimiser.step()
        assert max(clipping.step().clipped) > 0
        assert all(largest_value(weight.flatten(1)) <= 1 + 4e-6 for weight in weights_of(model))
