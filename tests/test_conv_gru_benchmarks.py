"""conv_gru's benchmark on tiny sizes: least work, inputs off the kink, peers that agree, tables of rates and engines,
what the harness has for it (memory kept, peers left out, goals below 1x), and what its page shows.
How any op is measured is tested in test_benchmarks.py."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from op_suite import needs_native

import vgkernels
from benchmarks import conv_gru, conv_gru_engines as engines, harness, measure, table, trial
from benchmarks.__main__ import main
from benchmarks.harness import Case, Settings, run_case
from benchmarks.measure import Cost

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
PAGE = ROOT / "docs/conv_gru.md"


def test_cost_by_hand() -> None:
    case = Case("by hand", (5, 2, 4, 3, 6, 7), options={"activation": "relu"})
    maps, weights = 5 * 2 * 4 * 42, 12 * 8 * 9 + 12
    flops = 2 * 12 * (10 * 4 + 8 * 4) * (9 * 10.5)  # of both clips 5 inputs and 4 states; Winograd: 1.5 an axis
    assert conv_gru.cost(case, "fwd") == Cost(4 * (2 * maps + weights), flops)
    assert conv_gru.cost(case, "bwd") == Cost(4 * (4 * maps + 2 * weights), 2 * flops)
    assert conv_gru.cost(case, "fwd+bwd") == Cost(4 * (6 * maps + 3 * weights), 3 * flops)
    volume = Case("by hand", (5, 2, 4, 3, 2, 6, 7), dtype="bfloat16", options={"activation": "relu"})
    assert conv_gru.cost(volume, "fwd") == Cost(2 * (4 * maps + 12 * 8 * 27 + 12), 3 * flops, "bfloat16")
    exact = dataclasses.replace(case, dtype="float64")  # no Winograd: taps on the map, 3 n - 2 an axis
    assert conv_gru.cost(exact, "fwd").flops == 2 * 12 * 72 * (16 * 19)
    ragged = dataclasses.replace(case, shape=(4, 2, 4, 3, 6, 7), variant=conv_gru.LENGTHS)  # of 1 and 4 steps
    assert conv_gru.cost(ragged, "fwd").flops == 2 * 12 * (5 * 4 + 3 * 4) * (9 * 10.5)
    assert conv_gru.cost(ragged, "fwd").bytes == 4 * (5 * 4 * 42 + 8 * 4 * 42 + weights)
    assert conv_gru.definition_flops(case, "fwd+bwd") == 3 * 2 * (5 * 2 * 42) * 12 * 8 * 9


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_no_engine_multiplies_less_than_the_floor_counts(kernel: int) -> None:
    for n in (1, 2, 3, 4, 5, 16):
        ones = torch.ones(1, 1, n), torch.ones(1, 1, kernel)
        on_the_map = float(torch.nn.functional.conv1d(*ones, padding=kernel // 2).sum())
        assert conv_gru.axis_products(n, kernel, winograd=False) == on_the_map
        if kernel == 3:
            tiles = conv_gru.winograd_share((n, n)) * 9 * n * n  # of F(4x4, 3x3), all of them whole
            assert conv_gru.axis_products(n, 3, winograd=True) ** 2 <= min(tiles, on_the_map**2)


def test_winograds_share_of_the_products() -> None:
    assert conv_gru.winograd_share((16, 8)) == 0.25
    assert conv_gru.winograd_share((5, 4)) == 2 * 36 / (9 * 20)


@pytest.mark.parametrize("case", [c for c in conv_gru.CASES if c.options["activation"] == "relu"], ids=Case.label)
def test_no_candidate_is_near_the_kink(case: Case) -> None:
    """The state's least is a candidate's: each is a mean of candidates and the zeros before them."""
    channels, kernel, *size = case.shape[2:]
    small = dataclasses.replace(case, shape=(2, 1, channels, kernel, *[min(edge, 6) for edge in size]), variant="")
    x, weight_ih, weight_hh, bias = conv_gru.inputs(small, CPU)
    output = conv_gru.eager(x, weight_ih, weight_hh, bias, activation="relu").double()
    off = bias.clone()
    off[2 * channels :] *= -1  # what was cut off comes through, and the other way round
    other = conv_gru.eager(x, weight_ih, weight_hh, off, activation="relu")
    assert output[:, :, 1::2].eq(0).all() and output[:, :, ::2].gt(0.05).all()
    assert other[0, :, 1::2].gt(0.05).all() and other[0, :, ::2].eq(0).all()


@pytest.mark.parametrize("variant", ["", conv_gru.LENGTHS])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 3, 6, 7), (4, 3, 5, 1, 6, 7), (4, 3, 5, 5, 3, 4, 6)])
def test_peers_say_what_the_reference_says(shape: tuple[int, ...], activation: str, variant: str) -> None:
    case = Case("any", shape, "float64", variant=variant, options={"activation": activation})
    x, weight_ih, weight_hh, bias, *lengths = conv_gru.inputs(case, CPU)
    named = {"activation": activation, "lengths": lengths[0] if lengths else None}
    expected, _ = vgkernels.conv_gru_reference(x, None, weight_ih, weight_hh, bias, **named)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for peer in (conv_gru.eager, conv_gru.rewrite, conv_gru.ours):
                found = peer(x, weight_ih, weight_hh, bias, **named)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_lengths_differ_and_freeze() -> None:
    case = next(case for case in conv_gru.CASES if case.variant == conv_gru.LENGTHS)
    lengths = conv_gru.inputs(case, CPU)[-1]
    assert lengths.tolist() == [3, 6, 9, 12]
    small = conv_gru.inputs(dataclasses.replace(case, shape=(4, 2, 3, 3, 4, 4)), CPU)
    output = conv_gru.eager(*small, **case.options)
    assert torch.equal(output[1, 0], output[0, 0]) and not torch.equal(output[1, 1], output[0, 1])


def test_plain_codes_weights_are_made_once_for_inference() -> None:
    weights = torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3, 3)
    assert conv_gru.joined_once(*weights)[0] is conv_gru.joined_once(*weights)[0]
    assert torch.equal(conv_gru.joined(*weights)[1], torch.cat([weights[1][2:4], weights[0][2:4]], 1))


def test_check_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conv_gru", "--check"]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out and "nan" not in out and "failed" not in out
    assert out.count("| error") == sum(len(case.directions) for case in conv_gru.CASES)


def test_issues_table_is_among_the_cases() -> None:
    asked = {(12, 2, 128, 3, 16, 16), (12, 2, 64, 3, 32, 32), (6, 2, 64, 3, 64, 64), (12, 4, 128, 3, 8, 8)}
    asked |= {(12, 4, 256, 3, 8, 8), (12, 4, 256, 3, 4, 4)}
    goals = {case.shape: case.goals for case in conv_gru.CASES if case.dtype == "float32" and case.goals}
    assert set(goals) == asked and all(set(goal) == {"fwd", "fwd+bwd"} for goal in goals.values())


@needs_native
def test_remark_names_the_engine() -> None:
    case = Case("any", (2, 2, 32, 3, 16, 16), options={"activation": "relu"})
    real, given = conv_gru.ours, tuple(t.requires_grad_() for t in conv_gru.inputs(case, CPU))
    for took in ("direct", "winograd"):

        def ours(*tensors: torch.Tensor, algorithm: str, took: str = took, **options: Any) -> torch.Tensor:
            return real(*tensors, algorithm=took if algorithm == "auto" else algorithm, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conv_gru, "ours", ours)
            for direction in ("fwd", "fwd+bwd"):
                said, *shares = conv_gru.remark(case, direction, given).split("; ")
                assert said == f"engine {took}" and len(shares) == (direction == "fwd")
                if shares:
                    assert re.fullmatch(r"of a call: weights packed [\d.e+]+ %, fingerprint [\d.e+-]+ %", shares[0])
    five = Case("any", (2, 2, 8, 5, 6, 6), options={"activation": "relu"})
    assert conv_gru.remark(five, "fwd", conv_gru.inputs(five, CPU)).startswith("engine direct; of a call")


# ---- what the harness has for it ----


def toy(**more: Any) -> Any:
    """x -> x * x * x: ours keeps x alone, the plain code x and its square."""
    cube = vgkernels_like()
    return SimpleNamespace(
        PEERS={"eager": lambda x: x * x * x, "other": lambda x: x**3, **more.pop("peers", {})},
        BASELINE="eager",
        ours=cube,
        truth=lambda x: x * x * x,
        inputs=lambda case, device: (torch.randn(case.shape, generator=torch.Generator().manual_seed(0)),),
        tiny=lambda case: case,
        cost=lambda case, direction: Cost(8e3, 2e3),
        **more,
    )


def vgkernels_like() -> Any:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return 3 * grad * ctx.saved_tensors[0] ** 2

    return Cube.apply


def test_memory_kept_counts_each_storage_once() -> None:
    x = torch.randn(250, 100, requires_grad=True)  # 0.1 MB
    assert measure.saved_mb(lambda: vgkernels_like()(x)) == pytest.approx(0.1)
    assert measure.saved_mb(lambda: x * x * x) == pytest.approx(0.2)
    assert measure.saved_mb(lambda: x[:10] * x[10:20] + x[:10] * x[20:30]) == pytest.approx(0.1)
    assert measure.saved_mb(lambda: x + 1) == 0


def test_memory_kept_is_in_the_row_and_the_tables() -> None:
    case = Case("cube", (50, 40), directions=("fwd", "fwd+bwd"), saved_goal=(0.6, 0.4), goals={"fwd+bwd": (1e-9, 1e9)})
    forward, row = (dataclasses.asdict(row) for row in run_case("toy", toy(), case, Settings(CPU, repeats=3)))
    assert row["saved_mb"] == pytest.approx(0.008) and row["peer_saved_mb"]["eager"] == pytest.approx(0.016)
    assert forward["saved_mb"] is None and forward["saved_goal"] is None
    slow = row | {"peers": {"eager": 2.0}, "ratio": {"eager": 2.0}, "saved_mb": 5.0, "peer_saved_mb": {"eager": 10.0}}
    assert table.verdict(slow) == "goal 1e-09x and 0.6x of eager's memory kept met"
    assert table.verdict(slow | {"saved_mb": 4.0}).endswith("and 0.4x of eager's memory kept met")
    assert table.verdict(slow | {"saved_mb": 6.1}) == "missed: 0.6x of eager's memory kept"
    assert "kept for the backward 5.0 MB (0.50x eager's)" in table.line(slow)
    meta = {**META, "copy_GBps": 1.0, "gemm_GFps": 1.0, "load_before": [0.0], "load_after": [0.0]}
    printed = table.markdown({"meta": meta, "rows": [forward, slow]})
    assert "| MB kept (eager's) | goal |" in printed and "| 5 (10) | goal 1e-09x" in printed
    assert "MB kept" not in table.markdown({"meta": meta, "rows": [forward]})


def test_a_goal_below_1_allows_to_be_slower() -> None:
    case = Case("cube", (5, 4), directions=("fwd",), peer_goals={"fwd": {"other": (1 / 1.4, 1)}})
    (found,) = run_case("toy", toy(), case, Settings(CPU, repeats=3))
    row = dataclasses.asdict(found)
    assert table.verdict(row | {"ratio": {"eager": 1.5, "other": 0.8}}) == "goal 1x eager, goal 0.714x other met"
    assert table.verdict(row | {"ratio": {"eager": 1.5, "other": 0.7}}) == "missed: slower than other"
    assert table.verdict(row | {"ratio": {"eager": 0.9, "other": 0.8}}) == "missed: slower than eager"


def test_peers_left_out_are_not_run_and_a_reason_is_noted() -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    op = toy(peers={"compile": trial.Compiled(never), "third": never}, remark=lambda *about: f"about {about[1]}")
    case = Case("cube", (5, 4), directions=("fwd",), left_out={"compile": "takes long", "third": ""})
    (row,) = run_case("toy", op, case, Settings(CPU, repeats=3))
    assert set(row.ratio) == {"eager", "other"} and row.wrong == []
    assert row.notes == {"compile": "takes long", "ours": "about fwd"}


def test_inference_gets_the_same_tensors_at_each_call() -> None:
    seen: dict[bool, set[int]] = {False: set(), True: set()}
    op = toy()

    def ours(x: torch.Tensor) -> torch.Tensor:
        seen[torch.is_grad_enabled()].add(id(x))
        assert x.requires_grad == torch.is_grad_enabled()
        return x * x * x

    op.ours = ours
    run_case("toy", op, Case("cube", (5, 4)), Settings(CPU, repeats=3))
    assert [len(ids) for ids in seen.values()] == [1, 1]


# ---- tables ----

META = {"device": "cpu", "cpu": "Some CPU", "threads": 1, "torch": "2.13.0", "commit": "0123456789abcdef"}
META |= {"dirty": False, "date": "2026-11-22T15:00:00+00:00"}


def test_table_of_rates() -> None:
    row = {"op": "conv_gru", "case": "3x3, T12 B2 C128 16x16", "dtype": "float32", "direction": "fwd"}
    row |= {
        "huge_pages": False,
        "ours_ms": 2 * 24 * 256 * 384 * 256 * 9 / 199.9e6,  # T B pixels, outputs, inputs, taps
        "gemm_GFps": 80.0,
        "notes": {"ours": "engine winograd; of a call: weights packed 2 %, fingerprint 0.1 %"},
    }
    rows = [row, row | {"huge_pages": True}, row | {"direction": "bwd"}, row | {"op": "other"}, row | {"ours_ms": None}]
    rows.append(row | {"dtype": "bfloat16", "notes": {"ours": "engine mixed"}})
    rows.append(row | {"case": "5x5, T12 B2 C64 16x16", "notes": {"ours": "engine direct"}})
    rows[-1]["ours_ms"] = 2 * 24 * 256 * 192 * 128 * 25 / 49.9e6
    expected = """\
