"""Decides what the CPU kernels of conv_gru must compute, without torch, and that any thread may do any part.

Called over ranges of units as threads would, on heap blocks of exact size (native/conv_gru_cpu_bindings.cpp), against
the four equations and their derivatives in numpy's float64.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from conv_gru_emulation import convolution, kept_channels, sigmoid
from native.kernels import ISAS, SANITIZERS, accumulate, compiling, load_or_skip, narrow, run_small_set, widen

SOURCES = (
    "csrc/conv_gru/conv_gru_cpu.cpp",
    "csrc/common/cpu_isa.cpp",
    "tests/native/conv_gru_cpu_bindings.cpp",
)
SPLITS = ((1, True), (2, False), (3, True), (7, False), (10**4, True))  # pieces, reversed
AUTOMATIC, DIRECT, WINOGRAD = 0, 1, 2
# Of the largest number: direct, Winograd; 16 bits by their rounding, whatever the engine.
ERROR = {"float64": (2e-14, None), "float32": (2e-6, 3e-5), "float16": (3e-3, 3e-3), "bfloat16": (2e-2, 2e-2)}
# Around tiles of 4, blocks of 32 tiles, groups of 8 rows; maps and volumes.
SIZES = ((1, 1), (1, 9), (3, 4), (4, 4), (5, 8), (9, 11), (21, 26), (1, 4, 5), (2, 5, 6), (5, 9, 3))
CHANNELS = ((1, 1), (3, 16), (16, 17), (33, 5), (50, 31))  # Cin, C around lines of 16 and panels of 3 lines


@pytest.fixture(scope="module")
def native():
    return load_or_skip("conv_gru_cpu_native", SOURCES)


@dataclass
class Call:
    steps: int
    batch: int
    inputs: int
    channels: int
    size: tuple
    kernel: int = 3
    dtype: str = "float32"
    algorithm: int = AUTOMATIC
    tanh: bool = False
    reverse: bool = False
    lengths: list | None = None
    optional: bool = True  # h0 and bias are given
    gates: bool = True  # kept for the backward
    seed: int = 0
    arrays: dict = field(init=False)

    def __post_init__(self):
        draw = np.random.default_rng(self.seed)
        c, taps = self.channels, [self.kernel] * len(self.size)
        scale = 1 / np.sqrt((self.inputs + c) * self.kernel ** len(self.size))

        def drawn(*shape, scale=1.0, dtype=self.dtype):
            return narrow(draw.standard_normal(shape) * scale, dtype)

        state, wide = (self.batch, c, *self.size), accumulate(self.dtype).__name__
        self.arrays = {
            "x": drawn(self.steps, self.batch, self.inputs, *self.size),
            "h0": drawn(*state, dtype=wide) if self.optional else None,
            "weight_ih": drawn(3 * c, self.inputs, *taps, scale=scale),
            "weight_hh": drawn(3 * c, c, *taps, scale=scale),
            "bias": drawn(3 * c, scale=0.3) if self.optional else None,
            "lengths": None if self.lengths is None else np.array(self.lengths, np.int64),
            "grad_output": drawn(self.steps, *state),
            "grad_h_T": drawn(*state, dtype=wide),
        }

    def run(self, native, pieces=1, backwards=False, packed=False, wanted="xhikb"):
        """output, h_T, then the gradients of x, h0, weight_ih, weight_hh, bias: as stored."""
        a = self.arrays
        depth, height, width = (1,) * (3 - len(self.size)) + tuple(self.size)
        sizes = [self.steps, self.batch, self.inputs, self.channels, depth, height, width, self.kernel]
        inputs = [a[name] for name in ("x", "h0", "weight_ih", "weight_hh", "bias", "lengths")]
        options = [len(self.size) == 3, self.tanh, self.reverse]
        pixels = int(np.prod(self.size))
        kept = (self.steps, 3, self.batch, pixels, kept_channels(self.channels))
        output, h_T = np.full_like(a["grad_output"], 7), np.full_like(a["grad_h_T"], 7)
        gates = np.full(kept, 7, a["x"].dtype) if self.gates else None
        head, tail = (self.dtype, sizes, inputs, options, self.algorithm), (pieces, backwards)
        native.forward(*head, [output, h_T, gates], packed, *tail)
        bias = np.empty(3 * self.channels, a["x"].dtype)
        like = (a["x"], a["grad_h_T"], a["weight_ih"], a["weight_hh"], bias)
        gradients = [
            np.full_like(array, 7) if name in wanted else None for name, array in zip("xhikb", like, strict=True)
        ]
        native.backward(*head, [output, gates, a["grad_output"], a["grad_h_T"]], gradients, *tail)
        return [output, h_T, *gradients]

    def wide(self, name, array):
        if array is None:
            return None
        return array.astype(np.float64) if name in ("h0", "grad_h_T") else widen(array, self.dtype)

    def expected(self):
        a = {name: self.wide(name, array) for name, array in self.arrays.items() if name != "lengths"}
        last = lambda array: np.moveaxis(array, -len(self.size) - 1, -1)  # noqa: E731  channels last
        first = lambda array: np.moveaxis(array, -1, -len(self.size) - 1)  # noqa: E731
        c, x, wi, wh = self.channels, last(a["x"]), last(a["weight_ih"]), last(a["weight_hh"])
        bias = 0 if a["bias"] is None else a["bias"]
        h = np.zeros((self.batch, *self.size, c)) if a["h0"] is None else last(a["h0"])
        order = range(self.steps)[:: -1 if self.reverse else 1]
        output, kept = np.zeros((self.steps, *h.shape)), {}
        for t in order:
            xg = convolution(x[t], wi) + bias
            rz = sigmoid(xg[..., : 2 * c] + convolution(h, wh[: 2 * c]))
            r, z = rz[..., :c], rz[..., c:]
            n = xg[..., 2 * c :] + convolution(r * h, wh[2 * c :])
            n = np.tanh(n) if self.tanh else np.maximum(n, 0)
            live = np.ones(self.batch, bool) if self.lengths is None else np.array(self.lengths) > t
            live = live.reshape(-1, *[1] * (len(self.size) + 1))
            kept[t] = (h, r, z, n, live)
            h = output[t] = np.where(live, z * h + (1 - z) * n, h)
        g, grad_wi, grad_wh = last(a["grad_h_T"]), np.zeros_like(wi), np.zeros_like(wh)
        grad_x, grad_bias, grads = np.zeros_like(x), np.zeros(3 * c), last(a["grad_output"])
        for t in reversed(order):
            before, r, z, n, live = kept[t]
            g = g + grads[t]
            slope = 1 - n**2 if self.tanh else n > 0
            dz = np.where(live, g * (before - n) * z * (1 - z), 0)
            dn = np.where(live, g * (1 - z) * slope, 0)
            g = np.where(live, g * z, g)
            reset = transposed(dn, wh[2 * c :])
            dr = reset * before * r * (1 - r)
            d = np.concatenate([dr, dz, dn], -1)
            g = g + reset * r + transposed(d[..., : 2 * c], wh[: 2 * c])
            grad_x[t], grad_bias = transposed(d, wi), grad_bias + d.reshape(-1, 3 * c).sum(0)
            add_weight_gradient(grad_wi, x[t], d)
            add_weight_gradient(grad_wh[: 2 * c], before, d[..., : 2 * c])
            add_weight_gradient(grad_wh[2 * c :], r * before, dn)
        return [first(output), first(h), first(grad_x), first(g), first(grad_wi), first(grad_wh), grad_bias]

    def check(self, native, **how):
        direct, winograd = ERROR[self.dtype]
        bound = (direct if self.algorithm == DIRECT else winograd or direct) * max(1, self.steps) ** 0.5
        names = ("x", "h0", "x", "h0", "x", "x", "x")
        for i, (got, want, name) in enumerate(zip(self.run(native, **how), self.expected(), names, strict=True)):
            got = self.wide(name, got)
            assert got.shape == want.shape
            assert np.abs(got - want).max(initial=0) <= bound * np.abs(want).max(initial=1e-30), i


def transposed(d, weight):
    """The convolution's way back: (outputs, *k, inputs) -> (inputs, *k, outputs), every tap at its mirror image."""
    return convolution(d, np.swapaxes(np.flip(weight, tuple(range(1, weight.ndim - 1))), 0, -1))


