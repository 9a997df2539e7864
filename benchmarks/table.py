"""How a report looks: a line while running, the goals, JSON, and the README's markdown table made from it.
Works on JSON-like rows only, so that a committed report prints the same table for ever."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def baseline(row: Row) -> str:
    """The peer that goals are set against; reports from before rows named it had only flow_warp's."""
    return str(row.get("baseline", "eager"))


def verdict(row: Row) -> str:
    """WRONG, "slower than <peer>", or how the goals were met; no peer left to compare with gives no verdict."""
    if "ours" in row["wrong"]:
        return "WRONG"
    goals = _goals(row)
    slower = [peer for peer, ratio in row["ratio"].items() if ratio < min(1, goals.get(peer, (1, 1))[0])]
    if slower:
        return f"missed: slower than {', '.join(slower)}"
    judged = {peer: row["ratio"][peer] for peer in goals if peer in row["ratio"]}
    if not judged:
        return ""
    names = {peer: f" {peer}" if len(goals) > 1 else "" for peer in judged}
    missed = [f"goal {goals[peer][0]:.3g}x{names[peer]}" for peer, ratio in judged.items() if ratio < goals[peer][0]]
    share = row.get("floor_goal")
    floor = [f"{share:.0%} of the floor"] if share else []
    missed += floor if floor and row["floor_fraction"] < share else []
    saved = _saved_share(row)
    wanted = next((goal for goal in reversed(row.get("saved_goal") or ()) if saved and saved <= goal), None)
    if saved and wanted is None:
        missed.append(f"{row['saved_goal'][0]:g}x of {baseline(row)}'s memory kept")
    if missed:
        return f"missed: {', '.join(missed)}"
    met = []
    for peer, ratio in judged.items():
        goal, stretch = goals[peer]
        met.append(f"stretch {stretch:.3g}x" if stretch > goal and ratio >= stretch else f"goal {goal:.3g}x")
        met[-1] += names[peer]
    kept = [f"{wanted:g}x of {baseline(row)}'s memory kept"] if wanted else []
    return " and ".join([", ".join(met), *floor, *kept]) + " met"


def _saved_share(row: Row) -> float | None:
    """What ours keeps for the backward, as a share of what the baseline keeps; None where neither was measured."""
    theirs = row.get("peer_saved_mb", {}).get(baseline(row))
    return row["saved_mb"] / theirs if theirs and row["saved_mb"] is not None else None


def _goals(row: Row) -> dict[str, tuple[float, float]]:
    """(goal, stretch) by peer: the baseline's, 1x where there is none, and those of other peers."""
    return {baseline(row): row["goal"] or (1, 1), **row.get("peer_goals", {})}


def line(row: Row) -> str:
    """One row as text, for a terminal."""
    parts = [f"WRONG {who}" for who in row["wrong"]]
    error = "none" if row["max_err"] is None else f"{row['max_err']:.1e}"
    if row["ours_ms"] is not None:
        low, high = row["ours_quartiles"]
        parts.append(f"ours {row['ours_ms']:.3f} ms [{low:.3f} {high:.3f}]")
        for peer, ms in row["peers"].items():
            low, high = row["peer_quartiles"][peer]
            parts.append(f"{peer} {ms:.3f} [{low:.3f} {high:.3f}] = {row['ratio'][peer]:.2f}x")
        parts.append(f"floor {row['floor_ms']:.3f} ms ({row['floor_fraction']:.0%} reached)")
        parts.append(f"GEMM {row['gemm_GFps']:.0f} GFLOP/s")
        parts.append(f"{row['bytes'] / 1e6:.1f} MB {row['flops'] / 1e9:.2f} GFLOP")
        if row["peak_extra_mb"] is not None:
            parts.append(f"peak +{row['peak_extra_mb']:.1f} MB")
        if (share := _saved_share(row)) is not None:
            parts.append(f"kept for the backward {row['saved_mb']:.1f} MB ({share:.2f}x {baseline(row)}'s)")
    parts.append(f"error {error}")
    parts.append(verdict(row))
    parts += [f"{who}: {note}" for who, note in row["notes"].items()]
    return " | ".join(filter(None, (_label(row), *parts)))


def _label(row: Row) -> str:
    direction = row["direction"] + (" +pages" if row["huge_pages"] else "")
    return f"{row['case']:<29} {row['dtype']:<8} {row['layout']:<13} {row['flow']:<6} {direction:<14}"


def goals(rows: Sequence[Row]) -> str:
    """The goals beside what was measured: headline rows that have one, and those slower than a peer."""
    found = [row for row in rows if not row["huge_pages"] and verdict(row)]
    lines = []
    for row in (row for row in found if row["goal"] or not verdict(row).endswith("met")):
        asked = ", ".join(f"{peer} {goal:g}x (stretch {stretch:g}x)" for peer, (goal, stretch) in _goals(row).items())
        ratios = ", ".join(f"{peer} {ratio:.2f}x" for peer, ratio in row["ratio"].items())
        lines.append(f"{_label(row)} | goal {asked} | {ratios or '-'} | {verdict(row)}")
    met = sum(verdict(row).endswith("met") for row in found)
    return "\n".join([*lines, f"{met} of {len(found)} headline rows meet their goal (no goal of its own: 1x)"])


