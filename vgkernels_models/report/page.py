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
    return (
        f'<figure><div class="picture"><video autoplay loop muted playsinline '
        f'src="data:video/mp4;base64,{base64.b64encode(mp4).decode()}"></video>{overlay}</div>'
        f"<figcaption><b>{html.escape(caption)}</b> {html.escape(explanation)}</figcaption></figure>"
    )


def clip_player(panels: Sequence[str], rate: float, frame_notes: Sequence[str]) -> str:
    """Panels side by side that play in step, with pause, a slider, and a note for each frame."""
    notes = html.escape("|".join(frame_notes), quote=True)
    return (
        f'<div class="player" data-rate="{rate:.6g}" data-notes="{notes}"><div class="controls">'
        f'<button type="button">Pause</button><input type="range" min="0" max="{len(frame_notes) - 1}" value="0" '
        f'aria-label="frame"><output></output></div><div class="panels">' + "\n".join(panels) + "</div></div>"
    )


def picture(image_png: bytes, alt: str) -> str:
    """An inline PNG."""
    return (
        f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{base64.b64encode(image_png).decode()}">'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def line_chart(
    series: Sequence[Series], unit: str, first: int = 0, marks: Sequence[int] = (), height: int = 260
) -> str:
    """Lines over frames `first`, `first + 1`, ... as inline SVG; `marks` are dashed vertical lines (scene cuts)."""
    width, left, right, top, bottom = 1000, 52, 14, 12, 28
    count = max(len(line.values) for line in series)
    known = [value for line in series for value in line.values if value is not None and math.isfinite(value)]
    ticks = _ticks(min(known, default=0.0), max(known, default=1.0))
    plot_width, plot_height = width - left - right, height - top - bottom

    def x(index: float) -> float:
        return left + plot_width * index / max(1, count - 1)

    def y(value: float) -> float:
        return top + plot_height * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    step = max(1, round(_nice(count / 10)))
    parts += [
        f'<text x="{x(frame - first):.1f}" y="{height - 8}" text-anchor="middle">{frame}</text>'
        for frame in range(-(-first // step) * step, first + count, step)
    ]
    parts += [
        f'<line class="mark" x1="{x(m - first):.1f}" x2="{x(m - first):.1f}" y1="{top}" y2="{top + plot_height}"/>'
        for m in marks
    ]
    for index, line in enumerate(series):
        points = [(x(i), y(v)) if v is not None and math.isfinite(v) else None for i, v in enumerate(line.values)]
        parts += [f'<path class="series s{index}" d="{_path(points)}"/>']
    parts += [f'<line class="playhead" y1="{top}" y2="{top + plot_height}" x1="{left}" x2="{left}"/>']
    legend = "".join(f'<span class="s{index}">{html.escape(line.name)}</span>' for index, line in enumerate(series))
    legend += '<span class="cut">scene cut (not scored)</span>' if marks else ""
    return (
        f'<div class="chart"><div class="legend">{legend}<i>{html.escape(unit)}, by frame</i></div>'
        f'<svg viewBox="0 0 {width} {height}" role="img" data-left="{left}" data-step="{x(1) - left:.6g}">'
        + "".join(parts)
        + "</svg></div>"
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


def _ticks(low: float, high: float) -> list[float]:
    step = _nice(max(high - low, 1e-6) / 5)
    start = math.floor(low / step)
    return [step * index for index in range(start, max(math.ceil(high / step), start + 1) + 1)]
