"""The demo's command line against hostile input: flags, addresses, broken files, odd shapes, Ctrl-C.

Decides what a user is told; what the demo computes is in test_warp_demo.py.
"""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'vgkernels[demo]'")
pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'vgkernels[demo]'")

from vgkernels_models.data import clips  # noqa: E402
from vgkernels_models.report.encode import ClipEncoder, EncodeError  # noqa: E402
from vgkernels_models.warp_demo.__main__ import main  # noqa: E402


def noise_clip(path: Path, codec: str, frames: int, height: int = 24, width: int = 32, kept: float = 1) -> Path:
    """A clip of noise at 10 frames a second, of whose bytes only the first share is kept."""
    file = io.BytesIO()
    pixels = torch.randint(256, (frames, height, width, 3), generator=torch.Generator().manual_seed(0)).byte()
    with av.open(file, "w", format={".mkv": "matroska", ".avi": "avi"}[path.suffix]) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in pixels.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * kept)])
    return path


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line with which the demo refuses these flags."""
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_matroska_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    whole = noise_clip(tmp_path / "whole.mkv", "ffv1", 30)
    assert len(clips.read_clip(whole).frames) == 30
    cut = noise_clip(tmp_path / "cut.mkv", "ffv1", 30, kept=0.5)
    with pytest.raises(clips.ClipError, match=r"breaks off after 14 frames \(at 1.3 of 3 s\); --frames 14 reads them"):
        clips.read_clip(cut)
    assert len(clips.read_clip(cut, frames=14).frames) == 14


@pytest.mark.parametrize(
    ("video", "reason"),
    [("", "got an empty name"), ("http://localhost/a.mp4", "http://localhost/a.mp4: only files are read")],
)
def test_what_is_no_file_is_named_as_it_was_given(
    video: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refusal(capsys, "--video", video, "--out", str(tmp_path))


def test_a_clip_that_the_size_makes_too_small_blames_the_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = noise_clip(tmp_path / "a.mkv", "ffv1", 2)
    flags = ("--video", str(path), "--out", str(tmp_path / "out"))
    message = refusal(capsys, *flags, "--size", "12")
    assert "--size 12 shrinks" in message and "to 12 x 9" in message and "--size 16 is enough" in message
    tiny = noise_clip(tmp_path / "tiny.mkv", "ffv1", 2, height=8)
    assert "its frames are 32 x 8" in refusal(capsys, "--video", str(tiny), *flags[2:])


def test_a_narrow_clip_is_enlarged_only_as_far_as_the_encoder_goes() -> None:
    encoder = ClipEncoder(10, min_width=320)
    encoder.add(torch.zeros(3, 640, 12))
    with av.open(io.BytesIO(encoder.finish())) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (72, 3840)


def test_frames_beyond_the_encoder_are_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EncodeError, match=r"H\.264 can't encode 12 x 16390"):
        ClipEncoder(10).add(torch.zeros(3, 16390, 12))
    path = noise_clip(tmp_path / "a.avi", "ffv1", 2, height=16390, width=12)
    out = tmp_path / "out"
    assert "can't encode" in refusal(capsys, "--video", str(path), "--size", "100000", "--out", str(out))
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("module", ["argparse", "torch", "vgkernels_models.warp_demo.command"])
def test_an_interrupt_while_importing_is_one_line_and_130(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, os, signal\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}: exec('os.kill(os.getpid(), signal.SIGINT)')\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])
    command = [sys.executable, "-m", "vgkernels_models.warp_demo", "--video", "nowhere.mp4", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "warp_demo: interrupted\n")
