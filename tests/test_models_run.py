"""RUN from the command line: what may change between a start and a resume, and what a failed start leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_models_command import SMALL, fakes, main, refusal


def test_data_may_not_change_under_a_run_and_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VGKERNELS_CACHE", str(tmp_path / "cache"))
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    video = np.zeros((2, 4, 16, 16, 3), np.uint8)  # (N, T, H, W, C)
    np.save("clips.npy", video)
    out = str(tmp_path / "run")
    assert main(["train", "fake", *SMALL[:-1], "1", "--data", "clips.npy", "--out", out]) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert main(["train", "fake", "--out", out, "--resume", "--steps", "2"]) == 0
    np.save(tmp_path / "here/clips.npy", np.concatenate([video, video]))
    capsys.readouterr()
    assert "this run has clips = 2, got 4" in refusal(capsys, "train", "fake", "--out", out, "--resume", "--steps", "3")


def test_a_run_that_never_began_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "fake", *SMALL, "--out", str(tmp_path / "run")]
    with monkeypatch.context() as broken:
        broken.setattr(fakes.Fake, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(arguments)
    assert main([*arguments, "--rate", "0.01"]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["rate"] == 0.01
