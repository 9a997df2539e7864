"""sliced_wasserstein's benchmark on tiny sizes (least work, exact projections, every result right), the table of the
sort, the error by number of directions, and that the pages show what the committed reports say.
How any op is measured is tested in test_benchmarks.py."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, sliced_wasserstein, sliced_wasserstein_directions as by_directions, table
from benchmarks.__main__ import main
from benchmarks.harness import Case
from benchmarks.measure import Cost

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def test_cost_of_sliced_wasserstein_by_hand() -> None:
    case = Case("by hand", (2, 10, 30, 5, 8), options={"p": 2.0, "kind": "gaussian"})
    samples, products = 2 * 40 * 5, 2 * 2 * 40 * 5 * 8
    assert sliced_wasserstein.cost(case, "fwd") == Cost(4 * (samples + 40), products)
    assert sliced_wasserstein.cost(case, "fwd+bwd") == Cost(4 * (2 * samples + 40), 2 * products)
    double = dataclasses.replace(case, dtype="float64")
    assert sliced_wasserstein.cost(double, "fwd") == Cost(8 * (samples + 40), products, "float64")
    hadamard = dataclasses.replace(case, options={"p": 2.0, "kind": "hadamard"})  # D = 5: two blocks of 4 directions
    assert sliced_wasserstein.cost(hadamard, "fwd") == Cost(4 * samples, 2 * 80 * (2 * 5 + 4 * 2))
    alone = dataclasses.replace(case, options={"p": 2.0, "kind": "projected"})
    assert sliced_wasserstein.cost(alone, "fwd") == Cost(4 * 80 * 8, 0)


def test_segments_by_hand() -> None:
    i, j, share = sliced_wasserstein.segments(2, 3)  # ends at 1/3, 1/2, 2/3, 1
    assert i.tolist() == [0, 0, 1, 1] and j.tolist() == [0, 1, 1, 2]
    assert (6 * share).tolist() == pytest.approx([2, 1, 1, 2])


@pytest.mark.parametrize("case", [case for case in sliced_wasserstein.CASES if "fwd+bwd" in case.directions])
def test_projections_are_exact_in_float32_and_no_two_are_equal(case: Case) -> None:
    few = dataclasses.replace(case, shape=(*case.shape[:4], 16))  # of the directions
    x, y, theta, *_ = sliced_wasserstein.inputs(few, CPU)
    for samples in (x, y):
        found = samples @ theta.T
        assert torch.equal(found.double(), samples.double() @ theta.double().T)
        assert (found.sort(-2).values.diff(dim=-2) > 0).all() and 0.5 < found.std() < 4


def test_ours_never_reads_the_hadamard_directions() -> None:
    case = sliced_wasserstein.tiny(next(case for case in sliced_wasserstein.CASES if "hadamard" in case.name))
    x, y, theta = sliced_wasserstein.inputs(case, CPU)
    value = sliced_wasserstein.ours(x, y, torch.zeros_like(theta), **case.options)
    torch.testing.assert_close(value, sliced_wasserstein.plain(x, y, theta, **case.options))


def test_weights_change_the_value_and_all_peers_agree_on_it() -> None:
    case = next(case for case in sliced_wasserstein.CASES if case.variant == "weighted")
    given = sliced_wasserstein.inputs(sliced_wasserstein.tiny(dataclasses.replace(case, dtype="float64")), CPU)
    values = [fn(*given, **case.options) for fn in (sliced_wasserstein.plain, sliced_wasserstein.pot)]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-12)
    assert float(sliced_wasserstein.pot(*given[:3], **case.options)) != pytest.approx(float(values[0]), rel=1e-3)


def test_check_of_sliced_wasserstein_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sliced_wasserstein", "--check"]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out and "nan" not in out
    assert out.count("error") == sum(len(case.directions) for case in sliced_wasserstein.CASES)
    failed = {line.split(":")[0] for line in re.findall(r"\| (\w+: failed.*)", out)}
    assert failed <= {"numpy"}  # it has no gradient and no weights


META = {"device": "cpu", "cpu": "Some CPU", "threads": 1, "torch": "2.13.0", "commit": "0123456789abcdef"}
META |= {"dirty": False, "date": "2026-11-22T15:00:00+00:00"}


def test_table_of_the_sort() -> None:
    row = {"case": "sort alone, 1024 x 512", "ours_ms": 2.097152, "peers": {"torch": 104.8576}, "gemm_GFps": 55.0}
    rows = [row, row | {"case": "sort alone, 8192 x 512", "peers": {}}, {"case": "N64 D128 L128"}]
    rows.append(row | {"case": "sort alone, 262144 x 16"})
    expected = """\
