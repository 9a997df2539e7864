"""Training on a folder as people have them: clips of mixed sizes, lengths and rates, one cut off and one empty."""

from __future__ import annotations

from pathlib import Path

import pytest

for needed in ("safetensors", "tyro", "rich", "PIL", "av"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'vgkernels[models]'")
from data_samples import write_video  # noqa: E402

import vgkernels_models  # noqa: E402
from vgkernels_models.command.main import run  # noqa: E402


def test_mocogan_learns_from_a_folder_of_mixed_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGKERNELS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "videos"
    write_video(folder / "wide.mp4", count=40, height=48, width=96, rate=30)
    write_video(folder / "tall.avi", count=64, height=120, width=64, rate=25)
    write_video(folder / "small.webm", count=33, height=16, width=16, rate=10)
    whole = write_video(folder / "cut.mp4", count=60).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()

    out = tmp_path / "run"
    small = ["--batch-size", "3", "--image-batch", "3", "--generator-width", "2", "--judge-width", "2"]
    flags = ["--preset", "tiny", "--data", str(folder), "--steps", "2", "--out", str(out), *small]
    assert run(["train", "mocogan", *flags]) == 0
    said = capsys.readouterr().out
    assert "3 videos, 2 left out, reasons in " in said
    assert vgkernels_models.load(out).sample(2, length=5).shape == (2, 3, 5, 32, 32)
