"""Decides what each CUDA kernel of conv_gru must compute, in numpy's float64, and how tests call it.

A Launch holds one launch's arrays, channels innermost, all rounded to their dtype. What is tried is decided in
test_conv_gru_emulated.py; the loop over time around them is tested in test_conv_gru_cuda_driver.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from native.kernels import accumulate, narrow, widen

EMULATED = (
    "csrc/conv_gru/conv_gru_gates_cuda.cu",
    "csrc/conv_gru/conv_gru_gemm_cuda.cu",
    "tests/native/conv_gru_bindings.cpp",
)
KERNELS = ("reset_update", "candidate", "candidate_backward", "reset_backward")
MAPS = {"reset_update": 2, "candidate": 1, "candidate_backward": 1, "reset_backward": 1}  # of the sums
ROUNDING = {"float64": 2e-15, "float32": 1e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of what is stored
SUM_ERROR = {"float64": 1e-14, "float32": 2e-6, "float16": 2e-6, "bfloat16": 2e-6}  # of what is not rounded to dtype


def kept_channels(channels):
    return (channels + 15) // 16 * 16


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def convolution(maps, weight):
    """(B, *S, Cin) by (outputs, *k, Cin), "same" zero padding, by the definition."""
    size, kernel = maps.shape[1:-1], weight.shape[1:-1]
    padded = np.pad(maps, [(0, 0), *((k // 2, k // 2) for k in kernel), (0, 0)])
    result = np.zeros((*maps.shape[:-1], len(weight)))
    for tap in itertools.product(*map(range, kernel)):
        window = padded[(slice(None), *(slice(at, at + length) for at, length in zip(tap, size, strict=True)))]
        result += window @ weight[(slice(None), *tap)].T
    return result


def packed(weight, maps):
    """(maps C, *k, Cin) to (columns, *k, Cin), by conv_gru_cuda.h's words."""
    channels = len(weight) // maps
    result = np.zeros((-(-maps * kept_channels(channels) // 128) * 128, *weight.shape[1:]), weight.dtype)
    for m, c in itertools.product(range(maps), range(channels)):
        i, t, j, b = c // 16, c // 4 % 4, c // 2 % 2, c % 2
        result[16 * (i * maps + m) + 8 * j + 2 * t + b] = weight[m * channels + c]
    return result


@dataclass
class Launch:
    kernel: str
    dtype: str
    batch: int
    size: tuple
    channels: int
    taps: int = 0  # the convolution is done by the kernel; 0: before
    tanh: bool = False
    lengths: list | None = None
    step: int = 1
    optional: bool = True  # r, n are kept; else not, and candidates without h, and grad_h += sums alone
    seed: int = 0
    arrays: dict = field(init=False)

    def __post_init__(self):
        draw = np.random.default_rng(self.seed)
        shape, c, maps = (self.batch, *self.size), self.channels, MAPS[self.kernel]
        self.inputs = 2 * c if self.kernel == "candidate_backward" else c

        def drawn(last, dtype=self.dtype, gate=False):
            values = draw.standard_normal((*shape, last))
            return narrow(sigmoid(values) if gate else values, dtype)

        kept, state = kept_channels(c), accumulate(self.dtype).__name__
        a = self.arrays = {"operand": drawn(self.inputs if self.taps else maps * c)}
        if self.taps:
            scale = 1 / np.sqrt(self.inputs * self.taps ** len(self.size))
            weight = draw.standard_normal((maps * c, *[self.taps] * len(self.size), self.inputs)) * scale
            a["weight"] = narrow(weight, self.dtype)
        a["lengths"] = None if self.lengths is None else np.array(self.lengths, np.int64)
        a["xg"], a["h"], a["h_state"] = drawn(3 * c), drawn(c), drawn(c, state)
        a["r"], a["z"], a["n"] = drawn(kept, gate=True), drawn(kept, gate=True), drawn(kept)
        if not self.tanh:
            a["n"][widen(a["n"], self.dtype) < 0] = 0
        a["grad_output"], a["grad_h"] = drawn(c), drawn(c, state)
        a["grad_rz"], a["grad_n"] = drawn(2 * c), drawn(c)

    def run(self, native, place=np.copy):
        """What the kernel wrote: name to array, in float64; also what it must leave alone. `place` copies an array."""
        a = {name: None if array is None else place(array) for name, array in self.arrays.items()}
        rh, output = np.full_like(a["h"], 7), np.full_like(a["h"], 7)
        size = (1,) * (3 - len(self.size)) + tuple(self.size)
        sizes = [self.batch, self.inputs, self.channels, *size, self.taps or 1, int(len(self.size) == 3)]
        weight = packed(a["weight"], MAPS[self.kernel]) if self.taps else None
        head, tail = (self.dtype, sizes, a["operand"], weight), (a["lengths"], self.step, self.tanh)
        full = self.optional
        if self.kernel == "reset_update":
            native.reset_update(*head, a["xg"], a["h"], rh, a["r"] if full else None, a["z"])
        elif self.kernel == "candidate":
            rest = (a["z"], a["h_state"], output) if full else (None, None, None)
            native.candidate(*head, a["xg"], *rest, a["n"], *tail)
        elif self.kernel == "candidate_backward":
            reads = (a["grad_output"], a["h"], a["z"], a["n"]) if full else (None, None, None, None)
            writes = (a["grad_h"], a["grad_rz"], a["grad_n"]) if full else (a["grad_h"], None, None)
            native.candidate_backward(*head, *reads, *writes, *tail)
        else:
            native.reset_backward(*head, a["h"], a["r"], a["grad_h"], a["grad_rz"])
        a.update(rh=rh, output=output)
        return {name: self.wide(name, array) for name, array in a.items() if name != "lengths" and array is not None}

    def wide(self, name, array):
        return array.astype(np.float64) if name in ("h_state", "grad_h") else widen(array, self.dtype)

    def sums(self, a):
        sums = convolution(a["operand"], a["weight"]) if self.taps else a["operand"]
        return np.split(sums, MAPS[self.kernel], axis=-1)

    def expected(self):
        """The arrays that are written, by the equations; of the others nothing is said."""
        c = self.channels
        a = {name: self.wide(name, array) for name, array in self.arrays.items() if array is not None}
        sums = self.sums(a)
        live = np.ones(self.batch) if self.lengths is None else np.array(self.lengths) > self.step
        live = live.reshape(-1, *[1] * (len(self.size) + 1)).astype(bool)
        r, z, n = (a[gate][..., :c] for gate in "rzn")
        x_r, x_z, x_n = np.split(a["xg"], 3, axis=-1)
        if self.kernel == "reset_update":
            r = sigmoid(sums[0] + x_r)
            return {"r": r, "z": sigmoid(sums[1] + x_z), "rh": r * a["h"]} | ({} if self.optional else {"r": None})
        if self.kernel == "candidate":
            n = np.tanh(sums[0] + x_n) if self.tanh else np.maximum(sums[0] + x_n, 0)
            h = np.where(live, z * a["h_state"] + (1 - z) * n, a["h_state"])
            return {"n": n, "h_state": h, "output": h} if self.optional else {"n": n, "h_state": None, "output": None}
        if self.kernel == "candidate_backward":
            if not self.optional:
                return {"grad_h": a["grad_h"] + sums[0], "grad_rz": None, "grad_n": None}
            g = a["grad_h"] + sums[0] + a["grad_output"]
            slope = 1 - n**2 if self.tanh else (n > 0).astype(float)
            grad_z = np.where(live, g * (a["h"] - n) * z * (1 - z), 0)
            grad_rz = np.concatenate([a["grad_rz"][..., :c], grad_z], axis=-1)
            return {
                "grad_h": np.where(live, g * z, g),
                "grad_rz": grad_rz,
                "grad_n": np.where(live, g * (1 - z) * slope, 0),
            }
        grad_r = sums[0] * a["h"] * r * (1 - r)
        grad_rz = np.concatenate([grad_r, a["grad_rz"][..., c:]], axis=-1)
        return {"grad_h": a["grad_h"] + sums[0] * r, "grad_rz": grad_rz}

    def check(self, native, place=np.copy):
        """Against float64; arrays that are only read, and the padding of gates, keep their bits."""
        got, expected = self.run(native, place), self.expected()
        before = {name: self.wide(name, array) for name, array in self.arrays.items() if array is not None}
        before.update({name: self.wide(name, np.full_like(self.arrays["h"], 7)) for name in ("rh", "output")})
        for name, array in got.items():
            wanted = expected.get(name)
            if name in ("r", "z", "n"):
                np.testing.assert_array_equal(array[..., self.channels :], before[name][..., self.channels :])
                array, before[name] = array[..., : self.channels], before[name][..., : self.channels]
            if wanted is None:
                np.testing.assert_array_equal(array, before[name], err_msg=f"{name} is not to be written")
                continue
            bound = (SUM_ERROR if name in ("h_state", "grad_h") else ROUNDING)[self.dtype]
            if self.taps:  # the emulated tensor core cuts its sum off after each 16 terms
                bound += 2.0**-23 * self.inputs * self.taps ** len(self.size) / 16
            error = np.abs(array - wanted) / (1 + np.abs(wanted))
            assert error.size == 0 or error.max() <= bound, f"{name}: {error.max()}"
        return got


def misaligned(array):
    """The same numbers, of which none begins at a multiple of 16 bytes."""
    copy = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    copy[...] = array
    return copy


def small_launches():
    """For sanitizers and orders: vectors and single numbers, both tiles, more steps of k than stages."""
    launches = []
    for kernel in KERNELS:
        launches.append(Launch(kernel, "float64", 2, (3, 3), 5, lengths=[1, 3]))
        launches.append(Launch(kernel, "bfloat16", 2, (4, 5), 24, lengths=[1, 3]))
        launches.append(Launch(kernel, "float16", 2, (3, 5), 24 if MAPS[kernel] == 1 else 40, 3, lengths=[1, 3]))
    launches.append(Launch("reset_update", "bfloat16", 1, (7, 56), 32, 3))
    return launches


def check_orders(native, launches, orders):
    """The same bits in every order of execution, whenever copies come, whatever was in shared memory; also where
    nothing is aligned, which the product does not take."""
    for launch in launches:
        digests = set()
        for (schedule, poison, copies), place in itertools.product(orders, (np.copy, misaligned)):
            native.configure(schedule, poison, copies)
            if place is np.copy or not launch.taps:
                digests.add(b"".join(array.tobytes() for array in launch.run(native, place).values()))
        assert len(digests) == 1, f"order or poison changes the bits of {launch.kernel}"
    native.configure()
