"""`demo`: TGAN learns a real clip in minutes, is sampled and scored, and its kernels are timed on what it trained.

Decides the run and what is compared; training, sampling and scoring are the other commands'.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vgkernels import SingularValueClipping, random_projections, sliced_wasserstein
from vgkernels_models.command.evaluate import evaluate_run
from vgkernels_models.command.flags import DataFlags, parse, sources_of
from vgkernels_models.command.sample import sample
from vgkernels_models.command.train import train
from vgkernels_models.data.batches import Batches
from vgkernels_models.report import page
from vgkernels_models.tgan import TGAN, TGANConfig
from vgkernels_models.training.checkpoint import load_model
from vgkernels_models.training.run_folder import hold

_REPEATS, _CLIPS = 7, 256
Row = tuple[str, float, float]  # what, milliseconds of ours, of plain PyTorch


@dataclass
class DemoFlags:
    """Trains TGAN's tiny preset on a real clip that an installed package brings, samples it and scores it."""

    data: str = "bikes:3"  # an installed clip (carphone, bikes, bigbuckbunny), a video file or a folder of videos
    steps: int = 1000  # updates; about three minutes on two cores
    out: Path = Path("runs/demo")  # the run; one of an earlier demo is replaced


def demo(arguments: Sequence[str]) -> int:
    """Returns 0 with RUN/report.html written, or what `train` returned when interrupted.

    Raises:
        ValueError, CheckpointError, DataError: what the user can set right.
    """
    flags = parse(DemoFlags, "demo", arguments)
    source = DataFlags().open(TGANConfig.preset("tiny", data=flags.data, stride=1))
    if len(source) < 4:
        raise ValueError(f"demo: expected data of at least 4 clips, to be scored with, got {len(source)}")
    _make_room(flags.out)
    run = str(flags.out)
    settings = ["--preset", "tiny", "--stride", "1", "--data", flags.data, "--steps", str(flags.steps)]
    if code := train("tgan", [*settings, "--out", run]):
        return code
    sample([run, "--out", str(flags.out / "samples.mp4")])
    rows = kernel_speed(flags.out)
    cells = [(what, f"{ours:.2f} ms", f"{plain:.2f} ms", f"{plain / ours:.1f}x") for what, ours, plain in rows]
    for what, ours, plain, ratio in cells:
        print(f"{what}: {ours}, plain PyTorch {plain}: {ratio}")
    threads = torch.get_num_threads()
    note = f"Medians of {_REPEATS} interleaved runs on {threads} threads, on this run's own critic and clips."
    columns = ("work", "vgkernels", "plain PyTorch", "ratio")
    return evaluate_run([run], extra=[page.section("What the kernels save", page.table(columns, cells), note=note)])


def _make_room(out: Path) -> None:
    """Empties the folder of an earlier demo; anything else that is there is left, and `train` refuses it."""
    mark = out / ".demo"
    if mark.exists():
        with hold(out):
            for entry in out.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif not entry.name.startswith("."):
                    entry.unlink()
    elif not out.exists():
        out.mkdir(parents=True)
        mark.touch()


def kernel_speed(run: Path) -> list[Row]:
    """The two ops of this run on its own tensors, each checked against plain PyTorch and timed in turn with it."""
    model = load_model(run)
    assert isinstance(model, TGAN)
    ours, plain = copy.deepcopy(model.vdis), copy.deepcopy(model.vdis)
    clipping = SingularValueClipping(ours, every=1)
    clipping.step()
    clip_by_svd(plain)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

    reals = Batches(sources_of(run, model.config), 1).reals(_CLIPS).video.flatten(1)
    fakes = model.sample(_CLIPS).flatten(1)
    directions = random_projections(128, reals.shape[1], generator=torch.Generator().manual_seed(0))

    def distance(impl: str) -> Tensor:
        return sliced_wasserstein(fakes, reals, projections=directions, impl=impl)

    torch.testing.assert_close(distance("auto"), distance("reference"), atol=1e-5, rtol=1e-4)
    return [
        ("clipping the critic's singular values", *_in_turn(clipping.step, lambda: clip_by_svd(plain))),
        (
            f"sliced Wasserstein distance of {_CLIPS} and {_CLIPS} clips",
            *_in_turn(lambda: distance("auto"), lambda: distance("reference")),
        ),
    ]


@torch.no_grad()
def clip_by_svd(critic: nn.Module) -> None:
    """What is written without the op: a full SVD a layer, and batch norm's rule."""
    for layer in critic.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            u, s, vh = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
            layer.weight.copy_(((u * s.clamp(max=1)) @ vh).view_as(layer.weight))
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_var is not None:
            std = layer.running_var.sqrt()
            layer.weight.copy_(layer.weight.clamp(0.01 * std, std))


def _in_turn(ours: Callable[[], object], plain: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of both."""
    times: dict[Callable[[], object], list[float]] = {ours: [], plain: []}
    for _ in range(_REPEATS):
        for work, taken in times.items():
            begin = time.perf_counter()
            work()
            taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[ours]), statistics.median(times[plain])
