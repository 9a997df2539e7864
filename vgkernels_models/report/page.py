"""One self-contained HTML page: clips that loop in step, line charts, tables and key numbers.

Decides the look and the player; what a report says and shows is left to the caller.
"""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vgkernels_models.report.style import SCRIPT, STYLE

Number = float | None


class Series(NamedTuple):
    """One line of a chart; the line breaks where a value is None."""

    name: str
    values: Sequence[Number]


def page(title: str, subtitle: str, *sections: str) -> str:
    """The whole document: head, style, the given sections and the script that keeps clips in step."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>\n<p>{subtitle}</p></header>\n"
        f"{body}\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str, note: str = "") -> str:
    """A titled part of the page; `note` is HTML under the heading."""
    lead = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{html.escape(heading)}</h2>{lead}\n" + "\n".join(parts) + "\n</section>"


def key_numbers(numbers: Sequence[tuple[str, str]]) -> str:
    """A row of large numbers, each with a line that says what it is."""
    cells = (f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>" for value, label in numbers)
    return '<div class="numbers">' + "".join(cells) + "</div>"


def clip_panel(caption: str, explanation: str, mp4: bytes, overlay: str = "") -> str:
    """A looping muted clip with its caption; `overlay` is HTML laid over the picture's lower left corner."""
    overlay = overlay and f'<div class="overlay">{overlay}</div>'
    return figure(f'<div class="picture">{video(mp4)}{overlay}</div>', caption, explanation)


def clip_player(panels: Sequence[str], rate: float, frame_notes: Sequence[str], *, layout: str = "") -> str:
    """Panels side by side that play in step, with pause, a slider and a note a frame; "pair" keeps two abreast."""
    notes = html.escape("|".join(frame_notes), quote=True)
    return (
        f'<div class="player {layout}" data-rate="{rate:.6g}" data-notes="{notes}"><div class="controls">'
        f'<button type="button">Pause</button><input type="range" min="0" max="{len(frame_notes) - 1}" value="0" '
        f'aria-label="frame"><output></output></div><div class="panels">' + "\n".join(panels) + "</div></div>"
    )


def picture(image_png: bytes, alt: str) -> str:
    """An inline PNG."""
    return (
        f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{base64.b64encode(image_png).decode()}">'
    )


def labelled_picture(inside: str, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """A clip or picture that is a grid, with the names of its rows beside and of its columns above."""
    across = "".join(f"<span>{html.escape(name)}</span>" for name in columns)
    down = "".join(f"<span>{html.escape(name)}</span>" for name in rows)
    return (
        f'<div class="labelled{" rows" if rows else ""}">'
        + (f'<div class="across" style="--n:{len(columns)}">{across}</div>' if columns else "")
        + (f'<div class="down" style="--n:{len(rows)}">{down}</div>' if rows else "")
        + f'<div class="picture">{inside}</div></div>'
    )


def video(mp4: bytes) -> str:
    """A looping muted clip."""
    return (
        f'<video autoplay loop muted playsinline src="data:video/mp4;base64,{base64.b64encode(mp4).decode()}"></video>'
    )


def figure(inside: str, caption: str, explanation: str) -> str:
    """Something with a caption under it."""
    return f"<figure>{inside}<figcaption><b>{html.escape(caption)}</b> {html.escape(explanation)}</figcaption></figure>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def line_chart(
    series: Sequence[Series],
    unit: str,
    first: int = 0,
    marks: Sequence[int] = (),
    height: int = 260,
    *,
    steps: Sequence[int] | None = None,
    width: int = 1000,
) -> str:
    """Lines as inline SVG, over frames `first`, `first + 1`, ... or over the given steps of a training.

    Args:
        series: the lines, all of one length.
        unit: what the values are.
        first: the first frame's number.
        marks: frames of dashed vertical lines (scene cuts).
        height, width: of the drawing; it is scaled to the room there is, text and all.
        steps: ascending, one for each value, instead of frames: no playhead then.
    """
    left, right, top, bottom = 52, 14, 12, 28
    at = range(first, first + max(len(line.values) for line in series)) if steps is None else steps
    known = [value for line in series for value in line.values if value is not None and math.isfinite(value)]
    ticks = _ticks(min(known, default=0.0), max(known, default=1.0))
    plot_width, plot_height = width - left - right, height - top - bottom

    def x(place: float) -> float:
        return left + plot_width * (place - at[0]) / max(1, at[-1] - at[0])

    def y(value: float) -> float:
        return top + plot_height * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    gap = max(1, round(_nice((at[-1] - at[0] + 1) / (10 if steps is None else 5))))
    parts += [
        f'<text x="{x(place):.1f}" y="{height - 8}" text-anchor="middle">{_short(place)}</text>'
        for place in range(-(-at[0] // gap) * gap, at[-1] + 1, gap)
    ]
    parts += [
        f'<line class="mark" x1="{x(m):.1f}" x2="{x(m):.1f}" y1="{top}" y2="{top + plot_height}"/>' for m in marks
    ]
    for index, line in enumerate(series):
        points = [
            (x(place), y(value)) if value is not None and math.isfinite(value) else None
            for place, value in zip(at, line.values, strict=False)
        ]
        parts += [f'<path class="series s{index}" d="{_path(points)}"/>']
    legend = "".join(f'<span class="s{index}">{html.escape(line.name)}</span>' for index, line in enumerate(series))
    legend += '<span class="cut">scene cut (not scored)</span>' if marks else ""
    follows = ""
    if steps is None:
        parts += [f'<line class="playhead" y1="{top}" y2="{top + plot_height}" x1="{left}" x2="{left}"/>']
        follows = f' data-left="{left}" data-step="{x(first + 1) - left:.6g}"'
    return (
        f'<div class="chart{" small" if width < 700 else ""}"><div class="legend">{legend}'
        f"<i>{html.escape(unit)}, by {'frame' if steps is None else 'step'}</i></div>"
        f'<svg viewBox="0 0 {width} {height}" role="img"{follows}>' + "".join(parts) + "</svg></div>"
    )


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is either complete or not there: to a temporary name beside it, then renamed.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands, pen = [], "M"
    for point in points:
        if point is not None:
            commands.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "M" if point is None else "L"
    return " ".join(commands)


def _nice(value: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= value * 0.999)


def _short(place: int) -> str:
    """A tick's label: 2000 as it is, 20000 as 20k."""
    return f"{place / 1000:g}k" if place >= 10_000 and place % 100 == 0 else str(place)


def _ticks(low: float, high: float) -> list[float]:
    step = _nice(max(high - low, 1e-6) / 5)
    start = math.floor(low / step)
    return [step * index for index in range(start, max(math.ceil(high / step), start + 1) + 1)]
