"""RUN/report.html: what a trained model makes beside what is real, how it came to it, and what it scores.

Decides what is shown, in which order and words; the look is left to page.py and style.py, each score to metrics/.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgkernels_models.data.batch import Batch
from vgkernels_models.metrics.score import Score
from vgkernels_models.model import VideoModel
from vgkernels_models.report import page
from vgkernels_models.report.grids import grid_mp4, slices_png, square, time_slices
from vgkernels_models.report.history import Losses, read_losses, read_moments, read_settings
from vgkernels_models.report.scores import number, score_cards, verdict

_SIDE, _NEIGHBOURS, _SLICES, _LINES = 4, 6, 6, 6  # of the grid, shown pairs, slices a row, lines of a chart

_GRID_NOTE = (
    "Neither side is picked. Look for variety among the generated clips, for motion as smooth as on the left, and for "
    "objects that stay what they are."
)
_MOMENTS_NOTE = (
    "The same four noise vectors all along the training. Shapes and motion should settle; clips that look all alike "
    "are a collapse."
)
_LOSSES_NOTE = "Losses of a game need not fall: look for one side that runs away, and for jumps."
_NEIGHBOUR_NOTE = (
    "Did it learn by heart? Under each generated clip the real one that is nearest in pixels. The number is the root "
    "mean square difference, of a range of 2."
)
_SLICE_NOTE = (
    "One row of pixels of each clip, the one where most happens: x to the right, time downwards. What moves evenly "
    "draws a slanted line, what stands still a vertical one; flicker shows as horizontal stripes."
)
_SCORES_NOTE = (
    "A score means something only beside what else gets how much: <b>real against real</b> is the floor that as few "
    "clips allow, the constant clips are what showing the same thing every time gets. Compare numbers only under the "
    "same protocol."
)


def write_report(
    run_folder: Path | str,
    model: VideoModel,
    reals: Batch,
    scores: Sequence[Score] = (),
    *,
    seed: int = 0,
    condition: Tensor | None = None,
    rate: float = 8.0,
    extra: Sequence[str] = (),
) -> Path:
    """Writes the page, one file that opens anywhere and asks for nothing.

    Args:
        run_folder: where `config.json`, `metrics.jsonl` and `samples/` are looked for; what is missing is left out.
        model: makes the clips that are shown, on its device.
        reals: real clips, two at least; the more, the more the nearest one says.
        scores: of `metrics.evaluate`.
        seed: of the shown clips.
        condition: what they are conditioned on, one row for each of 16 clips, where the model needs that.
        rate: frames a second.
        extra: further sections (`page.section`), before the configuration.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: too few reals, or not the size that the model makes.
        OSError: the folder cannot be written.
    """
    run = Path(run_folder)
    fakes = model.sample(_SIDE**2, seed=seed, condition=condition).float().cpu()
    real = reals.video.float().cpu()
    if len(real) < 2 or real.shape[1:] != fakes.shape[1:]:
        raise ValueError(
            f"write_report: expected at least 2 real clips of (C, T, H, W) = {tuple(fakes.shape[1:])}, "
            f"got {tuple(real.shape)}"
        )
    settings = read_settings(run)
    losses = read_losses(run)
    text = page.page(
        f"{type(model).__name__} on {model.config.data}",
        _subtitle(model, settings),
        page.key_numbers(_headline(model, scores, losses)),
        _side_by_side(real, fakes, rate),
        *_panels(model, reals, seed, rate),
        *_moments(run, rate),
        *_curves(losses),
        _neighbours(real, fakes, rate),
        _slices(real, fakes),
        *([page.section("Scores", score_cards(scores), note=_SCORES_NOTE)] if scores else []),
        *extra,
        *([page.section("Configuration", _settings(settings))] if settings else []),
    )
    path = run / "report.html"
    page.write_whole(path, text)
    return path


def _subtitle(model: VideoModel, settings: Mapping[str, Any]) -> str:
    about = (sys.modules[type(model).__module__].__doc__ or "").partition("\n")[0]  # the head of the model's file
    config = model.config
    clips = f"{config.frames} frames of {config.size} × {config.size}, {'colour' if config.channels == 3 else 'grey'}"
    told = [about, f"Preset {settings['preset']}, {clips}." if "preset" in settings else f"Clips of {clips}."]
    return html.escape(" ".join([*told, str(settings.get("source", ""))]).strip())


def _headline(model: VideoModel, scores: Sequence[Score], losses: Losses) -> list[tuple[str, str]]:
    gated = [score for score in scores if score.gate]
    numbers = [(f"{sum(score.passed is True for score in gated)} of {len(gated)}", "gates held")] if gated else []
    for score in gated[:2]:
        floor = score.baselines.get("real against real")
        beside = "" if floor is None else f"; real against real {number(floor)}"
        numbers.append((number(score.value), f"{score.name}: gate {score.gate} {verdict(score)}{beside}"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = f"{losses.steps[-1]:,} steps" if losses.steps else f"{parameters:,}"
    label = f"of training, {parameters:,} parameters" if losses.steps else "parameters of all networks"
    return [*numbers, (trained, label)]


def _side_by_side(real: Tensor, fakes: Tensor, rate: float) -> str:
    panels = [
        page.clip_panel("real", "clips of the data", grid_mp4(square(real, _SIDE), rate)),
        page.clip_panel("generated", "as many from the model", grid_mp4(square(fakes, _SIDE), rate)),
    ]
    frames = fakes.shape[2]
    notes = [f"frame {t + 1} of {frames}" for t in range(frames)]
    return page.section("Real and generated", page.clip_player(panels, rate, notes, layout="pair"), note=_GRID_NOTE)


def _panels(model: VideoModel, reals: Batch, seed: int, rate: float) -> list[str]:
    """The model's own pictures, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            panels = model.panels(reals.to(model.device), torch.Generator().manual_seed(seed))
    finally:
        model.train(was_training)
    return [
        page.section(
            panel.title,
            page.labelled_picture(page.video(grid_mp4(panel.clips, rate)), panel.rows, panel.columns),
            note=html.escape(panel.note),
        )
        for panel in panels
    ]


