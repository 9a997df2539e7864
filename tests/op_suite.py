"""The tests that every op gets. A subclass names its op and gives samples, layouts, empty and bad inputs.

Decides what is checked; which numbers are tried, and how large an error may be, is decided by the op's own test file.
"""

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from native import emulated_ops
from native.kernels import WEEKLY
from op_transforms import Transforms, gradient_like, with_tensors
from torch import Tensor

import vgkernels
from vgkernels import _native

LOW_PRECISION = (torch.float16, torch.bfloat16)
# Where CI sets VGKERNELS_REQUIRE_NATIVE, a missing library fails these tests instead.
needs_native = pytest.mark.skipif(
    not _native.native_status().cpu_loaded and os.environ.get("VGKERNELS_REQUIRE_NATIVE") != "1",
    reason=f"native library: {_native.native_status().cpu_reason}",
)


@dataclass(frozen=True)
class Sample:
    """One call: tensors in float64 on the CPU, in the order of the op's arguments, and its keyword options."""

    name: str
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bad:
    """A sample spoilt: `change` gets the tensors and the options, and alters them in place."""

    name: str
    change: Callable[[dict[str, Any], dict[str, Any]], Any]
    error: type[Exception]
    match: str  # a regular expression, after "<op>: "


class OpSuite(Transforms):
    op: str  # the public function's name
    samples: list[Sample]  # away from every kink, so that all dtypes see one side of it
    empty: list[Sample]  # results without an element, or gradients of 0
    bad: list[Bad]  # refused by the public function, on samples[0]
    bad_native: list[Bad]  # refused by torch.ops as a RuntimeError, on samples[0]
    wide: frozenset[str] = frozenset()  # arguments that the kernel takes in the accumulation dtype
    tolerance: dict[torch.dtype, dict[str, float]]  # dtype -> {"out" or argument: absolute error}

    def native_calls(self, sample: Sample) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """(torch.ops overload, arguments) of the forward op, then of the backward op."""
        raise NotImplementedError

    def has_kernel(self, sample: Sample) -> bool:
        """Whether calls as this sample's come to a kernel, on the backend in use."""
        return True

    # ---- how the tests call the op ----

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        def by_name(name: str, values: list[Any]) -> None:
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=[value.name for value in values])

        by_name("sample", cls.samples)
        by_name("empty_sample", cls.empty)
        by_name("bad_input", cls.bad)
        by_name("bad_native_input", cls.bad_native)

    def cast(self, sample: Sample, dtype: torch.dtype, device: str | None = None) -> Sample:
        """To `dtype`, or the accumulation dtype, and `device`, without one where it is."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tensors = {k: t.to(device, wide if k in self.wide else dtype) for k, t in sample.tensors.items()}
        return replace(sample, tensors=tensors)

    def call(self, sample: Sample, **more: Any) -> Tensor:
        return getattr(vgkernels, self.op)(*sample.tensors.values(), **sample.options, **more)

    def reference(self, sample: Sample) -> Tensor:
        return getattr(vgkernels, f"{self.op}_reference")(*sample.tensors.values(), **sample.options)

    def run(
        self, function: Callable[[Sample], Tensor], sample: Sample, asked: tuple[str, ...] | None = None
    ) -> dict[str, Tensor]:
        """{"out": ..., argument: its gradient ...}; the output's gradient is the same for every dtype and device."""
        asked = tuple(sample.tensors) if asked is None else asked
        tensors = {k: t.detach().requires_grad_(k in asked) for k, t in sample.tensors.items()}
        out = function(replace(sample, tensors=tensors))
        assert out.requires_grad == bool(asked)
        if asked:
            out.backward(gradient_like(out))
        gradients = {k: t.grad for k, t in tensors.items()}
        assert {k for k, g in gradients.items() if g is not None} == set(asked)
        return {"out": out.detach(), **{k: gradients[k] for k in asked}}

    def assert_close(self, got: dict[str, Tensor], want: dict[str, Tensor], dtype: torch.dtype) -> None:
        assert got.keys() == want.keys()
        for k in got:
            wanted = want[k].to(got[k].dtype)
            torch.testing.assert_close(
                got[k], wanted, rtol=0, atol=self.tolerance[dtype][k], msg=lambda text, k=k: f"{k}: {text}"
            )

    # ---- values and first derivatives ----

    def test_equals_reference(self, sample: Sample, device: str) -> None:
        for dtype in (torch.float64, torch.float32):
            case = self.cast(sample, dtype, device)
            exact = self.run(self.reference, self.cast(case, torch.float64, device))
            self.assert_close(self.run(self.call, case), exact, dtype)
            self.assert_close(self.run(self.reference, case), exact, dtype)

    def test_low_precision_is_float32_rounded_once(self, sample: Sample, device: str) -> None:
        for dtype, function in itertools.product(LOW_PRECISION, (self.call, self.reference)):
            case = self.cast(sample, dtype, device)
            got, want = self.run(function, case), self.run(self.reference, self.cast(case, torch.float32, device))
            for k, tensor in got.items():
                assert tensor.dtype == (case.tensors[k].dtype if k != "out" else dtype)
                error = (tensor.float() - want[k].float()).abs()
                allowed = self.tolerance[torch.float32][k] + (ulp(want[k], dtype) if tensor.dtype == dtype else 0)
                assert (error <= allowed).all(), f"{k}: {(error - allowed).max()} over 1 ulp of {dtype}"

    def test_only_asked(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float64, device)
        full = self.run(self.call, case)
        for n in range(len(case.tensors) + 1):
            for asked in itertools.combinations(case.tensors, n):
                got = self.run(self.call, case, asked)
                self.assert_close(got, {k: full[k] for k in got}, torch.float64)

    def test_no_grad_gives_the_same(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        want = self.run(self.call, case)["out"]
        for tensor in case.tensors.values():
            tensor.requires_grad_(True)
        with torch.no_grad():
            out = self.call(case)
        assert not out.requires_grad
        assert torch.equal(out, want)

    def test_reference_on_request(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        assert torch.equal(self.call(case, impl="reference"), self.reference(case))

    def test_gradcheck(self, sample: Sample, device: str) -> None:
        tensors = [t.detach().to(device).requires_grad_() for t in sample.tensors.values()]
        fast = emulated_ops.are_in_use() and not WEEKLY  # along one direction of all inputs
        assert torch.autograd.gradcheck(lambda *t: self.call(with_tensors(sample, t)), tensors, fast_mode=fast)

    def test_gradgradcheck(self, sample: Sample, device: str) -> None:
        tensors = [t.detach().to(device).requires_grad_() for t in sample.tensors.values()]
        assert torch.autograd.gradgradcheck(lambda *t: self.call(with_tensors(sample, t)), tensors, fast_mode=True)

    # ---- layouts and sizes ----

    def test_layouts(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        want = self.run(self.call, case)
        for k, tensor in case.tensors.items():
            for name, laid in layouts(tensor).items():
                assert torch.equal(laid, tensor)
                got = self.run(self.call, replace(case, tensors={**case.tensors, k: laid}))
                for g in got:
                    assert got[g].shape == want[g].shape
                    error = (got[g] - want[g]).abs().max().item()
                    assert error <= self.tolerance[torch.float32][g], f"{k} {name}: {g} is off by {error}"

    def test_expanded(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        for k, tensor in case.tensors.items():
            one = tensor[:1].expand(tensor.shape)
            expanded, packed = ({**case.tensors, k: t} for t in (one, one.contiguous()))
            got, want = (self.run(self.call, replace(case, tensors=t)) for t in (expanded, packed))
            self.assert_close(got, want, torch.float32)

    def test_empty(self, empty_sample: Sample, device: str) -> None:
        case = self.cast(empty_sample, torch.float32, device)
        for function in (self.call, self.reference):
            got = self.run(function, case)
            assert got["out"].shape == self.reference(case).shape
            assert got["out"].numel() == 0
            assert all(not got[k].any() for k in case.tensors)
            assert all(got[k].shape == case.tensors[k].shape for k in case.tensors)

    # ---- bad input ----

    def test_bad_input(self, bad_input: Bad) -> None:
        for suffix in ("", "_reference"):
            tensors, options = dict(self.cast(self.samples[0], torch.float32).tensors), dict(self.samples[0].options)
            bad_input.change(tensors, options)
            if suffix and "impl" in options:
                continue
            name = self.op + suffix
            with pytest.raises(bad_input.error, match=f"^{name}: {bad_input.match}"):
                getattr(vgkernels, name)(**tensors, **options)

    @needs_native
    def test_bad_native_input(self, bad_native_input: Bad, device: str) -> None:
        good = self.cast(self.samples[0], torch.float32, device)
        spoilt = dict(good.tensors), dict(good.options)
        bad_native_input.change(*spoilt)
        bad = replace(good, tensors=spoilt[0], options=spoilt[1])
        for (op, arguments), (_, good_arguments) in zip(self.native_calls(bad), self.native_calls(good), strict=True):
            op(*good_arguments)
            with pytest.raises(bad_native_input.error, match=bad_native_input.match):
                op(*arguments)

    # ---- which kernel runs, and that it repeats itself ----

    @needs_native
    def test_opcheck(self, sample: Sample, device: str) -> None:
        for dtype, layout in ((torch.float64, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
            case = self.cast(sample, dtype, device)
            laid = {k: t.contiguous(memory_format=layout) if t.dim() == 4 else t for k, t in case.tensors.items()}
            for op, arguments in self.native_calls(replace(case, tensors=laid)) if self.has_kernel(case) else ():
                report = torch.library.opcheck(op, arguments)
                assert len(report) == 4
                assert set(report.values()) == {"SUCCESS"}

    def test_same_bits_again(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            first = self.run(self.call, case)
            for how in emulated_ops.runs_again(device):
                again = self.run(self.call, case)
                assert all(torch.equal(again[k], first[k]) for k in first), how
        finally:
            torch.use_deterministic_algorithms(before)

    def test_fallback_warns_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = self.cast(self.samples[0], torch.float32)
        nothing = _native.NativeStatus(False, False, "it was taken away", "it was taken away")
        monkeypatch.setattr(_native, "_status", nothing)
        monkeypatch.setattr(_native, "_warned", set())
        monkeypatch.delenv("VGKERNELS_REQUIRE_NATIVE", raising=False)
        with pytest.warns(UserWarning, match=f"^{self.op}: .*it was taken away"):
            out = self.call(case)
        assert torch.equal(out, self.reference(case))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.call(case)
            self.call(case, impl="reference")
        with pytest.raises(RuntimeError, match=f"^{self.op}: .*impl='native'.*it was taken away"):
            self.call(case, impl="native")
        monkeypatch.setenv("VGKERNELS_REQUIRE_NATIVE", "1")
        with pytest.raises(RuntimeError, match=f"^{self.op}: .*it was taken away"):
            self.call(case)
        self.call(case, impl="reference")

    @needs_native
    def test_native_op_is_what_runs(self, sample: Sample, device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        ops = next(self.native_calls(case))[0].name(), list(self.native_calls(case))[1][0].name()
        for impl in ("auto", "native"):
            with torch.profiler.profile() as profile:
                self.run(lambda s, impl=impl: self.call(s, impl=impl), case)
            assert set(ops) <= {event.name for event in profile.events()}


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbours in `dtype` around float32 values."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.float().abs().clamp_min(info.tiny)).exponent
    return info.eps * torch.exp2(exponent.float() - 1)


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same numbers in other strides."""
    padded = torch.nn.functional.pad(tensor, (1, 2) * (tensor.dim() - 1), value=float("nan"))
    inner = tuple(slice(1, 1 + n) for n in tensor.shape[1:])
    twice = torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=-1)
    found = {
        "transposed": tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "sliced": padded[(slice(None), *inner)],
        "strided": twice[..., 0],
        "offset": torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape),
        "batch last": tensor.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    if tensor.dim() == 4:
        found["channels_last"] = tensor.contiguous(memory_format=torch.channels_last)
    return found


def run_tests_again(file: str, select: str, **environment: str) -> None:
    """pytest on a part of a file, in a fresh process with other environment variables."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", select, file]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
