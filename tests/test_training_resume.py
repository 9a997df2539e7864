"""Stopping and going on: kill -9, SIGTERM, Ctrl-C; a resumed run equals the uninterrupted one bit by bit.

Decides what may happen to a run and its folder; files that are damaged are in test_training_checkpoint.py.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'vgkernels[models]'")

import training_fakes as fakes
from training_fakes import FakeConfig, TrainingOptions

from vgkernels_models.data.batch import Batch
from vgkernels_models.training.checkpoint import CheckpointError, checkpoints, read_resume
from vgkernels_models.training.run_folder import RunFolder, read_record

KILLS = 50 if os.environ.get("VG_WEEKLY") else 5
LONG = FakeConfig(steps=10 * KILLS + 20, decay=0.5)
OFTEN = TrainingOptions(seed=3, ema=0.9, save_every=3, log_every=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are killed: torch's sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same_run(found: Path, expected: Path) -> None:
    """Losses, weights, moving averages, optimizers and samples, bit by bit."""
    assert fakes.read_metrics(found) == fakes.read_metrics(expected)
    for averaged in (False, True):
        fakes.assert_equal(fakes.weights(found, averaged), fakes.weights(expected, averaged))
    states = [repr(read_resume(checkpoints(run / "checkpoints")[-1])) for run in (found, expected)]
    assert states[0] == states[1]
    names = [sorted(path.name for path in (run / "samples").iterdir()) for run in (found, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (found / "samples" / name).read_bytes() == (expected / "samples" / name).read_bytes()


def test_killed_at_random_moments_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    chance, killed = random.Random(int(time.time() * 1e6)), tmp_path / "killed"
    for _ in range(KILLS):
        child = fakes.process(fakes.train_and_exit, killed, LONG, OFTEN)
        lines = (killed / "metrics.jsonl").read_text().count("\n") if (killed / "metrics.jsonl").exists() else 0
        wanted = min(lines + chance.randrange(10), LONG.steps - 15)  # so that it gets on; then at any moment of a step
        while child.is_alive() and sum(1 for _ in read_lines(killed)) < wanted:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
        os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, "it ended before it was killed"
    assert fakes.train(killed, LONG, OFTEN, resume=True) == 0
    assert fakes.train(tmp_path / "whole", LONG, OFTEN) == 0
    assert_same_run(killed, tmp_path / "whole")
    assert not list((killed / "checkpoints").glob(".*"))


def read_lines(run: Path) -> Iterator[str]:
    try:
        yield from (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return


class Interrupting(fakes.Clips):
    """Sends this process a signal while the batch of a step is made."""

    def __init__(self, config: FakeConfig, at: int, *signals: int) -> None:
        super().__init__(config)
        self.at, self.signals = at, signals

    def starting_at(self, step: int, workers: int = 0) -> Iterator[Batch]:
        for batch in super().starting_at(step):
            for number in self.signals if step == self.at else ():
                os.kill(os.getpid(), number)
                time.sleep(0.01)  # until the handler has run
            yield batch
            step += 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(
    tmp_path: Path, number: int, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    trainer = fakes.make_trainer(tmp_path / "run", options=OFTEN)
    trainer.batches = Interrupting(trainer.model.config, 4, number)
    assert trainer.fit() == code
    assert signal.getsignal(number) is before
    assert "finishing this step, then saving" in capfd.readouterr().err
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-000003", "step-000005"]
    assert fakes.train(tmp_path / "run", options=OFTEN, resume=True) == 0
    fakes.train(tmp_path / "whole", options=OFTEN)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    trainer = fakes.make_trainer(tmp_path / "run", options=OFTEN)
    trainer.batches = Interrupting(trainer.model.config, 4, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.done == 4
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-000003"]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    out, options = tmp_path / "run", replace(OFTEN, save_every=100)
    fakes.train(out, FakeConfig(steps=4), options)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "losses": {"generator": 9}}\n{"step": 6, "los')
    fakes.train(out, FakeConfig(steps=8), options, resume=True)
    assert [step for step, _ in fakes.read_metrics(out)] == list(range(1, 9))
    assert fakes.read_metrics(out)[4][1]["generator"] < 9


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path: Path) -> None:
    fakes.train(tmp_path / "run", FakeConfig(steps=4), OFTEN)
    assert fakes.train(tmp_path / "run", FakeConfig(steps=4), OFTEN, resume=True) == 0  # nothing left to do
    fakes.train(tmp_path / "run", FakeConfig(steps=10), OFTEN, resume=True)
    fakes.train(tmp_path / "whole", FakeConfig(steps=10), OFTEN)
    assert fakes.read_metrics(tmp_path / "run") == fakes.read_metrics(tmp_path / "whole")
    fakes.assert_equal(fakes.weights(tmp_path / "run"), fakes.weights(tmp_path / "whole"))
    assert read_record(tmp_path / "run").config["steps"] == 10


@pytest.mark.parametrize(
    ("config", "options", "field"),
    [
        ({"rate": 0.5}, {}, "rate = 0.02, got 0.5"),
        ({"steps": 3}, {}, r"steps = 4, got 3 \(it may only grow\)"),
        ({}, {"seed": 9}, "seed = 3, got 9"),
        ({}, {"ema": 0.5}, "ema = 0.9, got 0.5"),
        ({}, {"clip_gradients": 0.5}, "clip-gradients = 0.0, got 0.5"),
    ],
)
def test_a_changed_setting_is_named(tmp_path: Path, config: dict, options: dict, field: str) -> None:
    out = tmp_path / "run"
    fakes.train(out, FakeConfig(steps=4), OFTEN)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=field):
        fakes.train(out, replace(FakeConfig(steps=4), **config), replace(OFTEN, **options), resume=True)
    with pytest.raises(ValueError, match="a run is there already: --resume goes on with it"):
        fakes.train(out, FakeConfig(steps=4), OFTEN)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_steps_that_decide_the_rates_may_not_change(tmp_path: Path) -> None:
    fakes.train(tmp_path / "run", FakeConfig(steps=4, decay=0.5), OFTEN)
    with pytest.raises(ValueError, match=r"steps = 4, got 5 \(the decay of the learning rate depends on it\)"):
        fakes.train(tmp_path / "run", FakeConfig(steps=5, decay=0.5), OFTEN, resume=True)


def test_what_decides_no_number_may_change(tmp_path: Path) -> None:
    fakes.train(tmp_path / "run", FakeConfig(steps=4), OFTEN)
    other = replace(OFTEN, save_every=2, log_every=2)
    assert fakes.train(tmp_path / "run", FakeConfig(steps=6), other, resume=True) == 0
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-000004", "step-000006"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a new or empty folder, or a run; got other files"):
        fakes.train(tmp_path / "run")
    with pytest.raises(ValueError, match="expected a folder of the run, got a file"):
        fakes.train(tmp_path / "file")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"lr": 1}))
    with pytest.raises(CheckpointError, match=r"config\.json: not the configuration of a run \(KeyError\('config'\)\)"):
        read_record(tmp_path)
    with pytest.raises(CheckpointError, match="no run there"):
        read_record(tmp_path / "none")


def test_sampling_for_the_time_lapse_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.train(tmp_path / "run")
    assert sorted(path.name for path in RunFolder(tmp_path / "run").samples.iterdir()) == [
        f"step-{step:06d}.npz" for step in (0, 1, 2, 3, 6, 12)
    ]
    monkeypatch.setattr("vgkernels_models.training.trainer._MOMENTS", ())
    fakes.train(tmp_path / "blind")
    fakes.assert_equal(fakes.weights(tmp_path / "run"), fakes.weights(tmp_path / "blind"))
    assert torch.isfinite(next(iter(fakes.weights(tmp_path / "run").values()))).all()