| rows x columns | ours | torch | goal | network at the GEMM's rate |
| --- | --- | --- | --- | --- |
| 1024 x 512 | 2 | 100 | 1.5 missed | 2 |
| 8192 x 512 | 0.25 | - | 3 met | 3.31 |
| 262144 x 16 | 0.25 | 12.5 | - | 6.22 |

Some CPU, 1 thread, torch 2.13.0, commit 0123456789ab, 2026-11-22; ns."""
    assert sliced_wasserstein.sort_markdown({"meta": META, "rows": rows}) == expected


TINY = ["--samples", "24", "--seeds", "12", "--truth", "64"]


def test_directions_print_and_draw_what_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(measure.REQUIRE_NATIVE, os.environ.get(measure.REQUIRE_NATIVE, "0"))
    pytest.importorskip("av")
    file, drawn, again = tmp_path / "report.json", tmp_path / "a.svg", tmp_path / "b.svg"
    assert by_directions.main([*TINY, "--json", str(file), "--plot", str(drawn)]) == 0
    printed = capsys.readouterr().out.strip()
    report = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert printed == by_directions.markdown(report)
    assert by_directions.main(["--table", str(file), "--plot", str(again)]) == 0
    assert capsys.readouterr().out.strip() == printed and again.read_text() == drawn.read_text()
    sets, kinds, counts = len(report["meta"]["truths"]), by_directions.KINDS, by_directions.COUNTS
    assert len(report["rows"]) == sets * len(kinds) * len(counts)
    assert drawn.read_text().count("<polyline") == sets * (4 + len(kinds) + 1) + len(kinds) + 1

    # an orthogonal basis sees all of a shift, independent directions follow the law, structured ones stay off
    shifted = {kind: by_directions.errors(report, by_directions.SHIFTED, kind) for kind in kinds}
    assert max(shifted["orthogonal"][4:]) < 1e-5 < min(shifted["orthogonal"][:4])  # from L = D = 128
    assert 0.9 < by_directions.constant(report, by_directions.SHIFTED) < 2.1  # sqrt(2 (D - 1) / (D + 2)) = 1.40
    sparse = {kind: by_directions.errors(report, by_directions.SPARSE, kind)[-1] for kind in kinds}
    assert sparse["hadamard"] > 0.3 > 0.15 > sparse["orthogonal"]


def test_law_of_independent_directions() -> None:
    counts = by_directions.COUNTS
    rows = [{"samples": "a", "kind": "gaussian", "directions": n, "error": 3 / n**0.5} for n in counts]
    assert by_directions.constant({"rows": rows}, "a") == pytest.approx(3)


def test_patches_are_those_of_the_frames() -> None:
    frames = torch.arange(2 * 3 * 9 * 11).view(2, 3, 9, 11).float()
    found = by_directions.patches(frames, 50, torch.Generator().manual_seed(0))
    every = frames.unfold(2, 7, 1).unfold(3, 7, 1).movedim(1, 3).reshape(-1, 147)
    assert found.shape == (50, 147) and (found[:, None] == every).all(-1).any(-1).all()


@pytest.mark.parametrize("bad", [["--samples", "0"], ["--seeds", "1"]])
def test_bad_arguments_exit_with_2(bad: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        by_directions.main(bad)
    assert stop.value.code == 2


PRINTERS: dict[str, Any] = {
    "table": table.markdown,
    "sort": sliced_wasserstein.sort_markdown,
    "ceiling": sliced_wasserstein.ceiling_markdown,
    "directions": by_directions.markdown,
}


@pytest.mark.parametrize("page", ["docs/sliced_wasserstein.md", "docs/choosing_directions.md"])
def test_pages_show_the_committed_reports(page: str) -> None:
    source = (ROOT / page).read_text()
    found = re.findall(r"<!-- (table|sort|ceiling|directions) (\S+)(?: case=)? -->\n(.*?)<!-- end -->", source, re.S)
    assert len(found) == source.count("<!-- end -->") > 0
    for kind, file, text in found:
        assert text.strip() == PRINTERS[kind](json.loads((ROOT / file).read_text())).strip()


def test_plot_is_that_of_the_committed_report() -> None:
    source = (ROOT / "docs/choosing_directions.md").read_text()
    (drawn,), (file,) = re.findall(r"!\[.*?\]\((\S+\.svg)\)", source), re.findall(r"<!-- directions (\S+) -->", source)
    assert (ROOT / "docs" / drawn).read_text() == by_directions.plot(json.loads((ROOT / file).read_text()))


@pytest.mark.parametrize("page", ["docs/sliced_wasserstein.md", "docs/choosing_directions.md"])
def test_examples_of_the_pages_run(page: str) -> None:
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        exec(example, names)
    assert names