def _moments(run: Path, rate: float) -> list[str]:
    moments = read_moments(run)
    if not moments:
        return []
    figures = [
        page.clip_panel(f"{step:,}", "steps", grid_mp4(square(video, 2), rate, min_width=240))
        for step, video in moments
    ]
    return [page.section("Over the training", f'<div class="moments">{"".join(figures)}</div>', note=_MOMENTS_NOTE)]


def _curves(losses: Losses) -> list[str]:
    """Charts of six lines at most."""
    if not losses.by_name:
        return []
    lines = [page.Series(name.replace("_", " "), values) for name, values in losses.by_name.items()]
    charts = [
        page.line_chart(lines[first : first + _LINES], "loss", steps=losses.steps, width=560, height=250)
        for first in range(0, len(lines), _LINES)
    ]
    note = _LOSSES_NOTE + (
        f" Each point is the mean of about {losses.bucket} logged lines." if losses.bucket > 1 else ""
    )
    return [page.section("Losses", f'<div class="charts">{"".join(charts)}</div>', note=note)]


def _neighbours(real: Tensor, fakes: Tensor, rate: float) -> str:
    shown, scale = fakes[:_NEIGHBOURS], fakes[0].numel() ** 0.5
    distances = torch.cdist(shown.flatten(1), real.flatten(1)) / scale  # (K, N)
    nearest = distances.min(1)
    probes = real[:: max(1, len(real) // 64)]
    among = torch.cdist(probes.flatten(1), real.flatten(1)) / scale
    usual = among.kthvalue(2, 1).values.median().item()  # the nearest is the clip itself
    clips = torch.stack([shown, real[nearest.indices]])
    columns = [f"{value:.2f}" for value in nearest.values.tolist()]
    note = (
        f"{_NEIGHBOUR_NOTE} A real clip is typically {number(usual)} from its nearest among these {len(real):,}; "
        "far below that would be a copy."
    )
    picture = page.labelled_picture(page.video(grid_mp4(clips, rate)), ("generated", "nearest real"), columns)
    return page.section("Nearest real clips", picture, note=note)


def _slices(real: Tensor, fakes: Tensor) -> str:
    count = min(_SLICES, len(real))
    rows = torch.stack([time_slices(real[:count]), time_slices(fakes[:count])])
    picture = page.picture(slices_png(rows), "slices of space and time, real above generated")
    return page.section("Space and time", page.labelled_picture(picture, ("real", "generated")), note=_SLICE_NOTE)


def _settings(settings: Mapping[str, Any]) -> str:
    """Each part of config.json as a table of its own, what stands outside of a part first."""
    parts: dict[str, dict[str, Any]] = {"run": {}}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            parts[name] = dict(value)
        else:
            parts["run"][name] = value
    tables = [
        page.table([name, ""], [[key.replace("_", " "), _shown(value)] for key, value in entries.items()])
        for name, entries in parts.items()
        if entries
    ]
    return f'<div class="settings">{"".join(tables)}</div>'


def _shown(value: Any) -> str:
    return "–" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)
