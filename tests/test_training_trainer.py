"""The loop and one step of it: order of updates, gradients, averages, clipping, what breaks a run, what is told of it.

Decides what a model's `training_step` can rely on; several ranks are in test_training_ranks.py.
"""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'vgkernels[models]'")

import training_fakes as fakes
from training_fakes import FakeConfig, TrainingOptions

import vgkernels_models
from vgkernels_models.data.batch import Batch
from vgkernels_models.model import Step
from vgkernels_models.training.checkpoint import checkpoints
from vgkernels_models.training.progress import Progress, check_loggers, peak_memory
from vgkernels_models.training.ranks import find_device
from vgkernels_models.training.run_folder import Record, RunFolder
from vgkernels_models.training.step import OptimizerStep
from vgkernels_models.training.trainer import NonFinite, Trainer


def sgd(*tensors: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD(tensors, lr=1.0)


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_all_gradients_are_taken_before_any_step() -> None:
    a, b = parameter(2.0), parameter(3.0)
    product = a * b
    OptimizerStep(0, {"a": sgd(a), "b": sgd(b)}).descend({"a": product.sum(), "b": -product.sum()})
    assert (a.item(), b.item()) == (2 - 3, 3 + 2)
    assert a.grad is None and b.grad is None


def test_one_loss_of_two_optimizers_goes_through_its_graph_once() -> None:
    a, b, passes = parameter(2.0), parameter(3.0), []
    product = a * b
    product.register_hook(lambda gradient: passes.append(1))
    loss = product.sum()
    OptimizerStep(0, {"a": sgd(a), "b": sgd(b)}).descend({"a": loss, "b": loss})
    assert (a.item(), b.item(), len(passes)) == (-1, 1, 1)


def test_a_parameter_out_of_reach_gets_zeros() -> None:
    used, unused, frozen = parameter(1.0), parameter(1.0), parameter(1.0).requires_grad_(False)
    optimizer = torch.optim.SGD([used, unused, frozen], lr=1.0, weight_decay=0.5)
    OptimizerStep(0, {"x": optimizer}).descend({"x": used.sum()})
    assert (used.item(), unused.item(), frozen.item()) == (-0.5, 0.5, 1)  # weight decay acts on it too


def test_gradients_that_autograd_shares_are_clipped_apart() -> None:
    a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    OptimizerStep(0, {"x": sgd(a, b)}, clip=1.0).descend({"x": (a + b).sum()})  # one expanded tensor for both
    assert a.tolist() == b.tolist() == pytest.approx([-1 / math.sqrt(8)] * 4)


def test_the_gradient_of_each_optimizer_is_clipped_by_its_own_norm() -> None:
    a, b = parameter(3.0, 4.0), parameter(0.3, 0.4)
    losses = {"a": a.square().sum() / 2, "b": b.square().sum() / 2}
    OptimizerStep(0, {"a": sgd(a), "b": sgd(b)}, clip=1.0).descend(losses)
    assert a.tolist() == pytest.approx([3 - 0.6, 4 - 0.8])
    assert b.tolist() == pytest.approx([0, 0])


def test_losses_that_can_not_be_descended_are_named() -> None:
    a, b = parameter(1.0), parameter(1.0)
    step = OptimizerStep(0, {"a": sgd(a), "b": sgd(b)})
    with pytest.raises(ValueError, match="expected an optimizer out of a, b, got 'c'"):
        step.descend({"c": a.sum()})
    with pytest.raises(ValueError, match=r"loss of 'a' to be a scalar, got \(2,\)"):
        step.descend({"a": torch.stack([a, a]).flatten()})
    for loss in (a.sum(), b.detach().sum()):
        with pytest.raises(ValueError, match="the loss of 'b' reaches none of that optimizer's parameters"):
            step.descend({"b": loss})
    assert a.item() == b.item() == 1


def test_clipping_is_an_option_of_the_run(tmp_path: Path) -> None:
    config = FakeConfig(steps=1, clipped=False)
    moved = {}
    for clip in (0.0, 1e-9):
        trainer = fakes.make_trainer(tmp_path / f"run{clip}", config, TrainingOptions(clip_gradients=clip))
        trainer.optimizers |= {"critic": sgd(*trainer.model.critic.parameters())}
        before = trainer.model.critic[0].weight.detach().clone()
        trainer.fit()
        moved[clip] = (trainer.model.critic[0].weight - before).norm().item()
    assert moved[0.0] > 1e-4 and moved[1e-9] < 1e-7


def test_the_rate_falls_linearly_over_the_last_share(tmp_path: Path) -> None:
    trainer = fakes.make_trainer(tmp_path / "run", FakeConfig(steps=8, decay=0.5))
    rates: list[set[float]] = []
    step = trainer.model.training_step

    def watched(batch: Batch, update: Step) -> dict[str, Tensor]:
        rates.append({group["lr"] for optimizer in trainer.optimizers.values() for group in optimizer.param_groups})
        return step(batch, update)

    trainer.model.training_step = watched  # type: ignore[method-assign]
    trainer.fit()
    assert rates == [{0.02 * share} for share in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)]


