"""Decides that the page of what has been shown says what the records say, and no more: which test counts where, what of
a failing run is shown, and that nothing is claimed of a GPU without a record."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tools import proof

CLASSES = proof.Classes(proof.rules(proof.TESTS.read_text()))
FORWARD, BACKWARD, SECOND = proof.DIRECTIONS.values()
BOTH = (FORWARD, BACKWARD)


def cells(classname: str, name: str) -> set[tuple[str, str, str]]:
    return set(CLASSES.cells(f"tests.{classname}", name))


def each(op: str, directions: tuple[str, ...], *columns: str) -> set[tuple[str, str, str]]:
    return {(op, direction, column) for direction in directions for column in columns}


SUITE = "test_flow_warp.TestFlowWarp"


@pytest.mark.parametrize(
    ("classname", "name", "want"),
    [
        (SUITE, "test_equals_reference[border-cpu]", each("flow_warp", BOTH, "cpu", "reference")),
        (SUITE, "test_equals_reference[border-emulated]", each("flow_warp", BOTH, "emulated")),
        (SUITE, "test_equals_reference[border-cuda]", each("flow_warp", BOTH, "cuda")),
        (SUITE, "test_gradgradcheck[border-emulated]", each("flow_warp", (SECOND,), "emulated")),
        (SUITE, "test_func_grad[a-b-cpu]", each("flow_warp", (BACKWARD,), "cpu", "reference")),
        (SUITE, "test_reference_on_request[a-cpu]", each("flow_warp", (FORWARD,), "reference")),
        (SUITE, "test_bad_input[image dim]", set()),
        ("test_conv_gru.TestConvGRU", "test_export[cpu]", each("conv_gru", (FORWARD,), "cpu")),
        ("test_gpu_report.TestExport", "test_export[cpu]", set()),
        ("test_flow_warp", "test_hessian[flow_warp]", each("flow_warp", (SECOND,), "cpu")),
        ("test_flow_warp", "test_hessian[flow_warp_reference]", each("flow_warp", (SECOND,), "reference")),
        ("test_conv_gru", "test_hessian", set()),  # another file's
        ("test_conv_gru_emulated", "test_gates[candidate-float32-24]", each("conv_gru", (FORWARD,), "emulated")),
        ("test_conv_gru_emulated", "test_gates[reset_backward-float16-8]", each("conv_gru", (BACKWARD,), "emulated")),
        (
            "test_flow_warp_numbers",
            "test_sizes[cuda-1x1x1x2-8x9-NCHW]",
            each("flow_warp", BOTH, "cuda") | each("flow_warp_blend", BOTH, "cuda"),
        ),
        ("test_svc_projection_inplace", "test_zeros_are_inside[rows]", each("svc_projection_", (FORWARD,), "cpu")),
    ],
)
def test_where_a_test_counts(classname: str, name: str, want: set[tuple[str, str, str]]) -> None:
    assert cells(classname, name) == want


def test_every_test_that_is_named_is_there() -> None:
    for rule in CLASSES.rules.values():
        for shown in rule:
            source = (proof.ROOT / "tests" / shown.file).read_text()
            assert f"def {shown.test}(" in source, f"{shown.file} has no {shown.test}"
            assert set(shown.ops) <= {"*", *proof.OPS}
            assert set(shown.directions.upper()) <= set(proof.DIRECTIONS)
            assert shown.backend in proof.COLUMNS


def test_every_suite_is_known() -> None:
    sources = "".join(path.read_text() for path in (proof.ROOT / "tests").glob("test_*.py"))
    assert set(re.findall(r"^class (Test\w+)\(\w+Suite\)", sources, re.MULTILINE)) == set(proof.SUITES)


# ---- a run, from junit to page ----


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit, the page's markers, the budgets, and no record."""
    for folder in ("docs/proof", "tools"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / proof.PAGE).write_text(f"before\n{proof.BEGIN}\nold\n{proof.END}\nafter\n")
    (tmp_path / proof.BUDGETS).write_text((proof.ROOT / proof.BUDGETS).read_text())
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def junit(path: Path, **tests: str) -> str:
    """A file of tests of the suite on flow_warp: {name: passed, failed, error or skipped}; "__" stands for brackets."""
    lines = []
    for name, outcome in tests.items():
        test, _, parameters = name.partition("__")
        child = {"passed": "", "failed": "<failure/>", "error": "<error/>", "skipped": "<skipped/>"}[outcome]
        lines.append(f'<testcase classname="tests.{SUITE}" name="{test}[a-{parameters}]">{child}</testcase>')
    suite = f'<testsuite time="90.5" timestamp="2026-01-02T03:04:05+00:00">{"".join(lines)}</testsuite>'
    path.write_text(f"<testsuites>{suite}</testsuites>")
    return str(path)


def rows(tree: Path, *begin: str) -> list[list[str]]:
    """The cells behind `begin` of the page's rows that begin so."""
    assert proof.main(["table"], tree) == 0
    said = [line.strip("| ").split(" | ") for line in (tree / proof.PAGE).read_text().splitlines() if "|" in line]
    return [cells[len(begin) :] for cells in said if cells[: len(begin)] == list(begin)]


def test_nothing_is_claimed_without_a_record(tree: Path) -> None:
    assert rows(tree, "`flow_warp`", FORWARD) == [["not run"] * 3 + ["not run on a GPU"]]
    text = (tree / proof.PAGE).read_text()
    assert text.startswith(f"before\n{proof.BEGIN}\n")
    assert text.endswith(f"{proof.END}\nafter\n")
    assert "old" not in text
    assert "Mutations (`python tools/mutations.py`): not run." in text
    assert proof.main(["table"], tree) == 0
    assert (tree / proof.PAGE).read_text() == text


