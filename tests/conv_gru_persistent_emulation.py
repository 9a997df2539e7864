"""Decides what conv_gru's persistent kernels must compute, in numpy's float64, and how tests call them.

A Case holds one call's arrays, channels innermost. What is tried is decided in test_conv_gru_persistent_emulated.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from native.kernels import narrow, widen

EMULATED = (
    "csrc/conv_gru/conv_gru_persistent_cuda.cu",
    "csrc/conv_gru/conv_gru_persistent_backward_cuda.cu",
    "tests/native/conv_gru_persistent_bindings.cpp",
)
STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half the distance from 1 to the next number, relative


def convolved(maps, weight):
    """maps (B, H, W, Cin), weight (Cout, Cin, k, k): "same" convolution, zeros outside."""
    kernel = weight.shape[-1]
    height, width = maps.shape[1:3]
    padded = np.pad(maps, ((0, 0), (kernel // 2, kernel // 2), (kernel // 2, kernel // 2), (0, 0)))
    total = np.zeros((*maps.shape[:3], len(weight)))
    for y in range(kernel):
        for x in range(kernel):
            total += padded[:, y : y + height, x : x + width] @ weight[:, :, y, x].T
    return total


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@dataclass
class Case:
    xg: np.ndarray  # (T, B, H, W, 3C), of the dtype's bits
    h0: np.ndarray  # (B, H, W, C), float32
    weight: np.ndarray  # (3C, C, k, k), of the dtype's bits
    lengths: np.ndarray | None = None
    dtype: str = "bfloat16"
    tanh: bool = False
    reverse: bool = False

    @property
    def shape(self):
        """T, B, H, W, C"""
        return (*self.xg.shape[:4], self.weight.shape[1])

    @property
    def sizes(self):
        steps, batch, height, width, channels = self.shape
        return [steps, batch, channels, height, width, self.weight.shape[-1]]

    def rounded(self, values):
        """As convolutions see them."""
        return widen(narrow(values, self.dtype), self.dtype)

    def order(self):
        steps = range(self.shape[0])
        return reversed(steps) if self.reverse else steps

    def alive(self, step):
        lengths = self.shape[0] if self.lengths is None else self.lengths
        return np.broadcast_to(step < np.asarray(lengths), self.shape[1])[:, None, None, None]

    def expected(self):
        """h of every step, h_T, gates (T, 3, B, H, W, C): in float64, but for the convolutions' operands."""
        steps, batch, height, width, channels = self.shape
        xg, weight = widen(self.xg, self.dtype), widen(self.weight, self.dtype)
        output = np.zeros((steps, batch, height, width, channels))
        gates = np.zeros((steps, 3, *output.shape[1:]))
        h = self.h0.astype(np.float64)
        for step in self.order():
            rz = sigmoid(xg[step, ..., : 2 * channels] + convolved(self.rounded(h), weight[: 2 * channels]))
            r, z = rz[..., :channels], rz[..., channels:]
            n = xg[step, ..., 2 * channels :] + convolved(self.rounded(r * h), weight[2 * channels :])
            n = np.tanh(n) if self.tanh else np.maximum(n, 0)
            h = np.where(self.alive(step), n + z * (h - n), h)
            output[step], gates[step] = h, np.stack([r, z, n])
        return output, h, gates

    def run(self, native, keep=True, cut=(0, 0, 0), poison=0xFF):
        """What the kernel writes into arrays of other numbers, as stored: output, h_T, gates or None."""
        output, gates = self.unwritten(1), self.unwritten(3).swapaxes(0, 1).copy() if keep else None
        h = self.h0.copy()
        inputs, outputs = [self.xg, self.weight, self.lengths], [h, output[0], gates]
        native.forward(self.dtype, self.sizes, inputs, outputs, self.tanh, self.reverse, list(cut), poison)
        return output[0], h, gates

    def unwritten(self, maps):
        """(maps, T, B, H, W, C) of other numbers."""
        return np.full((maps, *self.shape), 77, self.xg.dtype)

    def convolved_back(self, grad, first, last):
        """The gradient to the operand of the gates from `first` to `last`, of that to their sums."""
        channels = self.shape[4]
        weight = widen(self.weight, self.dtype)[first * channels : last * channels]
        return convolved(self.rounded(grad), weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])

    def gradients(self, grads, past, gates):
        """grad_h0, grad_rz, grad_n in float64, but for the convolutions' operands; grads as made by `gradient_case`."""
        grad_output, g = grads
        act_slope = (lambda n: 1 - n**2) if self.tanh else (lambda n: 1.0 * (n > 0))
        grad_rz, grad_n = np.zeros((*self.shape[:4], 2 * self.shape[4])), np.zeros(self.shape)
        for step in reversed(list(self.order())):
            g = g + widen(grad_output[step], self.dtype)
            alive, h = self.alive(step), widen(past[step], self.dtype)
            r, z, n = widen(gates[step], self.dtype)
            to_z, to_n = np.where(alive, g * (h - n) * z * (1 - z), 0), np.where(alive, g * (1 - z) * act_slope(n), 0)
            g = np.where(alive, g * z, g)
            to_rh = self.convolved_back(to_n, 2, 3)
            to_r = np.where(alive, to_rh * h * r * (1 - r), 0)
            grad_rz[step], grad_n[step] = np.concatenate([to_r, to_z], -1), to_n
            g = g + np.where(alive, to_rh * r, 0) + self.convolved_back(grad_rz[step], 0, 2)
        return g, grad_rz, grad_n

    def run_backward(self, native, grads, past, gates, cut=(0, 0, 0), poison=0xFF):
        """grad_h0, grad_rz, grad_n as stored."""
        (to_r, to_z), (grad_n,) = self.unwritten(2), self.unwritten(1)
        grad_h, grad_rz = grads[1].copy(), np.concatenate([to_r, to_z], -1)
        inputs, outputs = [grads[0], past, gates, self.weight, self.lengths], [grad_h, grad_rz, grad_n]
        native.backward(self.dtype, self.sizes, inputs, outputs, self.tanh, self.reverse, list(cut), poison)
        return grad_h, grad_rz, grad_n

    def past(self, output):
        """h before each step, given h after it."""
        first = narrow(self.h0, self.dtype)[None]
        return np.concatenate([output[1:], first] if self.reverse else [first, output[:-1]])


