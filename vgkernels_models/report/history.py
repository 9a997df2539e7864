"""What a run left in its folder: configuration, losses by step, clips of fixed noise by step.

Decides how those files are read, and that a half-written one never stops a report; training/ writes them.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Losses(NamedTuple):
    """Scalars of a training; None where a step has no such loss."""

    steps: list[int]
    by_name: dict[str, list[float | None]]
    bucket: int  # logged lines behind each value, which is their mean, at most


def read_settings(run: Path) -> dict[str, Any]:
    """RUN/config.json; empty where there is none."""
    try:
        settings = json.loads((run / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def read_losses(run: Path, points: int = 240) -> Losses:
    """RUN/metrics.jsonl, averaged to at most so many points.

    A line is {"step": 20, "losses": {"generator": 0.7, ...}, ...}; one that is not, as the last one may be while a run
    goes on, is left out.
    """
    lines = []
    try:
        for text in (run / "metrics.jsonl").read_text("utf-8", "replace").splitlines():
            try:
                line = json.loads(text)
                lines.append((int(line["step"]), dict(line["losses"])))
            except (ValueError, KeyError, TypeError):
                continue
    except OSError:
        pass
    lines.sort(key=lambda line: line[0])
    count = min(points, len(lines))
    groups = [lines[i * len(lines) // count : (i + 1) * len(lines) // count] for i in range(count)]
    names = list(dict.fromkeys(name for _, losses in lines for name in losses))
    by_name: dict[str, list[float | None]] = {name: [] for name in names}
    for group in groups:
        for name in names:
            values = [losses[name] for _, losses in group if isinstance(losses.get(name), (int, float))]
            by_name[name].append(sum(values) / len(values) if values else None)
    return Losses([group[-1][0] for group in groups], by_name, max(map(len, groups), default=1))


def read_moments(run: Path, most: int = 12) -> list[tuple[int, Tensor]]:
    """RUN/samples/step-000500.npz, at most so many, evenly spread: step and (N, C, T, H, W) in [-1, 1].

    A file that can't be read is left out.
    """
    found = []
    for path in sorted((run / "samples").glob("step-*.npz")):
        if name := re.fullmatch(r"step-(\d+)", path.stem):
            found.append((int(name[1]), path))
    if len(found) > most:
        found = [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
    moments = []
    for step, path in found:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                video = torch.from_numpy(np.array(arrays["video"]))  # (N, T, H, W, C) uint8
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue
        if video.ndim == 5 and video.dtype == torch.uint8 and len(video) and video.shape[4] in (1, 3):
            moments.append((step, video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1))
    return moments