def test_the_average_is_an_exponential_one_and_is_what_is_sampled(tmp_path: Path) -> None:
    trainer = fakes.make_trainer(tmp_path / "run", options=TrainingOptions(ema=0.75, save_every=1, log_every=1))
    expected: list[Tensor] = []
    update = trainer._update

    def watched(batch: object) -> dict[str, Tensor]:
        losses = update(batch)  # type: ignore[arg-type]
        now = trainer.model.decoder.weight.detach().clone()
        expected.append(expected[-1] * 0.75 + now * 0.25 if expected else now)
        return losses

    trainer._update = watched  # type: ignore[method-assign]
    trainer.fit()
    found = fakes.weights(tmp_path / "run", averaged=True)
    torch.testing.assert_close(found["decoder.weight"], expected[-1])
    assert not torch.equal(found["decoder.weight"], trainer.model.decoder.weight)
    assert torch.equal(found["critic.1.running_var"], trainer.model.critic[1].running_var)
    last = np.load(tmp_path / "run/samples/step-000012.npz")["video"]
    model = fakes.load_model(tmp_path / "run")
    assert last.dtype == np.uint8 and last.shape == (16, 2, 4, 4, 1)
    shown = ((model.sample(16, seed=0) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
    assert np.array_equal(last, shown.numpy())


def test_a_seed_means_one_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed + len(name) + ord(name))  # what was drawn before does not matter
        fakes.train(tmp_path / name, options=TrainingOptions(seed=seed, log_every=1))
    a, b, c = (fakes.read_metrics(tmp_path / name) for name in "abc")
    assert a == b != c


def test_steps_and_seeds_draw_different_noise(tmp_path: Path) -> None:
    drawn: list[Tensor] = []
    for seed in (0, 1):
        options = TrainingOptions(seed=seed)
        trainer = fakes.make_trainer(tmp_path / f"run{seed}", FakeConfig(steps=4), options)
        trainer.model.decoder.register_forward_hook(lambda layer, inputs, output: drawn.append(inputs[0]))
        trainer.fit()
    noise = [z for z in drawn if len(z) == 4]  # others are the time-lapse's
    assert len({z.sum().item() for z in noise}) == len(noise) == 8


def test_bf16_is_autocast(tmp_path: Path) -> None:
    dtypes = set()
    for bf16 in (False, True):
        trainer = fakes.make_trainer(tmp_path / f"run{bf16}", FakeConfig(steps=1), TrainingOptions(bf16=bf16))
        seen = partial(lambda asked, layer, inputs, output: dtypes.add((asked, output.dtype)), bf16)
        trainer.model.critic[0].register_forward_hook(seen)
        trainer.fit()
        assert trainer.model.critic[0].weight.dtype == torch.float32
    assert dtypes == {(False, torch.float32), (True, torch.bfloat16)}


def test_bf16_sees_the_weights_of_each_update(tmp_path: Path) -> None:
    """VGAN's generator is judged by the discriminator after its update; autocast's cache would keep it from before."""
    losses = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        model = vgkernels_models.create("vgan", "tiny", batch_size=4)
        batches, run = fakes.Clips(model.config), RunFolder(tmp_path)
        trainer = Trainer(model, batches, run, Record("vgan", "tiny", {}, {}), TrainingOptions(bf16=bf16))
        losses.append(trainer._update(next(batches.starting_at(0)))["generator"].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_compile_is_opt_in_and_compiles_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda part: compiled.append(type(part).__name__))
    fakes.train(tmp_path / "plain", FakeConfig(steps=1))
    assert compiled == []
    fakes.train(tmp_path / "compiled", FakeConfig(steps=1), TrainingOptions(compile=True))
    assert compiled == ["Linear", "Sequential", "Linear"]


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(tmp_path: Path) -> None:
    out, options = tmp_path / "run", TrainingOptions(save_every=3, log_every=5)
    with pytest.raises(NonFinite, match=r"step 8: the loss 'critic' is nan; the last checkpoint is .*step-000006$"):
        fakes.train(out, FakeConfig(breaks_at=7), options)
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-000003", "step-000006"]
    assert all(tensor.isfinite().all() for tensor in fakes.weights(out).values())
    with pytest.raises(NonFinite, match=r"step 1: .*; there is no checkpoint yet"):
        fakes.train(tmp_path / "first", FakeConfig(breaks_at=0), options)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = fakes.make_trainer(tmp_path / "run", options=TrainingOptions(save_every=4))
    update = trainer._update

    def poisoned(batch: object) -> dict[str, Tensor]:
        losses = update(batch)  # type: ignore[arg-type]
        if trainer.done == 8:
            trainer.model.decoder.bias.data[0] = math.inf
        return losses

    trainer._update = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFinite, match=r"step 8: decoder\.bias is not finite; the last checkpoint is .*step-000004"):
        trainer.fit()
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-000004"]


