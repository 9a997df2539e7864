"""What the tiny presets learn: `python -m benchmarks.models [NAME ...] --jobs 2`. Not an op's file, and no timing.

Each run trains from one seed, is scored at N = 1024 against its gates, and leaves losses, scores and a strip of samples
in benchmarks/results/models/: NAME-SEED.json and .png. Runs that are there already are skipped, so it can be stopped.
`--table` writes the tables of docs/tiny_presets.md from these files. An ablation has equal steps on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from vgkernels_models.command.flags import DataFlags
from vgkernels_models.data.batches import Batches
from vgkernels_models.metrics.linear_probe import linear_probe
from vgkernels_models.metrics.scene_parts import two_stream_scores
from vgkernels_models.metrics.score import Score
from vgkernels_models.model import VideoModel
from vgkernels_models.samples import write_samples
from vgkernels_models.training.checkpoint import load_model
from vgkernels_models.vgan import VGAN

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/models"
SEEDS, SHOWN, POINTS = (0, 1, 2), 8, 200  # of every run; clips of a strip; points of a curve
LABELLED, TESTED = 32, 1024  # clips of the linear probe
PAGE, MARK = ROOT / "docs/tiny_presets.md", "<!-- by python -m benchmarks.models --table -->\n"
COMPARED = (  # A, B, and the score that is compared, where it is one
    ("tgan", "tgan-clip", None),
    ("vgan", "vgan-one-stream", None),
    ("tgan", "vgan", "ACD-C"),
    ("mocogan", "tgan", "ACD-C"),
)


@dataclass(frozen=True)
class Run:
    """One line of a table: a tiny preset and what differs from it."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)

    def flags(self) -> list[str]:
        flags = []
        for name, value in self.changes.items():
            flag = name.replace("_", "-")
            flags += (
                [f"--{flag}" if value is True else f"--no-{flag}"]
                if isinstance(value, bool)
                else [f"--{flag}", str(value)]
            )
        return flags


RUNS = {
    "tgan": Run("tgan"),
    "tgan-clip": Run("tgan", {"constraint": "clip"}),
    "vgan": Run("vgan"),
    "vgan-one-stream": Run("vgan", {"two_stream": False}),
    "mocogan": Run("mocogan"),
}


