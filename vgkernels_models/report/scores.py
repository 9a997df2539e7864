"""Scores with their protocols: as cards of a page, and as a table of a terminal.

Decides how a score is shown beside its baselines and its gate; the numbers are left to metrics/.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vgkernels_models.metrics.score import Score

if TYPE_CHECKING:
    from rich.table import Table


def score_cards(scores: Sequence[Score]) -> str:
    """HTML: a card a score, with bars for the model and all it is read against, the gate as a dashed line."""
    return '<div class="scores">' + "".join(_card(score) for score in scores) + "</div>"


def score_table(scores: Sequence[Score]) -> Table:
    """For rich's console: a row a score, its protocol under it."""
    from rich.table import Table  # optional dependency: here, so that the package imports without it
    from rich.text import Text

    table = Table(title="scores", title_justify="left", show_lines=True)
    table.add_column("score and protocol", ratio=3, overflow="fold")
    for column in ("value", "gate"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("beside it", ratio=1)
    for score in scores:
        gate = Text(
            score.gate and f"{score.gate} {verdict(score)}", style="" if score.passed is None else _STYLE[score.passed]
        )
        beside = "\n".join(f"{name} {number(value)}" for name, value in score.baselines.items())
        label = Text.assemble((score.name, "bold"), "\n", (score.protocol, "dim"))
        table.add_row(label, with_spread(score), gate, beside)
    return table


def number(value: float) -> str:
    """Three digits, or a dash where there is no number."""
    return f"{value:.3g}" if math.isfinite(value) else "–"


def with_spread(score: Score) -> str:
    """The value, with its standard deviation where it has one."""
    return number(score.value) + ("" if score.spread is None else f" ± {score.spread:.2g}")


def verdict(score: Score) -> str:
    """What came of the gate, in a word; empty where there is none."""
    return {None: "", True: "held", False: "missed"}[score.passed]


_STYLE = {True: "green", False: "bold red"}


def _card(score: Score) -> str:
    badge = f'<span class="badge {verdict(score)}">gate {score.gate}: {verdict(score)}</span>' if score.gate else ""
    better = f" <small>{score.better} is better</small>" if score.better else ""
    return (
        f'<div class="score"><h3>{html.escape(score.name)}</h3>'
        f'<div class="result"><span class="value">{with_spread(score)}{better}</span>{badge}</div>'
        f'{_bars(score)}<p class="protocol">{html.escape(score.protocol)}</p></div>'
    )


def _bars(score: Score) -> str:
    """The model and its baselines on one scale from 0, sorted by nothing but the order they came in."""
    values = {"this model": score.value, **score.baselines}
    bounds = [bound for bound in (score.at_least, score.at_most) if bound is not None]
    largest = max([value for value in (*values.values(), *bounds) if math.isfinite(value)], default=0.0)
    if not score.baselines or largest <= 0:
        return ""
    gate = f' style="--gate:{100 * bounds[0] / largest:.1f}%"' if len(bounds) == 1 else ""
    cells = []
    for name, value in values.items():
        share = 100 * max(0.0, value) / largest if math.isfinite(value) else 0.0
        model = ' class="model"' if name == "this model" else ""
        cells += [
            f"<span{model}>{html.escape(name)}</span>",
            f'<div{gate}><i style="width:{share:.1f}%"></i></div>',
            f"<span{model}>{number(value)}</span>",
        ]
    return '<div class="bars">' + "".join(cells) + "</div>"
