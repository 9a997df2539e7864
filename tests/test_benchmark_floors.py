"""Floors in every benchmark's rows, and what `python -m benchmarks` has for a GPU: its cases, peers, and a time limit.
Costs by hand are in the ops' own benchmark tests; nothing here needs a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import (
    conv_gru,
    conv_gru_engines,
    harness,
    measure,
    sliced_wasserstein,
    svc_projection,
    svc_training,
    table,
    trial,
)
from benchmarks.__main__ import main
from benchmarks.harness import Case, Settings, run_case
from benchmarks.measure import Cost

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(measure.REQUIRE_NATIVE, os.environ.get(measure.REQUIRE_NATIVE, "0"))


def toy(**more: Any) -> Any:
    """x -> x * x."""
    made: dict[str, Any] = {
        "CASES": [Case(f"square {n}", (n, 5), directions=("fwd",)) for n in (1, 2, 3)],
        "PEERS": {"eager": torch.square},
        "BASELINE": "eager",
        "ours": lambda x: x * x,
        "truth": torch.square,
        "inputs": lambda case, device: (torch.ones(case.shape),),
        "tiny": lambda case: case,
        "cost": lambda case, direction: Cost(8e3, 2e3),
    }
    return SimpleNamespace(**made | more)


# ---- floors ----


@pytest.mark.parametrize("name", harness.ops())
def test_every_row_has_a_floor_from_the_rates_of_its_run(name: str) -> None:
    op = harness.load(name)
    case = next(case for case in op.CASES if case.flow != "rough")
    rows = run_case(name, op, dataclasses.replace(op.tiny(case), left_out={"compile": ""}), Settings(CPU, repeats=2))
    assert rows
    for row in rows:
        cost = op.cost(op.tiny(case), row.direction)
        assert row.ours_ms and row.copy_GBps and row.gemm_GFps and (row.bytes, row.flops) == cost[:2]
        floor = max(cost.bytes / row.copy_GBps, cost.flops / row.gemm_GFps) / 1e6
        assert row.floor_ms == pytest.approx(floor, rel=1e-9)
        assert f"({row.floor_fraction:.0%} reached)" in table.line(dataclasses.asdict(row))


@pytest.mark.parametrize("name", harness.ops())
@pytest.mark.parametrize("where", [CPU, CUDA], ids=str)
def test_costs_are_of_every_case_and_direction(name: str, where: torch.device) -> None:
    op = harness.load(name)
    for case in harness.cases(op, where):
        for direction in case.directions:
            cost = op.cost(case, direction)
            assert 0 < cost.bytes < math.inf and 0 <= cost.flops < math.inf and hasattr(torch, cost.unit)


def test_engines_rows_have_a_floor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(conv_gru_engines, "SHAPES", ((3, 2, 4, 5, 6, 7),))
    assert conv_gru_engines.main(["--repeats", "2"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines[0][-2:] == ["floor ms", "auto's of the floor |"] and all(len(line) == len(lines[0]) for line in lines)
    flops = 2 * 15 * (6 * 4 + 4 * 5) * (9 * 10.5)
    numbers = 6 * 42 * (4 + 5) + 15 * (9 * 9 + 1)
    assert conv_gru_engines.cost((3, 2, 4, 5, 6, 7), conv_gru_engines.INFERENCE) == Cost(4 * numbers, flops)
    numbers = 6 * 42 * (3 * 4 + 3 * 5) + 3 * 15 * (9 * 9 + 1)
    assert conv_gru_engines.cost((3, 2, 4, 5, 6, 7), conv_gru_engines.TRAINING) == Cost(4 * numbers, 3 * flops)


def test_training_rows_have_a_floor(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    tiny = ["--steps", "5", "--width", "2", "--size", "16", "--batch", "2"]
    assert svc_training.main([*tiny, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    rows = {row["schedule"]: row for row in report["rows"]}
    assert rows["without"]["floor_ms"] == 0 and all(
        row["floor_ms"] > 0 for name, row in rows.items() if name != "without"
    )
    assert "its floor" in svc_training.markdown(report)

    shapes = [w.shape for w in svc_training.matrices(svc_training.critic(2, 16))]
    sizes = [sorted(shape) for shape in shapes]  # SVDLoop says nothing of how many exceeded: Gram matrices alone
    least = Cost(4 * sum(m * n for m, n in sizes), sum(m * m * n for m, n in sizes))
    floor = measure.floor_ms(least, report["meta"]["copy_GBps"], report["meta"]["gemm_GFps"]) / 5
    assert rows["svd loop, every=5"]["floor_ms"] == pytest.approx(floor)
    assert rows["every=5"]["floor_ms"] > floor  # it starts outside of the bound
    run = svc_training.Run("svd loop, every=5", svc_training.arguments(tiny))
    run.count(svc_training.matrices(run.critic))
    assert run.least == least and run.projected == len(sizes)


def test_floors_again_change_nothing_that_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    row = {"op": "conv_gru", "case": "small, T4 B1 C16 8x8", "dtype": "float32", "layout": "contiguous", "flow": ""}
    row |= {"direction": "fwd", "ours_ms": 0.5, "copy_GBps": 20.0, "gemm_GFps": 60.0, "bytes": 1.0, "flops": 1.0}
    failed = row | {"ours_ms": None, "floor_ms": None}
    table.save(file, {"commit": "abc"}, [row | {"floor_ms": 9.0, "floor_fraction": 9.0}, failed])
    assert main(["--floors", str(file)]) == 0
    report = json.loads(file.read_text())
    case = next(case for case in conv_gru.CASES if case.name.startswith("small"))
    cost = conv_gru.cost(case, "fwd")
    floor = measure.floor_ms(cost, 20.0, 60.0)
    new = {"bytes": cost.bytes, "flops": cost.flops, "floor_ms": floor, "floor_fraction": floor / 0.5}
    assert report["rows"][0] == row | new and report["meta"] == {"commit": "abc"}
    assert report["rows"][1]["floor_ms"] is None and report["rows"][1]["flops"] == cost.flops


# ---- a GPU's ----


def test_on_cuda_its_cases_come_first_and_its_peers_take_part() -> None:
    first = Case("fills a GPU", (4, 5))
    op = toy(CUDA_CASES=[first], CUDA_PEERS={"other": torch.square})
    assert harness.cases(op, CUDA) == [first, *op.CASES] and harness.cases(op, CPU) == op.CASES
    assert list(trial.peers_on(op, CUDA)) == ["eager", "other"] and list(trial.peers_on(op, CPU)) == ["eager"]
    assert all(hasattr(harness.load(name), "CUDA_CASES") for name in ("conv_gru", "flow_warp", "sliced_wasserstein"))


@pytest.mark.parametrize("variant", ["", conv_gru.LENGTHS])
@pytest.mark.parametrize("size", [(6, 7), (3, 4, 6)])
def test_channels_last_says_what_the_plain_code_says(size: tuple[int, ...], variant: str) -> None:
    case = Case("any", (4, 3, 5, 3, *size), "float64", variant=variant, options={"activation": "tanh"})
    given = conv_gru.inputs(case, CPU)
    found = conv_gru.channels_last(*given, **case.options)
    torch.testing.assert_close(found, conv_gru.eager(*given, **case.options), rtol=0, atol=1e-12)


SORTED = [case for case in sliced_wasserstein.CASES if case.dtype == "float32" and not case.variant]


@pytest.mark.parametrize("case", SORTED, ids=Case.label)
def test_sorted_rows_say_what_sorted_columns_say(case: Case) -> None:
    small = sliced_wasserstein.tiny(dataclasses.replace(case, dtype="float64"))
    given = sliced_wasserstein.inputs(small, CPU)
    found = sliced_wasserstein.rows(*given, **case.options)
    torch.testing.assert_close(found, sliced_wasserstein.plain(*given, **case.options), rtol=1e-12, atol=0)


def test_cupy_is_named_where_it_is_missing() -> None:
    if importlib.util.find_spec("cupy"):
        pytest.skip("it is there")
    op = toy(inputs=svc_projection.inputs, ours=svc_projection.svd, truth=svc_projection.svd)
    op.PEERS = svc_projection.CUDA_PEERS | {"eager": svc_projection.gram}
    case = Case("matrix", ((5, 9),), variant="0.3", options={"in_place": False}, directions=("fwd",))
    (row,) = run_case("toy", op, case, Settings(CPU, repeats=2))
    assert "eager" in row.ratio and row.wrong == [] and "failed after" in row.notes["cupy"]


def test_a_peer_under_an_environment_has_it_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VGKERNELS_TOY", raising=False)
    seen = set()

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            seen.add(("forward", os.environ["VGKERNELS_TOY"]))
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            seen.add(("backward", os.environ["VGKERNELS_TOY"]))
            return 2 * grad * ctx.saved_tensors[0]

    op = toy(PEERS={"other": trial.Under(Square.apply, {"VGKERNELS_TOY": "1"})}, BASELINE="other")
    run_case("toy", op, dataclasses.replace(op.CASES[0], directions=("fwd+bwd",)), Settings(CPU, repeats=2))
    assert seen == {("forward", "1"), ("backward", "1")} and "VGKERNELS_TOY" not in os.environ


def test_out_of_time_the_ops_took_turns_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "ops", lambda: ["one", "two"])
    monkeypatch.setattr(harness, "load", lambda name: toy())
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.__main__.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    file = tmp_path / "report.json"
    assert main(["--check", "--seconds", "3", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert [(row["op"], row["case"]) for row in report["rows"]] == [
        ("one", "square 1"),
        ("two", "square 1"),
        ("one", "square 2"),
    ]
    assert len(report["meta"]["left_out"]) == 3 and "3 cases left out, for which 3 s" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--seconds", "0"])
    assert stop.value.code == 2


def test_compilation_gets_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(harness, "ops", lambda: ["one"])
    monkeypatch.setattr(harness, "load", lambda name: toy())
    monkeypatch.setattr(harness, "run_case", lambda name, op, case, settings: seen.append(settings) or [])
    assert main(["--check", "--seconds", "100"]) == 2  # no rows
    assert {settings.compile_limit_s for settings in seen} == {25.0}


def test_single_precision_is_set_and_put_back() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    with measure.single_precision(tf32=not before[0]):
        assert [backend.allow_tf32 for backend in backends] == [not before[0]] * 2
    assert [backend.allow_tf32 for backend in backends] == before
