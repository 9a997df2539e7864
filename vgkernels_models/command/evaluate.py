"""`evaluate RUN`: scores.json and report.html of a trained model.

Decides the flags and which real clips are compared with; scores are left to metrics/, the page to report/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from vgkernels_models.command.flags import parse, sources_of
from vgkernels_models.command.train import needs_condition
from vgkernels_models.data.batches import Batches
from vgkernels_models.metrics.evaluate import CLIPS, evaluate
from vgkernels_models.metrics.score import Score
from vgkernels_models.report.page import write_whole
from vgkernels_models.report.run import write_report
from vgkernels_models.training.checkpoint import load_model
from vgkernels_models.training.progress import peak_memory
from vgkernels_models.training.ranks import find_device

_SHOWN = 16  # generated clips of the report


@dataclass
class EvaluateFlags:
    """Scores the model of a run against real clips, and writes RUN/scores.json and RUN/report.html."""

    run: tyro.conf.Positional[Path]  # RUN, or one of RUN/checkpoints, whose own folder then gets the files
    n: int = CLIPS  # generated clips, and real ones; as many again for the floor. The gates are stated for 1024
    seed: int = 0  # of the generated clips
    data: str | None = None  # real clips of another data set than the run's
    split: str | None = None  # another split of it than that of the training
    features: Path | None = None  # TorchScript network for the Frechet video distance: uint8 (B, C, T, H, W) to (B, D)
    device: str = "auto"  # cpu, cuda, or auto: CUDA where there is some


def evaluate_run(arguments: Sequence[str], extra: Sequence[str] = ()) -> int:
    """Writes both files and prints the scores; returns 0, whether or not the gates are passed.

    `extra` are further sections of the report.

    Raises:
        ValueError, CheckpointError, DataError: what the user can set right.
    """
    flags = parse(EvaluateFlags, "evaluate", arguments)
    if flags.n < 2:
        raise ValueError(f"expected n to be at least 2, got {flags.n}")
    device = find_device(flags.device)
    model = load_model(flags.run).to(device)
    config = model.config if flags.data is None else replace(model.config, data=flags.data)
    source = sources_of(flags.run, config, split=flags.split)
    print(f"data   {source.description}", flush=True)
    n = flags.n if source.endless else min(flags.n, len(source) // 2)
    if n < 2:
        raise ValueError(f"data: expected at least 4 clips, two sets of two, got {len(source)}")
    if n < flags.n:
        print(f"n      {n} instead of {flags.n}: there are {len(source)} real clips for two sets")
    both = Batches(source, 1).reals(2 * n)
    reals, others = both[:n], both[n:]
    condition = model.condition(reals) if needs_condition(model) else None

    scores = evaluate(
        model, reals, others, seed=flags.seed, data=config.data, condition=condition, features=flags.features
    )
    text = json.dumps([score.to_json() for score in scores], indent=1, allow_nan=False)
    write_whole(flags.run / "scores.json", text + "\n")
    shown = None if condition is None else condition[torch.arange(_SHOWN) % n]
    report = write_report(flags.run, model, reals, scores, seed=flags.seed, condition=shown, extra=extra)
    _print(scores)
    print(f"peak memory {peak_memory(device)}")
    print(f"report: {report}")
    return 0


def _print(scores: Sequence[Score]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "gate", "beside it", box=box.SIMPLE)
    for score in scores:
        beside = "\n".join(f"{name}: {value:.4g}" for name, value in score.baselines.items())
        verdict = {None: "", True: " passed", False: " missed"}[score.passed]
        table.add_row(score.name, f"{score.value:.4g}", score.gate + verdict, beside)
    console = Console()
    console.print(table)
    for protocol in dict.fromkeys(score.protocol for score in scores):
        names = ", ".join(score.name for score in scores if score.protocol == protocol)
        console.print(f"{names}: {protocol}", markup=False, highlight=False)