def gaussian(steps, batch, height, width, channels, kernel, dtype="bfloat16", lengths=None, seed=0, **options):
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((3 * channels, channels, kernel, kernel)) * (1.5 / (channels * kernel**2) ** 0.5)
    xg = draw.standard_normal((steps, batch, height, width, 3 * channels))
    start = draw.standard_normal((batch, height, width, channels)).astype(np.float32)
    lengths = None if lengths is None else np.array(lengths, np.int64)
    return Case(narrow(xg, dtype), start, narrow(weight, dtype), lengths, dtype, **options)


def gradients_into(case, seed=1):
    """grad_output of the dtype's bits, grad_h_T."""
    draw = np.random.default_rng(seed)
    grad_h = draw.standard_normal(case.shape[1:]).astype(np.float32)
    return narrow(draw.standard_normal(case.shape), case.dtype), grad_h


def close(case, got, wanted):
    """Floats show whether sums are right but for operands rounded the other way, of which each step adds some."""
    step, largest = STEP[case.dtype], max(1.0, np.abs(wanted).max())
    if got.dtype != np.float32:
        np.testing.assert_allclose(widen(got, case.dtype), wanted, rtol=2 * step, atol=2 * step * largest)
    else:
        error = np.abs(got - wanted)
        assert error.max() <= 2 * step * largest
        assert np.median(error) <= step * case.shape[0] / 100 * largest


def check(native, case, **options):
    """Runs the case forward and back against float64; returns what the kernels wrote."""
    outputs = case.run(native, **options)
    for got, wanted in zip(outputs, case.expected(), strict=True):
        close(case, got, wanted)
    given = gradients_into(case), case.past(outputs[0]), outputs[2]
    gradients = case.run_backward(native, *given, **options)
    for got, wanted in zip(gradients, case.gradients(*given), strict=True):
        close(case, got, wanted)
    return *outputs, *gradients


def check_orders(native, cases, orders, **options):
    """The same bits in every order, with every poison, of the workspace too."""
    for name, case in cases.items():
        first = None
        for schedule, poison, copies in orders:
            native.configure(schedule, poison, copies)
            outputs = case.run(native, poison=poison, **options)
            given = gradients_into(case), case.past(outputs[0]), outputs[2]
            outputs = *outputs, *case.run_backward(native, *given, poison=poison, **options)
            first = first or outputs
            for got, wanted in zip(outputs, first, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{name}: {schedule}, {poison}, {copies}")
    native.configure()


def small_cases():
    """For orders and sanitizers."""
    return {
        "clips in two blocks, of which one is smaller": gaussian(2, 3, 3, 3, 32, 3, "float16", [2, 1, 2], tanh=True),
        "two chunks": gaussian(2, 1, 2, 3, 64, 1, reverse=True),
    }