def test_an_error_of_the_model_that_no_loss_explains_is_passed_on(tmp_path: Path) -> None:
    trainer = fakes.make_trainer(tmp_path / "run")
    trainer.model.critic[0].register_forward_hook(lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match") as found:
        trainer.fit()
    assert not isinstance(found.value, NonFinite)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ema", 1.0), ("clip_gradients", -1), ("seed", -1), ("workers", -1), ("save_every", 0), ("log_every", 0)],
)
def test_options_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"expected {name} to be .*, got {value}"):
        TrainingOptions(**{name: value})


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected steps to be at least 1, got 0"):
        fakes.make_trainer(tmp_path / "run", FakeConfig(steps=0))
    with pytest.raises(ValueError, match="expected decay to be a share of the steps from 0 to 1, got 2"):
        fakes.make_trainer(tmp_path / "more", FakeConfig(decay=2))


def test_metrics_hold_the_losses_of_their_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.train(tmp_path / "every", options=TrainingOptions(log_every=1))
    fakes.train(tmp_path / "some", options=TrainingOptions(log_every=5))
    every = dict(fakes.read_metrics(tmp_path / "every"))
    assert fakes.read_metrics(tmp_path / "some") == [(step, every[step]) for step in (5, 10, 12)]
    line = json.loads((tmp_path / "some/metrics.jsonl").read_text().splitlines()[0])
    assert line.keys() == {"step", "losses", "seconds", "clips_per_second"}
    assert line["losses"].keys() == {"generator", "critic"} and line["clips_per_second"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 12 + 3
    assert printed[-1].startswith(f"step 12/12  generator {every[12]['generator']:.4g}  critic ")


def test_a_long_run_prints_about_twenty_lines_or_one_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, 5100, clips=4) as progress:
        for step in range(110, 5101, 10):
            progress.log(step, {"x": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 22 and lines[-1].startswith("step 5100/5100  x 1")
    assert lines[0].startswith("step 110/5100  x 1  ")
    monkeypatch.setattr("time.perf_counter", iter(range(0, 5000, 30)).__next__)
    with Progress(0, 10**6, clips=4) as progress:
        for step in range(1, 7):
            progress.log(step, {"x": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in lines] == ["step 1", "step 3", "step 5"]  # one a minute
    monkeypatch.undo()
    with Progress(0, 10, clips=4, shown=False) as progress:
        progress.log(10, {"x": 1.0})
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_with_rate_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in (("COLUMNS", "160"), ("TERM", "xterm"), ("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1")):
        monkeypatch.setenv(name, value)
    fakes.train(tmp_path / "run")
    shown = capsys.readouterr().out
    assert "training" in shown and "12/12" in shown and "clips/s" in shown and "left" in shown


def test_tensorboard_gets_the_losses(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'vgkernels[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fakes.train(tmp_path / "run", options=TrainingOptions(log_every=4, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/critic")]
    expected = [(step, losses["critic"]) for step, losses in fakes.read_metrics(tmp_path / "run")]
    assert found == expected and len(found) == 3


class Service:
    """What of wandb is used."""

    def __init__(self) -> None:
        self.started: dict = {}
        self.lines: list = []
        self.finished = 0

    def init(self, **settings: object) -> "Service":
        self.started = settings
        return self

    def log(self, line: dict, step: int) -> None:
        self.lines.append((step, line))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_the_losses_under_one_name_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Service(), Service()
    options = TrainingOptions(log_every=4, wandb=True)
    monkeypatch.setitem(sys.modules, "wandb", first)  # type: ignore[arg-type]
    fakes.train(tmp_path / "run", options=options)
    monkeypatch.setitem(sys.modules, "wandb", second)  # type: ignore[arg-type]
    fakes.train(tmp_path / "run", replace(FakeConfig(), steps=16), options, resume=True)
    assert [step for step, _ in first.lines + second.lines] == [4, 8, 12, 16]
    assert first.lines[0][1].keys() == {"generator", "critic", "clips/s"} and first.finished == 1
    assert first.started["id"] == second.started["id"] and first.started["config"]["model"] == "fake"


def test_missing_loggers_are_said_before_the_work() -> None:
    check_loggers(tensorboard=False, nothing_of_this_name=False)
    with pytest.raises(ValueError, match="--nothing: nothing is not installed: pip install 'vgkernels"):
        check_loggers(nothing=True)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="expected device to be auto, cpu or cuda, got 'gpu'"):
        find_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device cuda: expected at least 1 CUDA device\(s\), torch sees 0"):
        find_device("cuda")


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = torch.ones(2**24)
    assert float(peak_memory(held.device).split()[0]) > 64