def add_weight_gradient(grad, maps, d):
    size, kernel = maps.shape[1:-1], grad.shape[1:-1]
    padded = np.pad(maps, [(0, 0), *((k // 2, k // 2) for k in kernel), (0, 0)])
    for tap in itertools.product(*map(range, kernel)):
        window = padded[(slice(None), *(slice(at, at + length) for at, length in zip(tap, size, strict=True)))]
        grad[(slice(None), *tap)] += d.reshape(-1, d.shape[-1]).T @ window.reshape(-1, window.shape[-1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
def test_sizes(native, algorithm, size):
    Call(2, 2, 18, 20, size, algorithm=algorithm).check(native)


@pytest.mark.parametrize(("inputs", "channels"), CHANNELS)
@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
def test_channels(native, algorithm, inputs, channels):
    Call(2, 3, inputs, channels, (5, 6), algorithm=algorithm, tanh=True).check(native)


@pytest.mark.parametrize("kernel", (1, 3, 5))
@pytest.mark.parametrize("size", ((3, 6), (2, 3, 5)))
@pytest.mark.parametrize("dtype", ERROR)
def test_kernels_and_dtypes(native, dtype, size, kernel):
    Call(3, 2, 4, 6, size, kernel, dtype).check(native)
    Call(3, 2, 4, 6, size, kernel, dtype, tanh=True, gates=dtype in ("float16", "bfloat16")).check(native)


@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
@pytest.mark.parametrize("gates", (True, False))
@pytest.mark.parametrize("reverse", (True, False))
@pytest.mark.parametrize("lengths", (None, [0, 3, 5, 2]))
def test_options(native, algorithm, gates, reverse, lengths):
    case = {"algorithm": algorithm, "gates": gates, "reverse": reverse, "lengths": lengths}
    Call(5, 4, 7, 9, (6, 5), **case).check(native, packed=True)
    Call(5, 4, 7, 9, (6, 5), **case, optional=False, tanh=True).check(native)


@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
def test_several_blocks_of_steps_and_of_tiles(native, algorithm):
    """A block of steps has 192 tiles, which 4 steps of the first case make up. Gradients of more than 256 tiles, as in
    one step of the second case, are summed in parts: of 137 tiles, then of 136."""
    for gates in (True, False):
        Call(6, 1, 5, 17, (28, 30), algorithm=algorithm, gates=gates, lengths=[5]).check(native)
    Call(2, 3, 5, 17, (26, 50), algorithm=algorithm).check(native)


@pytest.mark.parametrize("sizes", ((0, 2), (2, 0), (0, 0)))
@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
def test_nothing_to_do(native, algorithm, sizes):
    Call(*sizes, 3, 4, (4, 5), algorithm=algorithm).check(native)


@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
def test_any_split_gives_the_same_bits(native, algorithm):
    for gates in (True, False):
        size = (11, 18) if gates else (3, 5, 6)
        case = Call(5, 3, 20, 40, size, algorithm=algorithm, gates=gates, lengths=[5, 2, 4])
        want = [array.tobytes() for array in case.run(native)]
        assert [array.tobytes() for array in case.run(native, packed=True)] == want
        for pieces, backwards in SPLITS:
            got = case.run(native, pieces, backwards, packed=backwards)
            assert [array.tobytes() for array in got] == want, (pieces, backwards)


@pytest.mark.parametrize("wanted", ("", *"xhikb", "xk", "ib"))
@pytest.mark.parametrize("gates", (True, False))
def test_only_what_is_asked(native, gates, wanted):
    case = Call(3, 2, 5, 6, (6, 7), gates=gates, algorithm=WINOGRAD)
    want = dict(zip("ohxhikb", case.run(native), strict=True))
    for name, got in zip("xhikb", case.run(native, wanted=wanted)[2:], strict=True):
        assert (got is not None) == (name in wanted)
        if got is not None:
            assert got.tobytes() == want[name].tobytes()


@pytest.mark.parametrize("algorithm", (DIRECT, WINOGRAD))
@pytest.mark.parametrize("bad", (np.nan, np.inf))
def test_what_is_not_finite_stays_in_its_clip(native, algorithm, bad):
    case = Call(3, 3, 5, 6, (6, 7), algorithm=algorithm)
    want = case.run(native)[:2]
    case.arrays["x"][1, 1, 2, 3, 3] = bad
    for got, before in zip(case.run(native)[:2], want, strict=True):
        batch = got.ndim - 4
        assert np.take(got, [0, 2], batch).tobytes() == np.take(before, [0, 2], batch).tobytes()
        assert not np.isfinite(np.take(got, 1, batch)).all()


def test_gates_saturate(native):
    """sigmoid and tanh far outside, with the sign of what comes."""
    for size, tanh in itertools.product((1e3, 1e30), (True, False)):
        case = Call(2, 1, 2, 3, (4, 4), tanh=tanh)
        case.arrays["x"] *= np.float32(size)
        with np.errstate(over="ignore"):
            output, expected = case.run(native)[0], case.expected()[0]
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_fingerprints_differ(native):
    weights = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    seen = {native.fingerprint(weights, 1), native.fingerprint(weights, 2), native.fingerprint(weights[:-1], 1)}
    for i in (0, 15, 500, 1000):
        changed = weights.copy()
        changed[i] = -changed[i]
        seen.add(native.fingerprint(changed, 1))
    seen.add(native.fingerprint(weights[::-1].copy(), 1))
    assert len(seen) == 8
    assert native.fingerprint(weights.copy(), 1) in seen


# ---- every instruction set, as compiled and under sanitizers ----

SMALL_SET = """
import test_conv_gru_cpu_native as t
native = t.load_or_skip("conv_gru_cpu_native", t.SOURCES)
t.small_set(native)
print(native.isa())
"""


def small_set(native):
    for algorithm in (DIRECT, WINOGRAD):
        for size in ((1, 1), (5, 8), (21, 26), (2, 5, 6)):
            test_sizes(native, algorithm, size)
        for channels in CHANNELS:
            test_channels(native, algorithm, *channels)
        test_options(native, algorithm, False, True, [0, 3, 5, 2])
        test_nothing_to_do(native, algorithm, (0, 2))
    for dtype in ERROR:
        test_kernels_and_dtypes(native, dtype, (2, 3, 5), 3)
    test_gates_saturate(native)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", ("plain", *SANITIZERS))
def test_instruction_sets(native, variants, monkeypatch, variant, isa):
    run_small_set(SMALL_SET, variants, monkeypatch, variant, isa)


@pytest.fixture(scope="module", autouse=True)
def variants(native):
    with compiling("conv_gru_cpu_native", SOURCES, *SANITIZERS) as threads:
        yield threads