def test_what_a_run_has_passed(tree: Path) -> None:
    passed = {f"test_equals_reference__{where}": "passed" for where in ("cpu", "emulated")}
    file = junit(tree / "docs/proof/a.xml", **passed, test_opcheck__cpu="passed", test_opcheck__cuda="skipped")
    assert proof.main(["record", "landing", file], tree) == 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True).stdout[:7]
    when = f"landing, 2026-01-02, `{commit}`"
    assert rows(tree, "`flow_warp`", FORWARD) == [[f"1 {when}", f"2 {when}", f"1 {when}", "not run on a GPU"]]
    assert rows(tree, "`flow_warp`", SECOND) == [["none"] * 3 + ["not run on a GPU"]]
    assert rows(tree, "landing")[0][-3:] == ["3", "1", "2"]
    assert rows(tree, "weekly")[0][1] == "not run"

    (tree / "tools/new.py").touch()  # not what this tool writes: the tree differs from its commit
    assert proof.main(["record", "weekly", file], tree) == 0
    assert f"`{commit}` + changes" in rows(tree, "weekly")[0]
    both = f"1 {when}<br>1 weekly, 2026-01-02, `{commit}` + changes"
    assert rows(tree, "`flow_warp`", FORWARD)[0][2] == both


@pytest.mark.parametrize("outcome", ["failed", "error"])
def test_a_failure_is_shown(tree: Path, outcome: str) -> None:
    """Also where another file of the same run has that test passed."""
    files = [
        junit(tree / "a.xml", test_opcheck__cpu="passed", test_layouts__cpu="passed"),
        junit(tree / "b.xml", test_opcheck__cpu=outcome),
    ]
    for order in (files, files[::-1]):
        assert proof.main(["record", "landing", *order], tree) == 1
        assert rows(tree, "`flow_warp`", BACKWARD)[0][1].startswith("1, **1 FAILED** landing, ")
        assert "1, **1 FAILED**" in rows(tree, "landing")[0]


def test_a_gpu_report(tree: Path) -> None:
    said = {"commit": "0123456789ab", "dirty": False, "torch": "2.13.0+cu130", "device": "a GPU", "nvcc": "13.0"}
    (tree / "environment.json").write_text(json.dumps(said))
    file = junit(tree / "suite.xml", test_gradcheck__cuda="passed")
    assert proof.main(["record", "gpu", file, "--environment", str(tree / "environment.json")], tree) == 0
    assert rows(tree, "`flow_warp`", BACKWARD) == [["none"] * 3 + ["1 gpu, 2026-01-02, `0123456`"]]
    assert rows(tree, "`flow_warp`", FORWARD)[0][3] == "not run on a GPU"
    assert "a GPU" in rows(tree, "gpu")[0]


def test_a_run_of_no_test_is_no_record(tree: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected tests in .*, got none"):
        proof.main(["record", "landing", junit(tree / "a.xml")], tree)
    assert not (tree / proof.RESULTS).exists()


@pytest.mark.parametrize(
    "text", [None, "", "<testsuites><testsuite", '<testsuite time="x" timestamp="2026"/>', "<testsuite/>"]
)
def test_what_is_no_junit_file_is_refused(tree: Path, text: str | None) -> None:
    if text is not None:
        (tree / "a.xml").write_text(text)
    with pytest.raises(SystemExit, match=r"proof: expected a JUnit file of pytest in .*a\.xml, got "):
        proof.main(["record", "landing", str(tree / "a.xml")], tree)
    assert not (tree / proof.RESULTS).exists()


def test_a_gpu_report_needs_its_environment(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = junit(tree / "suite.xml", test_gradcheck__cuda="passed")
    for arguments in (["gpu", file], ["landing", file, "--environment", file]):
        with pytest.raises(SystemExit):
            proof.main(["record", *arguments], tree)
        assert "--environment belongs to `record gpu`" in capsys.readouterr().err
    (tree / "environment.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"proof: expected a GPU report's environment in .*, got KeyError"):
        proof.main(["record", "gpu", file, "--environment", str(tree / "environment.json")], tree)
    assert not (tree / proof.RESULTS).exists()


def test_mutations(tree: Path) -> None:
    kinds = {"barrier": {"plain": 5, "tsan": 3, "explained": 1, "no integers": 7}}
    score = {"sites": 9, "caught": 8, "caught of all": 0.8889, "caught of what is not equivalent": 0.8889}
    known = {"command": "x", "date": "2026-01-02", "commit": "0123456789", "score": {"all": score}}
    (tree / proof.MUTATIONS).write_text(json.dumps(known | {"by op and kind": {"flow_warp": kinds}}))
    assert rows(tree, "`csrc/flow_warp`")[0][:6] == ["barrier", "9", "8", "0", "1", "0"]
    assert rows(tree, "all", "all")[0][-2:] == ["88.9%", "88.9%"]
    assert "(`x`, 2026-01-02, `0123456`)" in (tree / proof.PAGE).read_text()


def test_what_the_tool_of_mutations_writes_can_be_shown() -> None:
    """Its own summary of no site at all, as it is today."""
    from tools import mutations

    assert list(proof.of_mutations(mutations.summary([], {}, {})))
    assert proof.CAUGHT == mutations.TOOLS


# ---- the committed page ----


def test_the_page_is_what_the_records_say() -> None:
    text = (proof.ROOT / proof.PAGE).read_text()
    assert proof.page(text, proof.tables(proof.ROOT)) == text, "run: python tools/proof.py table"