| case | direction | engine | effective | true | GEMM | effective / GEMM | true / GEMM |
| --- | --- | --- | --- | --- | --- | --- | --- |
| 3x3, T12 B2 C128 16x16 | fwd | winograd | 200 | 50 | 80 | 250% | 62% |
| 3x3, T12 B2 C128 16x16 bfloat16 | fwd | mixed | 200 | - | 80 | 250% | - |
| 5x5, T12 B2 C64 16x16 | fwd | direct | 50 | 50 | 80 | 62% | 62% |

Some CPU, 1 thread, torch 2.13.0, commit 0123456789ab, 2026-11-22; GFLOP/s."""
    assert conv_gru.rates_markdown({"meta": META, "rows": rows}) == expected


def test_engines_are_compared_on_12_shapes_that_are_no_cases() -> None:
    cases = {(*case.shape[:2], case.shape[2], *case.shape[2:3], *case.shape[4:]) for case in conv_gru.CASES}
    assert len(set(engines.SHAPES)) == 12 and not set(engines.SHAPES) & cases


def engine_row(**changes: Any) -> dict[str, Any]:
    row = {"shape": [4, 1, 8, 8, 6, 6], "direction": "inference", "took": "direct", "difference": 0.0}
    row |= {"ms": {"auto": 1.0, "direct": 1.01, "winograd": 2.0}, "auto_over": {"direct": 0.99, "winograd": 0.5}}
    return {**row, **changes}


def test_table_of_engines() -> None:
    meta = {**META, "load_before": [0.1], "load_after": [1.0]}
    expected = """\
