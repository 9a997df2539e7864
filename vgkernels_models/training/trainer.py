"""The training loop of every model: batches in, updates by the model's own rule, checkpoints, samples and metrics out.

Decides what happens around an update and when a run ends; what an update is, is left to the models.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vgkernels_models.data.batch import Batch
from vgkernels_models.model import VideoModel
from vgkernels_models.samples import to_bytes
from vgkernels_models.training import checkpoint as checkpoints
from vgkernels_models.training.interruption import Interruption
from vgkernels_models.training.progress import Journal, Progress
from vgkernels_models.training.ranks import Ranks
from vgkernels_models.training.run_folder import Record, RunFolder
from vgkernels_models.training.step import OptimizerStep

SAMPLES = 16  # clips of the time-lapse
_MOMENTS = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # shares of the training at which they are taken


class NonFinite(RuntimeError):
    """A loss or weight became NaN or infinite; the message names it and the step."""


class Stream(Protocol):
    """Batches as a function of the step, so that resuming needs no state."""

    def starting_at(self, step: int, workers: int = 0) -> Iterator[Batch]:
        """The batches from this step on."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a run goes, whatever the model. The comment of a field is the help of its flag."""

    seed: int = 0  # of the first weights, the order of clips, and all noise
    ema: float = 0.0  # decay of a moving average of the weights, which is then what is sampled (0.999); 0 for none
    clip_gradients: float = 0.0  # largest norm of the gradient of one optimizer's parameters; 0 for no limit
    bf16: bool = False  # bfloat16 where torch.autocast sees fit
    compile: bool = False  # torch.compile the model's parts; none that a gradient penalty goes through
    device: str = "auto"  # cpu, cuda, or auto: CUDA where there is some
    workers: int = 0  # processes that prepare batches ahead
    save_every: int = 500  # steps from checkpoint to checkpoint
    log_every: int = 10  # steps from line to line of metrics.jsonl
    tensorboard: bool = False  # log to RUN/tensorboard too
    wandb: bool = False  # log to Weights & Biases too

    def __post_init__(self) -> None:
        for name in ("save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} to be at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers"):
            if not 0 <= getattr(self, name) < 1 << 63:
                raise ValueError(f"expected {name} to be at least 0 and of 63 bits, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"expected ema to be a decay from 0 to 1, such as 0.999, got {self.ema}")
        if not 0 <= self.clip_gradients < math.inf:
            raise ValueError(f"expected clip_gradients to be a norm, or 0 for no limit, got {self.clip_gradients}")


class Trainer:
    """One run of a model.

    All randomness of an update comes from torch's generators, seeded anew for each step by (seed, rank, step). So a
    run that is resumed needs no generator's state, and on one machine's CPU equals the uninterrupted one bit by bit.

    Args:
        model: as it starts, or as `resume` is to fill it. It is moved to the ranks' device.
        batches: this rank's.
        run: the folder; only the first rank writes to it.
        record: what the run was started with.
        options: see there.
        ranks: the processes that train together.
        condition: (N, ...) what the clips of the time-lapse are conditioned on, where the model needs that.
    """

    def __init__(
        self,
        model: VideoModel,
        batches: Stream,
        run: RunFolder,
        record: Record,
        options: TrainingOptions | None = None,
        ranks: Ranks | None = None,
        condition: Tensor | None = None,
    ) -> None:
        self.options, self.ranks = options or TrainingOptions(), ranks or Ranks()
        self.model, self.batches, self.run, self.record = model.to(self.ranks.device), batches, run, record
        self.condition, self.steps, self.done = condition, model.config.steps, 0
        self.optimizers = self.model.optimizers()
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        self._rates = [group["lr"] for group in groups]
        self.averaged: AveragedModel | None = None
        if self.options.ema and self.ranks.first:
            average = get_ema_multi_avg_fn(self.options.ema)
            self.averaged = AveragedModel(self.model, multi_avg_fn=average)  # buffers are copied

    def resume(self, folder: Path) -> None:
        """Takes up the run from a checkpoint.

        Raises:
            CheckpointError: missing, damaged or foreign files.
        """
        checkpoints.fill(self.model, checkpoints.read_weights(folder)[0], folder / checkpoints.WEIGHTS)
        state = checkpoints.read_resume(folder)
        try:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (KeyError, ValueError, TypeError) as error:
            raise checkpoints.CheckpointError(f"{folder / checkpoints.RESUME}: other optimizers ({error})") from error
        self.done = state["step"]
        if self.averaged:
            tensors, _ = checkpoints.read_weights(folder, checkpoints.AVERAGED)
            checkpoints.fill(self.averaged.module, tensors, folder / checkpoints.AVERAGED)
            self.averaged.n_averaged.fill_(self.done)

    def fit(self) -> int:
        """Trains to the last step, or until SIGTERM or Ctrl-C.

        Returns:
            0 at the end; 143 (SIGTERM) or 130 (Ctrl-C) when interrupted. A checkpoint is there in all three cases.

        Raises:
            NonFinite: a loss or a weight is NaN or infinite; the checkpoints are those from before.
        """
        options, ranks = self.options, self.ranks
        ranks.broadcast(self.model)
        self.model.train()
        if options.compile:
            for part in self.model.children():
                part.compile()
        batch_size = self.model.config.batch_size
        if ranks.first:
            self.run.cut_metrics(self.done)
        with (
            Progress(self.done, self.steps, batch_size * ranks.world, shown=ranks.first) as progress,
            Interruption(insistent=ranks.world == 1) as interruption,
            self._journal() as journal,
        ):
            stopped_by = self._loop(progress, journal, interruption)
        return 128 + stopped_by if stopped_by else 0

    def _loop(self, progress: Progress, journal: Journal | None, interruption: Interruption) -> int:
        """Returns the signal that ended it, 0 at the last step."""
        if self.done == 0:
            self._show()
        batches = self.batches.starting_at(self.done, self.options.workers)
        while self.done < self.steps:
            losses = self._update(next(batches).to(self.ranks.device))
            progress.advance(self.done)
            logs = self.done % self.options.log_every == 0 or self.done == self.steps
            saves = self.done % self.options.save_every == 0 or self.done == self.steps
            stopped_by = 0
            # To look at a loss waits for CUDA; to hear of the other ranks' signals waits for them.
            alone_and_stopped = bool(interruption.received) and self.ranks.world == 1
            if logs or saves or alone_and_stopped or self.ranks.device.type == "cpu":
                values, stopped_by = self._agree(losses, interruption.received)
            if logs:
                rate = progress.log(self.done, values)
                if journal:
                    journal.log(self.done, values, progress.seconds, rate)
            if self.done in self._moments():
                self._show()
            if saves or stopped_by:
                if journal:
                    journal.sync()
                self._save()
            if stopped_by:
                return stopped_by
        return 0

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """One `training_step`, and what follows every one."""
        options = self.options
        torch.manual_seed(_mixed(options.seed, self.ranks.rank, self.done))
        self._set_rates()
        step = OptimizerStep(self.done, self.optimizers, self.ranks, options.clip_gradients)
        try:
            # Without its cache, which would go on with the weights from before the first of several updates.
            with torch.autocast(self.ranks.device.type, torch.bfloat16, options.bf16, cache_enabled=False):
                losses = self.model.training_step(batch, step)
        except RuntimeError as error:  # an op on the new weights may be the first to see a NaN
            self._check_finite({name: loss.item() for name, loss in step.losses.items()}, self.done + 1, error)
            raise
        self.ranks.average(self.model.buffers())
        if self.averaged:
            self.averaged.update_parameters(self.model)
        self.done += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _set_rates(self) -> None:
        """Learning rates of this step: the model's own, until they fall towards 0."""
        left, decay = 1 - self.done / self.steps, self.model.config.decay
        scale = min(1.0, left / decay) if decay else 1.0
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * scale

    def _agree(self, losses: Mapping[str, Tensor], signal_number: int) -> tuple[dict[str, float], int]:
        """Mean losses over ranks, and the signal to stop by, if any rank has received one.

        Raises:
            NonFinite: on every rank, if a loss of any is not finite.
        """
        numbers = [loss.float().reshape(()) for loss in losses.values()]
        row = torch.stack([*numbers, torch.tensor(float(signal_number), device=self.ranks.device)])
        self.ranks.average([row])
        *values, signalled = row.tolist()
        means = dict(zip(losses, values, strict=True))
        self._check_finite(means, self.done)
        return means, (signal_number or signal.SIGTERM) if signalled else 0

    def _save(self) -> None:
        """A checkpoint of this step, by the first rank.

        Raises:
            NonFinite: on every rank, as all hold the same weights.
        """
        weights = self.model.state_dict()
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise NonFinite(f"step {self.done}: {name} is not finite; {self._last_checkpoint()}")
        if self.ranks.first:
            averaged = self.averaged.module.state_dict() if self.averaged else None
            folder = self.run.checkpoints
            checkpoints.save(folder, self.done, self.record.identity, weights, averaged, self.optimizers)

    def _show(self) -> None:
        """Clips of the same noise as at the other moments, for the time-lapse."""
        if self.ranks.first:
            model = cast(VideoModel, self.averaged.module) if self.averaged else self.model
            clips = model.sample(SAMPLES, seed=0, condition=self.condition)
            self.run.write_samples(self.done, to_bytes(clips))

    def _moments(self) -> set[int]:
        return {round(self.steps * share) for share in _MOMENTS}

    def _journal(self) -> AbstractContextManager[Journal | None]:
        if not self.ranks.first:
            return nullcontext()
        settings = {**self.record.config, **asdict(self.options), "model": self.record.model}
        return Journal(self.run, self.done, settings, self.options.tensorboard, self.options.wandb)

    def _check_finite(self, losses: Mapping[str, float], step: int, cause: Exception | None = None) -> None:
        for name, value in losses.items():
            if not math.isfinite(value):
                message = f"step {step}: the loss {name!r} is {value}; {self._last_checkpoint()}"
                raise NonFinite(message) from cause

    def _last_checkpoint(self) -> str:
        found = checkpoints.checkpoints(self.run.checkpoints)
        return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"


def _mixed(*numbers: int) -> int:
    """A seed of 64 bits that differs wherever one of the numbers does."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