def one(name: str, seed: int) -> None:
    """Trains, scores and writes one run; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    run, begin = RUNS[name], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        program = [sys.executable, "-m", "vgkernels_models"]
        arguments = ["--preset", "tiny", "--seed", str(seed), "--out", str(folder), "--save-every", "100000"]
        subprocess.run([*program, "train", run.model, *arguments, *run.flags()], check=True, cwd=ROOT)
        trained = time.monotonic() - begin
        subprocess.run([*program, "evaluate", str(folder)], check=True, cwd=ROOT)
        scores = json.loads((folder / "scores.json").read_text())
        model = load_model(folder)
        scores += [score.to_json() for score in own_scores(model)]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_samples(RESULTS / f"{name}-{seed}.png", model.sample(SHOWN, seed=0))
        result = {
            "command": f"python -m benchmarks.models {name}",
            "meta": measure.machine(torch.device("cpu"), 1),
            "config": json.loads((folder / "config.json").read_text())["config"],
            "seed": seed,
            "training_seconds": round(trained),
            "scores": scores,
            "curve": [lines[i * len(lines) // POINTS] for i in range(POINTS)] if len(lines) > POINTS else lines,
        }
    target = RESULTS / f"{name}-{seed}.json"
    target.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
    target.with_suffix(".part").replace(target)


def own_scores(model: VideoModel) -> list[Score]:
    """What only this model is asked: VGAN's foreground and background, and what its discriminator's features tell."""
    if not isinstance(model, VGAN):
        return []
    with torch.no_grad():
        parts = model.parts(model.code(256, torch.Generator().manual_seed(0), None))
    mask = parts.get("mask")
    scores = two_stream_scores(parts["clip"], torch.zeros_like(parts["clip"][:, :1]) if mask is None else mask,
                               data=model.config.data)  # fmt: skip
    return [score for score in scores if mask is not None or score.name == "background flicker"] + [probed(model)]


@torch.no_grad()
def probed(model: VGAN) -> Score:
    """Accuracy of a linear classifier of the direction of motion, beside that on the features before training."""
    source = DataFlags().open(replace(model.config, data="shape-motion"))
    clips = Batches(source, 1).reals(LABELLED + TESTED)
    assert clips.label is not None
    torch.manual_seed(0)
    accuracy = {}
    for name, judge in {"trained": model, "untrained": VGAN(model.config)}.items():
        features = judge.eval().discriminator.features(clips.video).flatten(1)
        sets = features[:LABELLED], clips.label[:LABELLED], features[LABELLED:], clips.label[LABELLED:]
        accuracy[name] = linear_probe(*sets, data="VGAN's discriminator on shape-motion")
    untrained = {"untrained": accuracy["untrained"].value}
    return replace(accuracy["trained"], baselines={**accuracy["trained"].baselines, **untrained})


def read(name: str) -> dict[str, dict[int, Score]]:
    """The scores of a run by name and seed."""
    found: dict[str, dict[int, Score]] = {}
    for path in sorted(RESULTS.glob(f"{name}-?.json")):
        run = json.loads(path.read_text())
        for entry in run["scores"]:
            found.setdefault(entry["name"], {})[run["seed"]] = Score.from_json(entry)
    return found


def median(values: Iterable[float]) -> str:
    """The middle one, and the least and the most where they differ."""
    values = sorted(values)
    spread = f" ({values[0]:.4g} to {values[-1]:.4g})" if values[0] < values[-1] else ""
    return f"{statistics.median(values):.4g}{spread}"


def table() -> str:
    """A line for each score of each run: the median over seeds, how many seeds hold the gate, what stands beside it."""
    lines = ["| run | score | median (least to most) | gate | held by | beside it |", "|---|---|---|---|---|---|"]
    for name in RUNS:
        for score, by_seed in read(name).items():
            scores = list(by_seed.values())
            gates = ", ".join(sorted({each.gate for each in scores if each.gate}))
            held = f"{sum(bool(each.passed) for each in scores)} of {len(scores)} seeds" if gates else ""
            beside = [f"{other} {median(each.baselines[other] for each in scores)}" for other in scores[0].baselines]
            value = median(each.value for each in scores)
            lines.append(f"| {name} | {score} | {value} | {gates} | {held} | {', '.join(beside)} |")
    return "\n".join(lines)


def comparison() -> str:
    """Two runs at a time: the same seeds, clips and directions; an ablation has equal steps too."""
    lines = ["| score | A | median of A | B | median of B | A / B | A is better |", "|---|---|---|---|---|---|---|"]
    for a, b, only in COMPARED:
        of_a, of_b = read(a), read(b)
        for name in (name for name in of_a if name in of_b and next(iter(of_a[name].values())).better):
            pairs = [(score, of_b[name][seed]) for seed, score in of_a[name].items() if seed in of_b[name]]
            if only not in (None, name) or not pairs:
                continue
            ours, theirs = ([score.value for score in side] for side in zip(*pairs, strict=True))
            ratio = statistics.median(ours) / statistics.median(theirs)
            won = f"{sum(score.beats(other) for score, other in pairs)} of {len(pairs)} seeds"
            lines.append(f"| {name} | {a} | {median(ours)} | {b} | {median(theirs)} | {ratio:.2f} | {won} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables, what stands between two marks, as the results have them now."""
    parts = text.split(MARK)
    parts[1::2] = [f"\n{each}\n\n" for each in (table(), comparison())]
    return MARK.join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", choices=[[], *RUNS], help="runs; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--table", action="store_true", help="train nothing, write the tables of what is there")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], int(options.one[1]))
        return 0
    if options.table:
        PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
        return 0
    wanted = [(name, seed) for seed in options.seeds for name in options.name or RUNS]
    todo = [(name, seed) for name, seed in wanted if not (RESULTS / f"{name}-{seed}.json").exists()]
    environment = dict(os.environ, OMP_NUM_THREADS="1")

    def start(run: tuple[str, int]) -> int:
        command = [sys.executable, "-m", "benchmarks.models", "--one", run[0], str(run[1])]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(f"{run[0]}, seed {run[1]}: {'done' if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        failed = sum(map(bool, pool.map(start, todo)))
    print(table(), comparison(), sep="\n\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
