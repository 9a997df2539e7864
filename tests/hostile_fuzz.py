"""What must come of a random call: the reference's result, or a refusal that names the op; never a crash or a warning.

Decides what is compared, and how closely. As a program, `python hostile_fuzz.py CASES FILE OP...` makes calls
from seeds and keeps in FILE the op and the seed of the one that it is making, so that a crash leaves its name.
"""

import contextlib
import copy as copying
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from hostile_cases import FLOATING, GOOD, Arguments, Draw, call, spoil
from torch import Tensor, nn

from vgkernels import _checks

# Of values in units of the largest; 1e-6 is a float32's sum over hundreds, 1e-3 a Winograd convolution's or a root's.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
PATCHED = {
    "max_sliced_wasserstein",
    "sliced_wasserstein_pyramid",
}  # no impl argument: their reference is asked for here


class Wrong(AssertionError):
    pass


def tensors_of(value: Any) -> list[Tensor]:
    """The floating-point ones in an argument or a result."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not value.is_nested
        return [value] if dense and value.dtype in FLOATING else []
    if isinstance(value, nn.Module):
        return [*value.parameters(), *(buffer for buffer in value.buffers() if buffer.is_floating_point())]
    return [t for each in value for t in tensors_of(each)] if isinstance(value, list | tuple) else []


def results_and_gradients(op: str, arguments: Arguments, function: Callable[..., Any]) -> list[Tensor | None]:
    """What is returned, and the gradients of all tensors; of an op in place, what it leaves."""
    given = [t for value in arguments.values() for t in tensors_of(value)]
    if op.endswith("_") or op == "SingularValueClipping":
        function(op, arguments)
        return [tensor.detach().clone() for tensor in given]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for generator in (value for value in arguments.values() if isinstance(value, torch.Generator)):
            generator.manual_seed(1)
        outputs = tensors_of(function(op, arguments))
    asked = [t for t in {id(t): t for t in given}.values() if t.requires_grad]
    differentiable = [output for output in outputs if output.requires_grad]
    if not asked or not differentiable:
        return [output.detach() for output in outputs]
    grads = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype, device=o.device).view(o.shape) for o in differentiable]
    gradients = torch.autograd.grad(differentiable, asked, grads, allow_unused=True)
    return [output.detach() for output in outputs] + list(gradients)


def reference(op: str, arguments: Arguments) -> Any:
    """The same call in plain PyTorch."""
    if op == "svc_projection_":
        return call(op, {**arguments, "algorithm": "svd"})
    if op == "ConvGRU":
        return call(op, {**arguments, "impl": "reference"})
    if op in ("flow_warp", "flow_warp_blend", "svc_projection", "sliced_wasserstein", "conv_gru"):
        return call(op, {**arguments, "impl": "reference"})
    with without_kernels() if op in PATCHED or op == "SingularValueClipping" else contextlib.nullcontext():
        return call(op, arguments)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """As where no library is loaded, without its warning."""
    before = _checks.use_native
    users = [m for name, m in sys.modules.items() if name.startswith("vgkernels.") and hasattr(m, "use_native")]
    for module in users:
        module.use_native = lambda *_: False
    try:
        yield
    finally:
        for module in users:
            module.use_native = before


def draw(op: str, random: Random, values: tuple[str, ...], dtypes: tuple[torch.dtype, ...]) -> tuple[Draw, Arguments]:
    made = Draw(random, dtype=random.choice(dtypes), values=random.choice(values))
    return made, GOOD[op](made)


def require_grad(random: Random, arguments: Arguments) -> None:
    for tensor in (t for value in arguments.values() if isinstance(value, Tensor) for t in tensors_of(value)):
        if not tensor.requires_grad and not tensor.is_inference():
            with contextlib.suppress(RuntimeError):
                tensor.requires_grad_(random.random() < 0.7)


def check_law(op: str, random: Random) -> None:
    """A good call equals the reference, in values and first gradients."""
    values = ("normal", "normal", "ties", "zeros", "denormal") if op != "stiefel_retraction_" else ("normal",)
    made, arguments = draw(op, random, values, tuple(TOLERANCE))
    if not (op.endswith("_") or op == "SingularValueClipping"):
        require_grad(random, arguments)
    law = LAWS.get(op)
    want = results_and_gradients(op, copied(arguments), reference) if law is None else None
    got = results_and_gradients(op, arguments, call)
    if law is not None:
        law(arguments, got)
        return
    outputs = len(got) if op in PATCHED | {"svc_projection_", "SingularValueClipping"} else count_outputs(op)
    if not gradients_compare(op, made, arguments):
        got, want = got[:outputs], want[:outputs]
    assert_close(op, got, want, TOLERANCE[made.dtype])


def count_outputs(op: str) -> int:
    return 2 if op in ("conv_gru", "ConvGRU") else 1


def gradients_compare(op: str, made: Draw, arguments: Arguments) -> bool:
    """Whether there is but one: of equal samples or singular values, and of relu at 0, the reference makes a choice."""
    if made.values != "normal" or made.dtype != torch.float64:
        return op in ("flow_warp", "flow_warp_blend") and made.dtype == torch.float64
    if op == "svc_projection":
        weight = arguments["weight"].detach()
        values = torch.linalg.svdvals(weight.movedim(arguments["dim"], 0).flatten(1))
        gaps = torch.cat([-values.diff(), (values - arguments["max_singular_value"]).abs()])
        return bool((gaps > 1e-2).all() and (values > 1e-2).all())
    return True


def copied(arguments: Arguments) -> Arguments:
    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, nn.Module):
            return copying.deepcopy(value)
        return [copy(each) for each in value] if isinstance(value, list) else value

    return {name: copy(value) for name, value in arguments.items()}


def assert_close(op: str, got: list[Tensor | None], want: list[Tensor | None], tolerance: float) -> None:
    if len(got) != len(want):
        raise Wrong(f"{op}: {len(got)} results, of the reference {len(want)}")
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a is None or b is None:  # no gradient and one of zeros say the same
            if any(t is not None and t.any() for t in (a, b)):
                raise Wrong(f"{op}: result {i} is {a}, of the reference {b}")
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Wrong(f"{op}: result {i} is {a.dtype} {tuple(a.shape)}, of the reference {b.dtype} {tuple(b.shape)}")
        most = float(b.abs().max()) if b.numel() else 0.0
        error = float((a - b).abs().max()) if b.numel() else 0.0
        if not error <= tolerance * (1 + most):
            raise Wrong(f"{op}: result {i} is off by {error} at {most}:\n{a}\n{b}")


# ---- laws of ops that are their own reference ----


def _is_orthonormal(arguments: Arguments, got: list[Tensor | None]) -> None:
    for weight in tensors_of(arguments["weight"]):
        tall = weight if weight.shape[-2] >= weight.shape[-1] else weight.mT
        error = (tall.mT @ tall - torch.eye(tall.shape[-1], dtype=tall.dtype)).abs()
        if error.numel() and not error.max() <= {torch.float64: 1e-11, torch.float32: 1e-5}[weight.dtype]:
            raise Wrong(f"stiefel_retraction_: off by {error.max()}")


def _are_units(arguments: Arguments, got: list[Tensor | None]) -> None:
    (rows,) = got
    wanted = (arguments["n_projections"], arguments["dim"])
    if tuple(rows.shape) != wanted or not (rows.norm(dim=1) - 1).abs().max() <= 1e-5:
        raise Wrong(f"random_projections: {rows}")


def _is_packed(arguments: Arguments, got: list[Tensor | None]) -> None:
    weights, back = got[:2], []
    states = arguments["reset"].shape[0]
    for i, first in enumerate(arguments["order"]):
        x, h = (weight[i * states : (i + 1) * states] for weight in weights)
        back.append(torch.cat((h, x) if first == "hx" else (x, h), 1))
    if not all(torch.equal(a, arguments[k]) for a, k in zip(back, ("reset", "update", "candidate"), strict=True)):
        raise Wrong("pack_conv_gru_weights: other numbers")


def _is_transport(arguments: Arguments, got: list[Tensor | None]) -> None:
    source, target, moved = arguments["source"].detach(), arguments["target"].detach(), got[0]
    n, m = len(source), len(target)
    order, sorted_target = source.argsort(dim=0, stable=True), target.sort(dim=0)[0]
    for column in range(source.shape[1]):
        place = ((torch.arange(n, dtype=torch.float64) + 0.5) / n * m - 0.5).clamp(0, m - 1)
        low, share = place.floor().long(), place - place.floor()
        values = sorted_target[:, column].double()
        want = torch.lerp(values[low], values[(low + 1).clamp(max=m - 1)], share)
        if not (moved[:, column][order[:, column]].double() - want).abs().max() <= 1e-5 * (1 + values.abs().max()):
            raise Wrong(f"sort_transport: {moved[:, column]}, not {want}")
    if arguments["target"].requires_grad:
        ramp = torch.linspace(-1, 1, moved.numel(), dtype=moved.dtype).view(moved.shape)
        if not (got[-1].sum(0) - ramp.sum(0)).abs().max() <= 1e-4:  # each value comes from the targets, in shares of 1
            raise Wrong("sort_transport: the gradient of target doesn't add up")


LAWS: dict[str, Callable[[Arguments, list[Tensor | None]], None]] = {
    "stiefel_retraction_": _is_orthonormal,
    "random_projections": _are_units,
    "pack_conv_gru_weights": _is_packed,
    "sort_transport": _is_transport,
}

# ---- anything at all ----

VALUES = ("normal", "normal", "ties", "zeros", "denormal", "huge", "special")


def fuzzed(op: str, seed: int) -> Arguments:
    """The arguments of a call that may be bad: every layout, dtype and value; a tenth on meta, past 2^31 elements."""
    random = Random(f"{op} {seed}")
    made = Draw(random, dtype=random.choice(FLOATING), values=random.choice(VALUES))
    made.device = "meta" if random.random() < 0.1 and op not in ("SingularValueClipping", "ConvGRU") else "cpu"
    arguments = GOOD[op](made)
    require_grad(random, arguments)
    return spoil(random, arguments) if random.random() < 0.8 else arguments


def try_one(op: str, seed: int) -> str:
    """ "accepted", or the message of a refusal; raises Wrong for what is neither."""
    arguments = fuzzed(op, seed)
    try:
        results_and_gradients(op, arguments, call)
    except (TypeError, ValueError, RuntimeError) as error:
        message = str(error).splitlines()[0] if str(error) else ""
        if not re.match(rf"(\w+, csrc/[\w/]+\.\w+:\d+, )?{op}: ", message):  # torch's macro says the place first
            raise Wrong(f"refused in other words: {type(error).__name__}: {message}") from error
        return message
    return "accepted"


def main(cases: str, file: str, *ops: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with Path(file).open("w") as now:
        for op in ops:
            wrong, accepted = [], 0
            for seed in range(int(cases)):
                now.seek(0)
                now.truncate()
                now.write(f"{op} {seed}")
                now.flush()
                try:
                    accepted += try_one(op, seed) == "accepted"
                except Exception as error:  # also warnings, and what no op may raise
                    wrong.append(f"{op} {seed}: {type(error).__name__}: {error}")
            refused = int(cases) - accepted - len(wrong)
            print(json.dumps({"op": op, "accepted": accepted, "refused": refused, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
