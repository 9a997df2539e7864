"""The benchmark harness on tiny sizes and toy ops: a wrong result gets no time, everyone gets the same turns.
Leaves real times and torch.compile to `python -m benchmarks` itself; no goal is asserted here."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import flow_warp, harness, measure, table, trial
from benchmarks.__main__ import main
from benchmarks.harness import Case, Settings, run_case
from benchmarks.measure import Cost

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, repeats=3)
CASE = Case("square", (4, 5), goals={"fwd": (2.0, 4.0)})


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def toy(ours: Any = square, **peers: Any) -> Any:
    """An op file as a namespace: x -> x * x, with `peers`."""
    return SimpleNamespace(
        CASES=[CASE],
        PEERS=peers,
        BASELINE="eager",
        ours=ours,
        truth=square,
        inputs=lambda case, device: (torch.randn(case.shape, generator=torch.Generator().manual_seed(0)),),
        tiny=lambda case: case,
        cost=lambda case, direction: Cost(8e3, 2e3),
    )


def rows_of(op: Any, case: Case = CASE) -> dict[str, dict[str, Any]]:
    return {row.direction: dataclasses.asdict(row) for row in run_case("toy", op, case, SETTINGS) if not row.huge_pages}


@pytest.mark.parametrize(
    "bad",
    [lambda x: x * x * 1.001, lambda x: x * x * torch.nan, lambda x: (x * x)[:, :4], lambda x: 1 / 0 * x],
    ids=["scaled", "nan", "shape", "raises"],
)
def test_wrong_ours_is_never_timed(bad: Any) -> None:
    rows = rows_of(toy(bad, eager=square))
    assert list(rows) == ["fwd", "bwd", "fwd+bwd"]
    for row in rows.values():
        assert row["wrong"] == ["ours"]
        assert row["ours_ms"] is None and row["floor_ms"] is None and not row["peers"] and not row["ratio"]
        assert "WRONG ours" in table.line(row) and table.verdict(row) == "WRONG"


def test_peer_wrong_in_its_gradient_loses_only_those_rows() -> None:
    rows = rows_of(toy(eager=square, bad=lambda x: x.detach() * x))
    assert set(rows["fwd"]["ratio"]) == {"eager", "bad"} and rows["fwd"]["wrong"] == []
    for direction in ("bwd", "fwd+bwd"):
        assert set(rows[direction]["ratio"]) == set(rows[direction]["peers"]) == {"eager"}
        assert rows[direction]["wrong"] == ["bad"]
        assert rows[direction]["peer_err"]["bad"] > 0.1
        assert "WRONG bad" in table.line(rows[direction])


def test_failing_peer_is_named_and_dropped() -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no kernel\nsecond line")

    row = rows_of(toy(eager=square, other=fails))["fwd"]
    assert set(row["ratio"]) == {"eager"} and row["wrong"] == []
    assert row["notes"]["other"].endswith("NotImplementedError: no kernel")


def test_peer_over_the_compile_limit_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(30)
        return x

    monkeypatch.setattr(trial, "COMPILE_LIMIT_S", 0.1)
    monkeypatch.setattr(trial, "_compile", lambda fn, signature: fn)
    start = time.monotonic()
    row = rows_of(toy(eager=square, compile=trial.Compiled(slow)))["fwd+bwd"]
    assert time.monotonic() - start < 15
    assert row["notes"] == {"compile": "compile took > 0 s: dropped"} and row["wrong"] == []
    assert set(row["ratio"]) == {"eager"}


def test_interleaving_is_fair_and_shuffled() -> None:
    turns: list[str] = []
    names = ["ours", "eager", "compile", "copy"]

    def turn(name: str) -> int:
        turns.append(name)
        return len(turns)

    samples = measure.interleave({name: functools.partial(turn, name) for name in names}, 20)
    rounds = [tuple(turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert all(sorted(turn) == sorted(names) for turn in rounds) and len(rounds) == 20
    assert len(set(rounds)) > 5
    assert [len(taken) for taken in samples.values()] == [20] * 4
    assert turns[samples["ours"][7] - 1] == "ours"


def test_every_contender_of_a_case_is_sampled_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: Counter[Any] = Counter()
    real = trial.Trial.sample

    def counting(self: trial.Trial, contender: trial.Contender, calls: dict[str, int]) -> dict[str, float]:
        samples[contender.fn] += 1
        return real(self, contender, calls)

    monkeypatch.setattr(trial.Trial, "sample", counting)
    rows_of(toy(eager=square, other=torch.square))
    assert sorted(samples.values()) == [1 + SETTINGS.repeats] * 3  # one to warm up and to count calls


def test_page_advice_is_off_in_the_headline_row_and_on_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trial.HUGE_PAGES, "as the user had it")
    seen: Counter[str] = Counter()

    def ours(x: torch.Tensor) -> torch.Tensor:
        seen[os.environ[trial.HUGE_PAGES]] += 1
        return x * x

    case = Case("large", (1024, 1024), directions=("fwd",))
    plain, advised = run_case("toy", toy(ours, eager=square), case, SETTINGS)
    assert (plain.huge_pages, advised.huge_pages) == (False, True)
    assert plain.peers == advised.peers and plain.ours_ms and advised.ours_ms
    assert set(seen) == {"0", "1"}
    assert os.environ[trial.HUGE_PAGES] == "as the user had it"


def halve_in_place(*tensors: torch.Tensor) -> None:
    for x in tensors:
        x /= 2


def test_in_place_every_call_finds_the_same_inputs_and_leaves_the_result_in_them() -> None:
    seen: list[list[float]] = []

    def ours(*tensors: torch.Tensor) -> None:
        seen.append([float(x.sum()) for x in tensors])
        halve_in_place(*tensors)

    op = toy(ours, eager=halve_in_place, idle=lambda *tensors: [x / 2 for x in tensors])
    op.truth, op.inputs = halve_in_place, lambda case, device: tuple(torch.ones(shape) for shape in case.shape)
    large = (1024, 1024)  # out of place this size would be worth a row with page advice
    case = Case("in place", ((2, 3), large), directions=("fwd",), goals={"fwd": (1e-9, 1e9)}, in_place=True)
    (row,) = run_case("toy", op, case, SETTINGS)
    assert row.max_err == 0 and row.ours_ms and set(row.ratio) == {"eager"} and row.wrong == ["idle"]
    assert len(seen) >= 2 + SETTINGS.repeats and all(sums == [6, 1024 * 1024] for sums in seen)


def test_in_place_inputs_are_restored_outside_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trial.Trial.fresh

    def slow(self: trial.Trial, turn: int = 0) -> tuple[torch.Tensor, ...]:
        time.sleep(0.05)
        return real(self, turn)

    monkeypatch.setattr(trial.Trial, "fresh", slow)
    op = toy(halve_in_place, eager=halve_in_place)
    op.truth = halve_in_place
    (row,) = run_case("toy", op, dataclasses.replace(CASE, directions=("fwd",), in_place=True), SETTINGS)
    assert row.ours_ms is not None and row.ours_ms < 25 and row.peers["eager"] < 25


def test_rates_behind_the_floor_are_taken_between_the_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[dict[str, Any]] = []
    real = measure.interleave

    def spying(contenders: dict[str, Any], repeats: int) -> Any:
        rounds.append(contenders)
        return real(contenders, repeats)

    monkeypatch.setattr(measure, "interleave", spying)
    rows_of(toy(eager=square))
    assert set(rounds[0]) == {"copy", "gemm", "ours", "eager"}


def test_peak_memory_is_that_of_the_call() -> None:
    found = measure.peak_extra_mb(lambda: torch.ones(16_000_000).sum() + torch.ones(8_000_000).sum(), CPU)
    if found is None:
        pytest.skip("/proc/self/clear_refs can't be written here")
    assert 60 < found < 110


def test_cost_of_flow_warp_by_hand() -> None:
    case = Case("by hand", (1, 64, 512, 1024), options={"mode": "bilinear", "padding_mode": "border"})
    image, plane = 64 * 512 * 1024 * 4, 512 * 1024 * 4
    assert flow_warp.cost(case, "fwd") == Cost(2 * image + 2 * plane, 8 * 64 * 512 * 1024)
    assert flow_warp.cost(case, "bwd") == Cost(3 * image + 4 * plane, 16 * 64 * 512 * 1024)
    assert flow_warp.cost(case, "fwd+bwd").bytes == 5 * image + 6 * plane
    blend = dataclasses.replace(case, variant="blend")
    assert flow_warp.cost(blend, "fwd") == Cost(3 * image + 3 * plane, 11 * 64 * 512 * 1024)
    assert flow_warp.cost(blend, "bwd") == Cost(5 * image + 6 * plane, 21 * 64 * 512 * 1024)
    half = dataclasses.replace(case, dtype="bfloat16")
    assert flow_warp.cost(half, "fwd").bytes == image + 2 * plane  # 138 MB: 46 us at 3.0 TB/s
    assert measure.floor_ms(flow_warp.cost(half, "fwd"), 3000, 67e3) == pytest.approx(0.0461, abs=1e-4)
    assert measure.floor_ms(flow_warp.cost(case, "fwd"), 3000, 67e3) == pytest.approx(0.0909, abs=1e-4)
    assert measure.floor_ms(Cost(1e6, 5e9), 10, 50) == 100.0  # flops bound: 5 GFLOP at 50 GFLOP/s
    nearest = dataclasses.replace(case, options={"mode": "nearest", "padding_mode": "border"})
    assert flow_warp.cost(nearest, "fwd").flops == 0


def test_quartiles_and_error() -> None:
    assert measure.quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert trial.error([torch.tensor([1.0, -3.0])], [truth]) == 0.25
    assert trial.error([torch.tensor([1.0, math.nan])], [truth]) == math.inf
    assert trial.error([torch.tensor([0.5])], [torch.zeros(1, dtype=torch.float64)]) == 0.5


def test_json_report(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "ops", lambda: ["right", "wrong"])
    bad = toy(lambda x: x * math.nan, eager=square)
    monkeypatch.setattr(harness, "load", lambda name: toy(eager=square) if name == "right" else bad)
    file = tmp_path / "new" / "report.json"
    before = torch.get_num_threads(), dict(os.environ)
    assert main(["--json", str(file), "--repeats", "7"]) == 1
    assert before == (torch.get_num_threads(), dict(os.environ))
    report = json.loads(file.read_text(), parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    meta, rows = report["meta"], report["rows"]
    assert {"device", "cpu", "threads", "commit", "dirty", "torch", "date", "copy_GBps", "gemm_GFps"} <= set(meta)
    assert len(meta["load_before"]) == len(meta["load_after"]) == 3
    assert meta["copy_GBps"] > 0 and meta["gemm_GFps"] > 0 and meta["threads"] == 1
    assert [(row["op"], row["direction"]) for row in rows] == [
        (op, direction) for op in ("right", "wrong") for direction in ("fwd", "bwd", "fwd+bwd")
    ]
    for row in rows[:3]:
        assert row["ratio"] == {"eager": pytest.approx(row["peers"]["eager"] / row["ours_ms"])}
        assert row["ours_quartiles"][0] <= row["ours_ms"] <= row["ours_quartiles"][1]
        assert row["peer_quartiles"]["eager"][0] <= row["peers"]["eager"] <= row["peer_quartiles"]["eager"][1]
        assert row["floor_fraction"] == pytest.approx(row["floor_ms"] / row["ours_ms"])
        floor = max(8e3 / row["copy_GBps"], 2e3 / row["gemm_GFps"]) / 1e6
        assert row["floor_ms"] == pytest.approx(floor, rel=0.01)
        assert row["gemm_GFps"] > 0 and row["baseline"] == "eager"
        assert row["max_err"] < 1e-6 and row["peer_err"]["eager"] < 1e-6 and row["huge_pages"] is False
    assert rows[0]["goal"] == [2.0, 4.0]
    assert all(row["ours_ms"] is None and row["ratio"] == {} and row["max_err"] is None for row in rows[3:])
    capsys.readouterr()
    assert main(["--table", str(file)]) == 0
    assert capsys.readouterr().out.count("WRONG") == 2 * 2  # time and goal of forward and forward+backward


def report_row(**changes: Any) -> dict[str, Any]:
    row = harness.Row("warp", "frame", "float32", "contiguous", "smooth", "fwd", 1, False, ours_ms=1.0)
    row.peers, row.ratio, row.floor_fraction = {"eager": 5.0, "compile": 2.5}, {"eager": 5.0, "compile": 2.5}, 0.4
    row.peak_extra_mb, row.peer_peak_extra_mb, row.goal = 1.6, {"eager": 6.4}, (4.0, 8.0)
    return {**dataclasses.asdict(row), **changes}


def test_readme_table() -> None:
    rows = [
        report_row(),
        report_row(huge_pages=True, ours_ms=0.5, ratio={"eager": 10.0, "compile": 5.0}),
        report_row(flow="rough", ours_ms=1.25, ratio={"eager": 4.0}, peers={"eager": 5.0}, wrong=["compile"]),
        report_row(direction="bwd"),
        report_row(direction="fwd+bwd", ratio={"eager": 0.9, "compile": 1.5}),
        report_row(op="other", case="other"),
    ]
    meta = {
        "device": "cpu",
        "cpu": "Some CPU",
        "threads": 1,
        "torch": "2.13.0",
        "commit": "0123456789abcdef",
        "dirty": True,
    }
    meta |= {"date": "2026-11-22T15:00:00+00:00", "copy_GBps": 12.5, "gemm_GFps": 60.0}
    meta |= {"load_before": [0.1, 0, 0], "load_after": [1.0, 0, 0]}
    expected = """\
