"""What torch may do with an op, tested for every op: compile, export, vmap, torch.func and autocast. A part of OpSuite,
whose cast, call, reference, run and assert_close it uses."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

if TYPE_CHECKING:
    from op_suite import OpSuite, Sample


class Transforms:
    def test_compile(self: "OpSuite", sample: "Sample", device: str) -> None:
        torch._dynamo.reset()
        case = self.cast(sample, torch.float64, device)
        compiled = torch.compile(lambda *t: self.call(with_tensors(case, t)).sin(), fullgraph=True, backend="aot_eager")
        eager = self.run(lambda s: self.call(s).sin(), case)
        self.assert_close(self.run(lambda s: compiled(*s.tensors.values()), case), eager, torch.float64)
        self.assert_close(
            self.run(lambda s: compiled(*s.tensors.values()), case, ()), {"out": eager["out"]}, torch.float64
        )

    def test_compile_dynamic(self: "OpSuite", device: str) -> None:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        case = self.cast(self.samples[0], torch.float64, device)
        compiled = torch.compile(
            lambda *t: self.call(with_tensors(case, t)).sin(), fullgraph=True, backend=counter, dynamic=True
        )
        compiles = set()  # the first call may compile twice: a float argument is a symbol until the op has it
        for batch in (11, 13, 19):  # sizes of no other dim: those would share a symbol with it
            grown = replace(case, tensors={k: t[torch.arange(batch) % 2] for k, t in case.tensors.items()})
            eager = self.run(lambda s: self.call(s).sin(), grown)
            self.assert_close(self.run(lambda s: compiled(*s.tensors.values()), grown), eager, torch.float64)
            compiles.add(counter.frame_count)
        assert len(compiles) == 1

    @pytest.mark.slow
    def test_compile_inductor(self: "OpSuite", device: str) -> None:
        torch._dynamo.reset()
        case = self.cast(self.samples[0], torch.float32, device)
        compiled = torch.compile(lambda *t: self.call(with_tensors(case, t)).sin(), fullgraph=True)
        eager = self.run(lambda s: self.call(s).sin(), case)
        self.assert_close(self.run(lambda s: compiled(*s.tensors.values()), case), eager, torch.float32)

    def test_export(self: "OpSuite", device: str) -> None:
        case = self.cast(self.samples[0], torch.float32, device)
        batch = torch.export.Dim("batch", max=64)
        module = Call(lambda *t: self.call(with_tensors(case, t)))
        shapes = {"tensors": tuple({0: batch} for _ in case.tensors)}
        program = torch.export.export(module, tuple(case.tensors.values()), dynamic_shapes=shapes)
        grown = [torch.cat([t, t[:1]]) for t in case.tensors.values()]
        torch.testing.assert_close(program.module()(*grown), self.call(with_tensors(case, grown)), rtol=0, atol=0)

    def test_meta(self: "OpSuite", sample: "Sample") -> None:
        out = self.call(self.cast(sample, torch.float16, "meta"))
        assert out.is_meta
        assert (out.shape, out.dtype) == (self.reference(sample).shape, torch.float16)

    def test_vmap(self: "OpSuite", sample: "Sample", device: str) -> None:
        case = self.cast(sample, torch.float64, device)
        stacked = {k: torch.stack([t, t.flip(0), 2 * t], dim=1) for k, t in case.tensors.items()}  # along dim 1
        for alone in (None, *(case.tensors if len(case.tensors) > 1 else ())):  # one without the new dim, in turn
            tensors = [case.tensors[k] if k == alone else stacked[k] for k in stacked]
            dims = tuple(None if k == alone else 1 for k in stacked)
            each = [[t if d is None else t[:, i] for t, d in zip(tensors, dims, strict=True)] for i in range(3)]
            got = torch.vmap(lambda *t: self.call(with_tensors(case, t)), in_dims=dims)(*tensors)
            want = torch.stack([self.call(with_tensors(case, t)) for t in each])
            torch.testing.assert_close(got, want, rtol=0, atol=self.tolerance[torch.float64]["out"])

    def test_func_grad(self: "OpSuite", sample: "Sample", device: str) -> None:
        case = self.cast(sample, torch.float64, device)
        want = self.run(self.reference, case)
        del want["out"]
        every = tuple(range(len(want)))
        grad_out = gradient_like(self.reference(case))

        def loss(*tensors: Tensor) -> Tensor:
            return (self.call(with_tensors(case, tensors)) * grad_out).sum()

        got = torch.func.grad(loss, argnums=every)(*case.tensors.values())
        self.assert_close(dict(zip(want, got, strict=True)), want, torch.float64)
        stacked = [torch.stack([t, t]) for t in case.tensors.values()]
        for i, got in enumerate(torch.vmap(torch.func.grad(loss, argnums=every))(*stacked)):
            name = list(want)[i]
            self.assert_close({name: got[1]}, {name: want[name]}, torch.float64)

    def test_backward_through_vmap(self: "OpSuite", sample: "Sample", device: str) -> None:
        case = self.cast(sample, torch.float64, device)
        want = self.run(self.reference, case)
        mapped = torch.vmap(lambda *t: self.call(with_tensors(case, t)))
        got = self.run(lambda s: mapped(*(t[None] for t in s.tensors.values()))[0], case)
        self.assert_close(got, want, torch.float64)

    def test_autocast(self: "OpSuite", sample: "Sample", device: str) -> None:
        case = self.cast(sample, torch.float32, device)
        with torch.autocast(device, dtype=torch.bfloat16):
            got = self.run(self.call, case)
        want = self.run(self.call, case)
        for k in want:
            assert torch.equal(got[k], want[k])
            assert got[k].dtype == want[k].dtype == torch.float32


class Call(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def with_tensors(sample: "Sample", tensors: Any) -> "Sample":
    return replace(sample, tensors=dict(zip(sample.tensors, tensors, strict=True)))


def gradient_like(out: Tensor) -> Tensor:
    """Of N(0, 1), the same for every dtype and device, rounded to what bfloat16 holds."""
    n = out.numel()
    values = torch.randn(n, generator=torch.Generator().manual_seed(7)).bfloat16()
    return values.view(out.shape).to(out.device, out.dtype)
