"""benchmarks/models.py: its tables of given results, VGAN's own scores, and flags that `train` takes.

Decides nothing of what a training reaches: that is `make models`.
"""

import json
from pathlib import Path

import pytest

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'vgkernels[models]'")
pytest.importorskip("tyro", reason="tyro is not installed: pip install 'vgkernels[models]'")

import vgkernels_models
from benchmarks import models
from vgkernels_models.metrics.score import Score


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "RESULTS", tmp_path)
    return tmp_path


def write(folder: Path, name: str, seed: int, *scores: Score) -> None:
    text = json.dumps({"seed": seed, "scores": [score.to_json() for score in scores]})
    (folder / f"{name}-{seed}.json").write_text(text)


def test_table_and_comparison(results: Path) -> None:
    for seed, value in enumerate((0.3, 0.1, 0.2)):
        gated = Score("SWD of clips", value, "p", baselines={"black": 0.5}, at_most=0.25)
        write(results, "tgan", seed, gated, Score("mean mask", 0.5, "q", better=""))
    for seed, value in enumerate((0.25, 0.3)):
        write(results, "tgan-clip", seed, Score("SWD of clips", value, "p"), Score("mean mask", 0.6, "q", better=""))
    lines = models.table().splitlines()
    assert lines[2] == "| tgan | SWD of clips | 0.2 (0.1 to 0.3) | ≤ 0.25 | 2 of 3 seeds | black 0.5 |"
    assert len(lines) == 6
    assert models.comparison().splitlines()[2:] == [  # seeds 0 and 1 alone are on both sides
        "| SWD of clips | tgan | 0.2 (0.1 to 0.3) | tgan-clip | 0.275 (0.25 to 0.3) | 0.73 | 1 of 2 seeds |"
    ]
    assert models.page(f"a{models.MARK}old{models.MARK}b{models.MARK}{models.MARK}c").count("| tgan-clip |") == 3


def test_the_page_is_that_of_the_results() -> None:
    text = models.PAGE.read_text("utf-8")
    assert models.page(text) == text


def test_scores_under_two_protocols_are_not_compared(results: Path) -> None:
    write(results, "tgan", 0, Score("SWD of clips", 0.1, "p"))
    write(results, "tgan-clip", 0, Score("SWD of clips", 0.2, "other"))
    with pytest.raises(ValueError, match="under one stated protocol only"):
        models.comparison()


def test_what_only_vgan_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "TESTED", 64)
    names = {}
    for two_stream in (True, False):
        model = vgkernels_models.create("vgan", preset="tiny", width=4, two_stream=two_stream)
        names[two_stream] = [score.name for score in models.own_scores(model)]
    assert names == {
        True: ["mask IoU", "background flicker", "mean mask", "linear probe"],
        False: ["background flicker", "linear probe"],
    }
    assert models.own_scores(vgkernels_models.create("mocogan", preset="tiny")) == []


def test_every_run_is_a_command_that_train_takes() -> None:
    for run in models.RUNS.values():
        vgkernels_models.create(run.model, preset="tiny", **run.changes)
    assert models.RUNS["vgan-one-stream"].flags() == ["--no-two-stream"]
    assert models.RUNS["tgan-clip"].flags() == ["--constraint", "clip"]