| case | layout | direction | ours ms | vs eager | vs compile | with page advice | of the floor \
| extra MB (eager's) | goal |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| frame | contiguous | fwd | 1 / 1.25 | 5x / 4x | 2.5x / WRONG | 10x | 40% | 2 (6) | goal 4x met |
| frame | contiguous | fwd+bwd | 1 | 0.9x | 1.5x | - | 40% | 2 (6) | missed: slower than eager |

Some CPU, 1 thread, torch 2.13.0, commit 0123456789ab + changes, 2026-11-22; copy 12.5 GB/s, GEMM 60 GFLOP/s; \
load 0.1 to 1.0. Medians of interleaved repeats; flow smooth / rough."""
    assert table.markdown({"meta": meta, "rows": rows}, op="warp") == expected
    assert "other" in table.markdown({"meta": meta, "rows": rows})
    assert "rough" not in table.markdown({"meta": meta, "rows": rows}, match="smooth")
    svc = report_row(op="svc", baseline="svd", peers={"svd": 9.0}, ratio={"svd": 9.0}, goal=None)
    rows = [svc | {"peer_peak_extra_mb": {"svd": 90.0}, "gemm_GFps": rate} for rate in (61.2, 64.9)]
    printed = table.markdown({"meta": meta, "rows": rows})
    assert "| of the floor | extra MB (svd's) | goal |" in printed and "page advice" not in printed
    assert "| 9x | 40% | 2 (90) | goal 1x met |" in printed and "GEMM 61 to 65 GFLOP/s" in printed


@pytest.mark.parametrize(
    ("ratio", "goal", "verdict"),
    [
        ({"eager": 3.9, "compile": 2.0}, (4, 8), "missed: goal 4x"),
        ({"eager": 4.0, "compile": 2.0}, (4, 8), "goal 4x met"),
        ({"eager": 8.0, "compile": 2.0}, (4, 8), "stretch 8x met"),
        ({"eager": 9.0, "compile": 0.9}, (4, 8), "missed: slower than compile"),
        ({"eager": 1.1}, None, "goal 1x met"),
        ({"compile": 1.1}, None, ""),
    ],
)
def test_verdict(ratio: dict[str, float], goal: tuple[float, float] | None, verdict: str) -> None:
    row = report_row(ratio=ratio, goal=goal)
    assert table.verdict(row) == verdict
    before = {key: value for key, value in row.items() if key not in ("baseline", "floor_goal", "gemm_GFps")}
    assert table.verdict(before) == verdict  # reports of before rows had these
    summary = table.goals([row]).splitlines()
    assert summary[-1].startswith(f"{int(verdict.endswith('met'))} of {int(bool(verdict))} ")


@pytest.mark.parametrize(
    ("ratio", "floor", "verdict"),
    [
        (20, 0.8, "goal 16x and 75% of the floor met"),
        (24, 0.75, "stretch 24x and 75% of the floor met"),
        (20, 0.7, "missed: 75% of the floor"),
        (15, 0.8, "missed: goal 16x"),
        (15, 0.7, "missed: goal 16x, 75% of the floor"),
    ],
)
def test_verdict_with_a_floor_goal_and_a_baseline_of_its_own(ratio: float, floor: float, verdict: str) -> None:
    row = report_row(baseline="svd", ratio={"svd": ratio, "eager": 2}, goal=(16, 24))
    assert table.verdict(row | {"floor_fraction": floor, "floor_goal": 0.75}) == verdict


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ({"eager": 5, "numpy": 2}, "goal 4x eager, goal 2x numpy met"),
        ({"eager": 9, "numpy": 2}, "stretch 8x eager, goal 2x numpy met"),
        ({"eager": 5, "numpy": 1.9}, "missed: goal 2x numpy"),
        ({"eager": 3, "numpy": 1.9}, "missed: goal 4x eager, goal 2x numpy"),
        ({"eager": 5}, "goal 4x eager met"),
        ({"compile": 5}, ""),
    ],
)
def test_verdict_with_goals_against_several_peers(ratio: dict[str, float], verdict: str) -> None:
    row = report_row(ratio=ratio, goal=(4, 8), peer_goals={"numpy": (2, 2)})
    assert table.verdict(row) == verdict
    assert bool(verdict) == ("goal eager 4x (stretch 8x), numpy 2x (stretch 2x)" in table.goals([row]))


def test_only_what_is_differentiated_has_a_gradient() -> None:
    op, seen = toy(eager=lambda x, scale: x * scale), []
    op.inputs = lambda case, device: (torch.ones(case.shape), torch.full(case.shape, 2.0))
    op.ours = op.truth = lambda x, scale: seen.append((x.requires_grad, scale.requires_grad)) or x * scale
    case = dataclasses.replace(
        CASE, directions=("fwd+bwd",), differentiated=1, peer_goals={"fwd+bwd": {"eager": (1, 2)}}
    )
    (row,) = run_case("toy", op, case, SETTINGS)
    assert set(seen) == {(True, False)} and row.wrong == [] and row.ours_ms
    assert row.peer_goals == {"eager": (1, 2)}


@pytest.mark.parametrize("kind", ["smooth", "rough"])
def test_flow_moves_at_least_4_pixels_and_stays_off_the_kinks(kind: str) -> None:
    flow = flow_warp.flow_field(kind, 2, 64, 96)
    assert torch.equal(flow, flow_warp.flow_field(kind, 2, 64, 96))
    assert flow.abs().amax((2, 3)).min() >= 4
    fraction = (2 * flow).remainder(1)
    assert fraction.min() >= 0.06 and fraction.max() <= 0.94
    steps = (flow[..., 1:] - flow[..., :-1]).std()
    assert steps < 2 if kind == "smooth" else steps > 4  # noise of 4 px: neighbours differ by 5.7 px


def test_check_of_flow_warp_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow_warp", "--check", "--case", "smooth"]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    cases = [case for case in flow_warp.CASES if case.flow == "smooth"]
    assert out.count("error") == sum(len(case.directions) for case in cases)
    assert len(cases) > 15


def test_ops_are_found_by_name() -> None:
    assert harness.ops() == ["conv_gru", "flow_warp", "sliced_wasserstein", "svc_projection"]


@pytest.mark.parametrize("bad", [["nosuch"], ["--repeats", "3"], ["--threads", "0"], ["--device", "tpu"]])
def test_bad_arguments_exit_with_2(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(bad)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_no_case_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow_warp", "--check", "--case", "no such case"]) == 2
    assert "no case matches" in capsys.readouterr().err