| T, B, Cin, C, H, W | direction | auto takes | auto ms | direct ms | winograd ms | auto / best |
| --- | --- | --- | --- | --- | --- | --- |
| 4, 1, 8, 8, 6, 6 | inference | direct | 1 | 1.01 | 2 | 0.99 |
| 4, 1, 8, 8, 6, 6 | inference | direct | 1 | 1.01 | 2 | 1.06 |

Some CPU, 1 thread, torch 2.13.0, commit 0123456789ab, 2026-11-22; load 0.1 to 1.0. \
auto loses at most 5% in 1 of 2 rows: missed."""
    rows = [engine_row(), engine_row(auto_over={"direct": 0.99, "winograd": 1.06})]
    assert engines.markdown({"meta": meta, "rows": rows}) == expected
    assert engines.markdown({"meta": meta, "rows": rows[:1]}).endswith("in 1 of 1 rows: met.")


def test_engines_print_what_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(measure.REQUIRE_NATIVE, os.environ.get(measure.REQUIRE_NATIVE, "0"))
    monkeypatch.setattr(engines, "SHAPES", ((3, 2, 4, 5, 6, 7), (2, 1, 32, 32, 8, 8)))
    file, threads = tmp_path / "report.json", torch.get_num_threads()
    assert engines.main(["--repeats", "2", "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out.strip()
    report = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert printed == engines.markdown(report) and len(report["rows"]) == 4
    assert engines.main(["--table", str(file)]) == 0
    assert capsys.readouterr().out.strip() == printed
    with pytest.raises(SystemExit) as stop:
        engines.main(["--repeats", "0"])
    assert stop.value.code == 2


def test_wrong_engine_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(measure.REQUIRE_NATIVE, os.environ.get(measure.REQUIRE_NATIVE, "0"))
    monkeypatch.setattr(engines, "SHAPES", ((1, 1, 2, 2, 2, 2),))
    monkeypatch.setattr(engines, "error", lambda *results: 1e-2)
    assert engines.main(["--repeats", "1"]) == 1


PRINTERS: dict[str, Any] = {
    "table": lambda report, case: table.markdown(report, match=case),
    "rates": lambda report, case: conv_gru.rates_markdown(report),
    "engines": lambda report, case: engines.markdown(report),
}


def test_page_shows_the_committed_reports() -> None:
    source = PAGE.read_text()
    found = re.findall(r"<!-- (table|rates|engines) (\S+)(?: case=(.*?))? -->\n(.*?)<!-- end -->", source, re.S)
    assert len(found) == source.count("<!-- end -->") > 0
    assert {kind for kind, *_ in found} == set(PRINTERS)
    for kind, file, case, text in found:
        assert text.strip() == PRINTERS[kind](json.loads((ROOT / file).read_text()), case).strip()


def test_examples_of_the_page_run() -> None:
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(example, names)
    assert names


def test_op_is_found() -> None:
    assert "conv_gru" in harness.ops() and "conv_gru_engines" not in harness.ops()
