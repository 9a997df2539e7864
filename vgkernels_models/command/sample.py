"""`sample RUN`: clips of a trained model as a film, a picture or numbers.

Decides the flags; sampling is left to the model, files to samples.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from vgkernels_models.command.flags import parse, sources_of
from vgkernels_models.command.train import needs_condition
from vgkernels_models.data.batches import Batches
from vgkernels_models.samples import check_format, write_samples
from vgkernels_models.training.checkpoint import load_model
from vgkernels_models.training.progress import peak_memory
from vgkernels_models.training.ranks import find_device


@dataclass
class SampleFlags:
    """Generates clips with the model of a run, from the moving average of its weights where it has one."""

    run: tyro.conf.Positional[Path]  # RUN, or one of RUN/checkpoints
    n: int = 16  # how many clips
    out: Path | None = None  # .mp4 or .gif: a grid; .png: a row a clip; .npz: uint8 (N, T, H, W, C). RUN/samples.mp4
    seed: int = 0  # gives the same clips again
    length: int | None = None  # frames of a clip, where the model leaves that free
    fps: float = 10.0  # frames a second of mp4 and gif
    device: str = "auto"  # cpu, cuda, or auto: CUDA where there is some


def sample(arguments: Sequence[str]) -> int:
    """Writes the file and says what it needed; returns 0.

    Raises:
        ValueError, CheckpointError: what the user can set right.
    """
    flags = parse(SampleFlags, "sample", arguments)
    out = flags.out or flags.run / "samples.mp4"
    device = find_device(flags.device)
    model = load_model(flags.run).to(device)
    check_format(out)
    condition = None
    if needs_condition(model):
        condition = model.condition(Batches(sources_of(flags.run, model.config), 1).reals(flags.n, flags.seed))
    with torch.inference_mode():
        video = model.sample(flags.n, seed=flags.seed, condition=condition, length=flags.length)
    write_samples(out, video, flags.fps)
    print(f"{out}: {len(video)} clips of {video.shape[2]} frames, {video.shape[4]} x {video.shape[3]}")
    print(f"peak memory {peak_memory(device)}")
    return 0