def save(path: Path, meta: Mapping[str, Any], rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1, allow_nan=False, default=float) + "\n")


def markdown(report: Mapping[str, Any], op: str = "", match: str = "") -> str:
    """The README table: a line per case and direction, its flows side by side; backward alone stays in the JSON."""
    meta = report["meta"]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in report["rows"]:
        label = " ".join((row["case"], row["dtype"], row["layout"], row["flow"]))
        if (not op or row["op"] == op) and match in label and row["direction"] != "bwd":
            groups.setdefault(tuple(row[key] for key in ("op", "case", "dtype", "layout", "direction")), []).append(row)
    peers = list(dict.fromkeys(peer for rows in groups.values() for row in rows for peer in row["ratio"]))
    head = ["case", "layout", "direction", "ours ms", *(f"vs {peer}" for peer in peers)]
    first = next((rows[0] for rows in groups.values()), {})
    pages = any(row["huge_pages"] for rows in groups.values() for row in rows)
    head += [*(["with page advice"] if pages else []), "of the floor", f"extra MB ({baseline(first)}'s)"]
    saves = any(_saved_share(row) is not None for rows in groups.values() for row in rows)
    head += [*([f"MB kept ({baseline(first)}'s)"] if saves else []), "goal"]
    table = [head, ["---"] * len(head)]
    for (_, case, dtype, layout, direction), rows in groups.items():
        plain, advised = ([row for row in rows if row["huge_pages"] == on] for on in (False, True))
        cells = [case + ("" if dtype == "float32" else f" {dtype}"), layout, direction]
        cells.append(_join(plain, lambda row: "WRONG" if row["ours_ms"] is None else f"{row['ours_ms']:.3g}"))
        cells += [_join(plain, lambda row, peer=peer: _ratio(row, peer)) for peer in peers]
        cells += [_join(advised, lambda row: _ratio(row, baseline(row)))] if pages else []
        cells.append(_join(plain, lambda row: "-" if row["floor_fraction"] is None else f"{row['floor_fraction']:.0%}"))
        cells.append(_join(plain[:1], _memory))
        cells += [_join(plain[:1], _saved)] if saves else []
        cells.append(_join(plain, verdict))
        table.append(cells)
    flows = list(dict.fromkeys(row["flow"] for rows in groups.values() for row in rows if row["flow"]))
    caption = (
        f"{place(meta)}; copy {meta['copy_GBps']:g} GB/s, GEMM {_gemm(meta, groups)} GFLOP/s; "
        f"load {meta['load_before'][0]:.1f} to {meta['load_after'][0]:.1f}. "
        f"Medians of interleaved repeats{'; flow ' + ' / '.join(flows) if flows else ''}."
    )
    return "\n".join([*("| " + " | ".join(cells) + " |" for cells in table), "", caption])


def place(meta: Mapping[str, Any]) -> str:
    """Where, on what and when a report was made."""
    dirty = " + changes" if meta["dirty"] else ""
    threads = f"{meta['threads']} thread{'s' if meta['threads'] > 1 else ''}"
    device = meta["cpu"] if meta["device"] == "cpu" else meta["device"]
    return f"{device}, {threads}, torch {meta['torch']}, commit {meta['commit'][:12]}{dirty}, {meta['date'][:10]}"


def _gemm(meta: Mapping[str, Any], groups: Mapping[Any, Sequence[Row]]) -> str:
    """The rates that the rows' floors rest on; the report's one rate where the rows have none of their own."""
    rates = [row["gemm_GFps"] for rows in groups.values() for row in rows if row.get("gemm_GFps")]
    ends = dict.fromkeys(f"{rate:.0f}" for rate in (min(rates), max(rates))) if rates else [f"{meta['gemm_GFps']:g}"]
    return " to ".join(ends)


def _join(rows: Sequence[Row], cell: Any) -> str:
    """The rows' cells side by side, once where they agree."""
    return " / ".join(dict.fromkeys(cells) if len(set(cells := [cell(row) for row in rows])) == 1 else cells) or "-"


def _ratio(row: Row, peer: str) -> str:
    return f"{row['ratio'][peer]:.3g}x" if peer in row["ratio"] else "WRONG" if peer in row["wrong"] else "-"


def _memory(row: Row) -> str:
    ours, peer = row["peak_extra_mb"], row["peer_peak_extra_mb"].get(baseline(row))
    return " ".join(("-" if ours is None else f"{ours:.0f}", "" if peer is None else f"({peer:.0f})")).strip()


def _saved(row: Row) -> str:
    if _saved_share(row) is None:
        return "-"
    return f"{row['saved_mb']:.0f} ({row['peer_saved_mb'][baseline(row)]:.0f})"
