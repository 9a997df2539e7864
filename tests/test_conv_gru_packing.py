"""The cache of packed weights: results follow the weights however they change, and nothing outlives them."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conv_gru_samples import arguments, make
from op_suite import needs_native
from torch import Tensor, nn

from vgkernels import ConvGRU, conv_gru, conv_gru_packing
from vgkernels.conv_gru_packing import packed_weights

pytestmark = needs_native


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    conv_gru_packing._kept.clear()
    yield
    conv_gru_packing._kept.clear()


def small(**options: Any) -> dict[str, Any]:
    return arguments(make("", 2, 2, 3, 5, 6, 7, **options), torch.float32)


def packs(call: Callable[[], Any], times: int = 1) -> int:
    """How often the weights are packed for the cache."""
    with torch.profiler.profile() as profile:
        for _ in range(times):
            call()
    return sum(event.name == "vgkernels::conv_gru_pack" for event in profile.events())


def test_packed_at_the_second_call_and_kept() -> None:
    given = small()
    want = conv_gru(**given)
    assert packs(lambda: conv_gru(**given)) == 1
    assert packs(lambda: conv_gru(**given), 3) == 0
    assert all(torch.equal(a, b) for a, b in zip(conv_gru(**given), want, strict=True))


def test_packed_weights_that_are_not_packed_are_refused() -> None:
    given = small()
    tensors = given["x"], given["weight_ih"], given["weight_hh"]
    packed = torch.ops.vgkernels.conv_gru_pack(*tensors, 0)
    x, *weights = tensors
    for wrong in (packed[:1].expand(len(packed)), packed[:-1], packed.float(), torch.stack([packed, packed], 1)[:, 0]):
        with pytest.raises(RuntimeError, match="conv_gru: expected packed"):
            torch.ops.vgkernels.conv_gru(x, None, *weights, None, None, wrong, False, False, False, 0)


def test_temporaries_are_not_packed() -> None:
    given = small()
    call = lambda: conv_gru(**{**given, "weight_hh": given["weight_hh"] * 2})  # noqa: E731
    assert packs(call, 4) == 0
    gc.collect()
    assert len(conv_gru_packing._kept) == 0


def by_data(gru: ConvGRU) -> None:
    gru.weight_hh_l0.data[0, 0, 0, 0] += 1


def by_storage(gru: ConvGRU) -> None:
    gru.weight_hh_l0.data = gru.weight_hh_l0.data + 0.1


def by_numpy(gru: ConvGRU) -> None:
    gru.weight_ih_l0.detach().numpy()[-1, -1, -1, -1] += 1


def by_optimizer(gru: ConvGRU) -> None:
    with torch.enable_grad():
        gru(torch.ones(2, 1, 3, 4, 4))[0].sum().backward()
    torch.optim.SGD(gru.parameters(), lr=0.1).step()


def by_state_dict(gru: ConvGRU) -> None:
    gru.load_state_dict({k: v + 0.1 for k, v in gru.state_dict().items()})


def by_exchange(gru: ConvGRU) -> None:
    gru.weight_ih_l0 = nn.Parameter(gru.weight_ih_l0 * 1.5)


def by_swap(gru: ConvGRU) -> None:
    """Bits that a plain sum would not see."""
    flat = gru.weight_hh_l0.data.view(-1)
    flat[:2] = flat[:2].flip(0).clone()


@pytest.mark.parametrize(
    "change",
    [by_data, by_storage, by_numpy, by_optimizer, by_state_dict, by_exchange, by_swap],
    ids=lambda f: f.__name__,
)
def test_results_follow_the_weights(change: Callable[[ConvGRU], None]) -> None:
    torch.manual_seed(0)
    gru, x = ConvGRU(3, 17), torch.randn(3, 2, 3, 8, 8)
    with torch.no_grad():
        for _ in range(3):
            before = gru(x)[0]
        change(gru)
        fresh = copy.deepcopy(gru)
        assert not torch.equal(gru(x)[0], before)
        assert torch.equal(gru(x)[0], fresh(x)[0])
        assert packs(lambda: gru(x)) == 0


@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd"])
def test_one_layer_on_maps_of_many_sizes(algorithm: str) -> None:
    given = arguments(make("", 2, 1, 17, 20, 33, 35), torch.float32)
    given["h0"] = None
    for steps, clips, height, width in ((2, 1, 33, 35), (1, 1, 1, 1), (2, 1, 4, 4), (1, 1, 33, 35), (2, 1, 8, 35)) * 2:
        case = {**given, "x": given["x"][:steps, :clips, :, :height, :width], "algorithm": algorithm}
        own = {**case, "weight_hh": given["weight_hh"].clone()}  # seen for the first time
        assert torch.equal(conv_gru(**case)[0], conv_gru(**own)[0])


def test_dtypes_and_algorithms_are_told_apart() -> None:
    given = small()
    for algorithm in ("direct", "winograd", "direct", "auto"):
        own = {**given, "weight_hh": given["weight_hh"].clone(), "algorithm": algorithm}
        assert torch.equal(conv_gru(**given | {"algorithm": algorithm})[0], conv_gru(**own)[0])
    gru, x = ConvGRU(3, 5), torch.randn(2, 1, 3, 6, 6)
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64, torch.bfloat16) * 2:
            gru.to(dtype)  # the same parameters, other data
            assert torch.equal(gru(x.to(dtype))[0], copy.deepcopy(gru)(x.to(dtype))[0])


def test_goes_with_its_weight() -> None:
    given = small()
    for _ in range(2):
        conv_gru(**given)
    (entry,) = conv_gru_packing._kept.values()
    packed, other = weakref.ref(entry.weights), weakref.ref(given["weight_ih"])
    del entry
    del given["weight_ih"]
    assert other() is None  # which the entry does not keep alive
    given.clear()
    gc.collect()
    assert packed() is None
    assert len(conv_gru_packing._kept) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_not_used_where_a_gradient_is_wanted_or_nothing_is_computed() -> None:
    given = small()
    leaf = given["weight_hh"].requires_grad_()
    assert packs(lambda: conv_gru(**given), 3) == 0
    with torch.no_grad():
        assert packs(lambda: conv_gru(**given), 3) == 1
        assert packed_weights(given["x"].to("meta"), given["weight_ih"], leaf, 0) is None
        assert packed_weights(given["x"][:0], given["weight_ih"], leaf, 0) is None
        assert packs(lambda: torch.vmap(lambda x: conv_gru(**{**given, "x": x}))(given["x"][None]), 3) == 0
        compiled = torch.compile(lambda x: conv_gru(**{**given, "x": x}), fullgraph=True, backend="aot_eager")
        assert packs(lambda: compiled(given["x"]), 3) == 0
        rest = {k: v for k, v in given.items() if k != "weight_hh"}
        traced = torch.jit.trace(lambda weight: conv_gru(weight_hh=weight, **rest)[0], (leaf.detach(),))
        assert torch.equal(traced(2 * leaf), conv_gru(weight_hh=2 * leaf, **rest)[0])


def test_inference_mode() -> None:
    given = small()
    want = conv_gru(**given)[0]
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(conv_gru(**given)[0], want)
        inside = {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}
        for _ in range(3):
            assert torch.equal(conv_gru(**inside)[0], want)


def test_many_threads() -> None:
    layers = [small(seed=seed) for seed in range(4)]
    want = [conv_gru(**layer)[0] for layer in layers]

    def call(i: int) -> bool:
        layer = dict(layers[i % 4])
        if i % 3 == 0:  # a temporary among them
            layer["weight_hh"] = layer["weight_hh"].clone()
        return torch.equal(conv_gru(**layer)[0], want[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(200)))
