"""`train MODEL`: from flags to a run.

Decides the order in which data, model and run come to be, and what is said; training itself is left to training/.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

import torch

from vgkernels_models import model_class
from vgkernels_models.command.flags import PROGRAM, TrainFlags, train_flags
from vgkernels_models.data.batch import Batch
from vgkernels_models.data.batches import Batches
from vgkernels_models.data.source import located
from vgkernels_models.model import ModelConfig, VideoModel
from vgkernels_models.training.progress import check_loggers, peak_memory
from vgkernels_models.training.ranks import Ranks, join
from vgkernels_models.training.run_folder import Record, RunFolder, check_run, checkpoint_to_resume, open_run
from vgkernels_models.training.trainer import SAMPLES, Trainer


def train(name: str, arguments: Sequence[str]) -> int:
    """Starts a run or takes one up; returns the exit code: 0, or 130 or 143 when interrupted (see `Trainer.fit`).

    Raises:
        ValueError, CheckpointError, DataError: what the user can set right.
        NonFinite: the training broke down.
    """
    flags = train_flags(name, model_class(name), arguments)
    check_loggers(tensorboard=flags.training.tensorboard, wandb=flags.training.wandb)
    with ExitStack() as held:
        ranks = join(flags.training.device)
        held.callback(ranks.leave)
        return _train(name, flags, ranks, held)


def _train(name: str, flags: TrainFlags, ranks: Ranks, held: ExitStack) -> int:
    def say(text: str) -> None:
        if ranks.first:
            print(text, flush=True)

    config, options = flags.config, flags.training
    config = replace(config, data=located(config.data))
    command = shlex.join([*PROGRAM.split(), *sys.argv[1:]])
    parts = asdict(config), asdict(options), flags.data.to_json()
    record = Record(name, flags.preset, *parts, ranks.world, command=command)
    torch.manual_seed(options.seed)
    model = model_class(name)(config)  # refuses what doesn't fit before any data is read
    if ranks.first:
        check_run(flags.out, record, flags.resume)  # likewise
        source = flags.data.open(config)
        found = {"clips": len(source), "classes": list(source.classes)}  # which a resume may not change
        record = replace(record, source=source.description, data={**record.data, **found})
        held.enter_context(open_run(flags.out, record, flags.resume))
    ranks.wait()  # until the first rank has filled the cache, and made or checked the run
    if not ranks.first:
        source = flags.data.open(config)
    run = RunFolder(flags.out)
    batches = Batches(source, config.batch_size, options.seed, ranks.rank, ranks.world)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"data   {source.description}")
    say(f"model  {name} ({flags.preset}), {parameters:,} parameters, on {_where(ranks)}")

    condition = model.condition(batches.reals(SAMPLES)) if needs_condition(model) else None
    trainer = Trainer(model, batches, run, record, options, ranks, condition)
    if flags.resume:
        checkpoint = checkpoint_to_resume(run)
        if checkpoint:
            trainer.resume(checkpoint)
        how = f"resumed at step {trainer.done}" if checkpoint else "nothing to resume: starts anew"
        say(f"run    {run.path}, {how}")
    else:
        say(f"run    {run.path}")

    code = trainer.fit()
    say(f"peak memory {peak_memory(ranks.device)}")
    if code:
        say(f"stopped and saved at step {trainer.done}; go on with\n  {_again(name, flags, ranks)}")
    else:
        say(f"done: {PROGRAM} sample {run.path} or {PROGRAM} evaluate {run.path}")
    return code


def needs_condition(model: VideoModel) -> bool:
    """Whether `model.sample` has to be given something of real clips."""
    return model.condition(_blank(model.config)) is not None


def _blank(config: ModelConfig) -> Batch:
    shape = (1, config.channels, config.frames, config.size, config.size)
    return Batch(torch.zeros(shape), torch.zeros(1, dtype=torch.int64))


def _where(ranks: Ranks) -> str:
    device = ranks.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
    return f"{ranks.world} x {name}" if ranks.world > 1 else name


def _again(name: str, flags: TrainFlags, ranks: Ranks) -> str:
    start = f"torchrun --nproc-per-node {ranks.world} -m vgkernels_models" if ranks.world > 1 else PROGRAM
    return f"{start} train {name} --out {shlex.quote(str(flags.out))} --resume"
