"""svc_projection's benchmark on tiny sizes (its least work, its spectra, every result right) and its training run.
How any op is measured is tested in test_benchmarks.py."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import measure, svc_projection, svc_training
from benchmarks.__main__ import main
from benchmarks.harness import Case
from benchmarks.measure import Cost


def test_cost_of_svc_projection_by_hand() -> None:
    case = Case("by hand", ((10, 100), (1, 50)), variant="0.1", in_place=True)  # 1 of 10 and 1 of 1 above the bound
    assert svc_projection.cost(case, "fwd") == Cost(4 * 3 * 1050, 10 * 100 * (10 + 4) + 50 * (1 + 4))
    none = dataclasses.replace(case, variant="0")
    assert svc_projection.cost(none, "fwd") == Cost(4 * 1050, 10 * 100 * 10 + 50)
    assert svc_projection.cost(dataclasses.replace(none, in_place=False), "fwd").bytes == 4 * 3 * 1050
    double = dataclasses.replace(case, dtype="float64")
    assert svc_projection.cost(double, "bwd") == Cost(8 * 5 * 1050, 14 * 1000 + 8 * 50, "float64")
    tgan = next(case for case in svc_projection.CASES if case.name == "TGAN critic, 10 % above")
    assert svc_projection.cost(tgan, "fwd").flops == pytest.approx(6.9e9, rel=0.01)


def test_matrices_of_svc_projection_have_their_spectrum() -> None:
    case = svc_projection.tiny(svc_projection.CASES[0])
    for weight in svc_projection.inputs(case, torch.device("cpu")):
        values = torch.linalg.svdvals(weight.double())
        over = svc_projection.above(case, len(weight))
        assert int((values > 1.04).sum()) == over >= 1 and not ((values > 0.96) & (values < 1.04)).any()


def test_check_of_svc_projection_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["svc_projection", "--check"]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    assert out.count("error") == sum(len(case.directions) for case in svc_projection.CASES)


TINY = ["--steps", "6", "--width", "2", "--size", "16", "--batch", "2"]


def test_training_run_prints_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(measure.REQUIRE_NATIVE, os.environ.get(measure.REQUIRE_NATIVE, "0"))
    file, threads = tmp_path / "report.json", torch.get_num_threads()
    assert svc_training.main([*TINY, "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    report = json.loads(file.read_text(), parse_constant=pytest.fail)
    rows = {row["schedule"]: row for row in report["rows"]}
    assert list(rows) == list(svc_training.SCHEDULES)
    assert [rows[name]["projected"] for name in ("without", "svd loop, every=5", "every=5", "every=1")] == [0, 5, 5, 30]
    assert all(5 <= row["projected"] <= 30 for name, row in rows.items() if name.startswith("lazy"))
    assert rows["without"]["largest"] > 1.01  # it starts outside of the bound
    assert rows["every=1"]["largest"] <= 1 + 4e-6
    assert all(row["largest"] <= 1 + 4e-6 for name, row in rows.items() if name.startswith("lazy"))
    assert printed.startswith(svc_training.markdown(report)) and "lazy takes" in printed
    assert svc_training.main(["--table", str(file)]) == 0
    assert capsys.readouterr().out.strip() == svc_training.markdown(report)


def test_runs_start_alike_and_see_the_same_clips() -> None:
    given = svc_training.arguments(TINY)
    one, other = svc_training.Run("without", given), svc_training.Run("every=5", given)
    for _ in range(4):  # before the first clipping
        assert all(ms >= 0 for ms in (*one.step(), *other.step()))
    for a, b in zip(one.critic.parameters(), other.critic.parameters(), strict=True):
        assert torch.equal(a, b)
    one.step(), other.step()
    assert not torch.equal(svc_training.matrices(one.critic)[1], svc_training.matrices(other.critic)[1])


def test_svd_loop_does_what_the_op_does() -> None:
    given = svc_training.arguments(TINY)
    runs = [svc_training.Run(schedule, given) for schedule in ("svd loop, every=5", "every=5")]
    for _ in range(5):
        for run in runs:
            run.step()
    for a, b in zip(*(run.critic.parameters() for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_critic_is_tgans() -> None:
    shapes = [tuple(w.shape) for w in svc_training.matrices(svc_training.critic(64, 64))]
    assert shapes == list(svc_projection.TGAN)
    assert svc_training.critic(2, 32)(svc_training.clips(2, 32, torch.Generator())).shape == (2, 1, 1, 1)


def test_lazy_verdict() -> None:
    rows = [{"schedule": "every=1", "clip_ms": 10.0}, {"schedule": "lazy=0.1", "clip_ms": 5.0}]
    assert svc_training.lazy_verdict(rows).endswith("lazy=0.1 50%: met")
    assert svc_training.lazy_verdict([*rows, {"schedule": "lazy=0.3", "clip_ms": 11.0}]).endswith("missed")


@pytest.mark.parametrize("bad", [["--size", "20"], ["--batch", "1"], ["--steps", "0"]])
def test_bad_training_arguments_exit_with_2(bad: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        svc_training.main(bad)
    assert stop.value.code == 2
