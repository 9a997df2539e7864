"""The report of a run: what it shows, and how it behaves in a browser, on a phone and in the dark.

Decides what the page must get right for any model; the scores' own numbers have their tests.
"""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import Page
from torch import Tensor, nn

from vgkernels_models import create, list_models
from vgkernels_models.data.batch import Batch
from vgkernels_models.metrics.network import to_bytes
from vgkernels_models.metrics.score import Score
from vgkernels_models.model import ModelConfig, Panel, VideoModel
from vgkernels_models.report import page
from vgkernels_models.report.grids import grid_mp4, slices_png, square, tiled, time_slices
from vgkernels_models.report.history import read_losses, read_moments, read_settings
from vgkernels_models.report.run import write_report
from vgkernels_models.report.scores import score_cards, score_table

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'vgkernels[models]'")

T, SIZE = 8, 16
SCORES = [
    Score("SWD of clips", 0.04, "SWD[clips, 8 vs 8]", baselines={"real against real": 0.03, "black": 0.2}, at_most=0.1),
    Score("SWD of changes", 0.3, "SWD[changes, 8 vs 8]", baselines={"black": 0.2}, at_most=0.1),
    Score("inception score", 5.0, "IS[<net>, " + 80 * "f" + "]", better="higher", spread=0.25),
]


def drifting(n: int, seed: int = 0) -> Tensor:
    """(n, 3, T, S, S) in [-1, 1]: a square of one colour on a dark ground, a pixel to the right a frame."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.full((n, 3, T, SIZE, SIZE), -0.9)
    for clip in video:
        y, x = torch.randint(SIZE - T - 4, (2,), generator=generator).tolist()
        colour = torch.rand(3, generator=generator)
        for t in range(T):
            clip[:, t, y : y + 4, x + t : x + t + 4] = colour[:, None, None]
    return video


class Drifting(VideoModel):
    """Squares that drift."""

    def __init__(self, sampler: Callable[[int], Tensor] = drifting) -> None:
        super().__init__()
        self.config, self.sampler = ModelConfig(data="squares", frames=T, size=SIZE), sampler
        self.weight = nn.Parameter(torch.zeros(3))

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        return self.sampler(n)

    def panels(self, batch: Batch, generator: torch.Generator) -> list[Panel]:
        assert not self.training and not torch.is_grad_enabled() and len(batch) == 20
        return [
            Panel(
                "Colours <and> places",
                "Look here.",
                drifting(6, 3).unflatten(0, (2, 3)),
                ("this", "that"),
                tuple("abc"),
            )
        ]


def write_run(folder: Path) -> Path:
    """What training leaves behind."""
    (folder / "samples").mkdir(parents=True)
    lines = [
        {"step": step, "losses": {"generator": 2 - step / 300, "judge_of_frames": 1 + step / 300}, "seconds": step / 10}
        for step in range(1, 301)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 301, "lo')
    for step in (0, 100, 300):
        video = to_bytes(drifting(4) * step / 300).permute(0, 2, 3, 4, 1).numpy()
        np.savez_compressed(folder / "samples" / f"step-{step:06d}.npz", video=video)
    settings = {"model": "drifting", "preset": "tiny", "config": {"size": SIZE, "lr": 2e-4, "clip": None}, "ranks": 1}
    settings |= {"source": "squares: <b>drawn</b> & endless", "command": f"train --out {'a/long/path/' * 20}"}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "drifting")
    return write_report(run, Drifting(), Batch(drifting(20, seed=1)), SCORES, extra=[page.section("Speed", "fast")])


def decoded(mp4: bytes) -> Tensor:
    """(T, H, W, 3) uint8."""
    with av.open(io.BytesIO(mp4)) as container:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))


def shown(text: str, after: str) -> Tensor:
    """The first clip after these words."""
    found = re.search(r'data:video/mp4;base64,([^"]+)"', text[text.index(after) :])
    assert found
    return decoded(base64.b64decode(found[1]))


def differs(clip: Tensor, expected: Tensor) -> float:
    """Mean difference, in bytes, of a decoded clip to (R, K, C, T, H, W), whatever the whole factor of its size."""
    frames = tiled(expected).permute(0, 2, 3, 1)  # (T, H', W', 3)
    scale = clip.shape[2] // frames.shape[2]
    large = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return (clip[:, : large.shape[1], : large.shape[2]].float() - large.float()).abs().mean().item()


# ---- what is shown


def test_the_report_is_one_file_with_all_its_sections(report: Path) -> None:
    assert sorted(each.name for each in report.parent.iterdir()) == [
        "config.json", "metrics.jsonl", "report.html", "samples",
    ]  # fmt: skip
    text = report.read_text()
    rest = re.sub(r'"data:[^"]*"', '""', text)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!["'])|url\(|@import|https?://""", rest)
    assert re.findall(r"<h2>([^<]+)</h2>", text) == [
        "Real and generated", "Colours &lt;and&gt; places", "Over the training", "Losses", "Nearest real clips",
        "Space and time", "Scores", "Speed", "Configuration",
    ]  # fmt: skip
    head = "The report of a run: what it shows, and how it behaves in a browser, on a phone and in the dark."
    told = "Preset tiny, 8 frames of 16 × 16, colour. squares: &lt;b&gt;drawn&lt;/b&gt; &amp; endless"
    assert "Drifting on squares" in rest and f"<p>{head} {told}</p>" in rest
    assert "<b>1 of 2</b><span>gates held" in rest and "<b>300 steps</b><span>of training, 3 parameters" in rest


def test_each_clip_shows_what_its_caption_says(report: Path) -> None:
    text, real = report.read_text(), drifting(20, seed=1)
    clips = {name: value for value, name in re.findall(r'base64,([^"]+)"></video>[^b]*<figcaption><b>(\w+)</b>', text)}
    assert differs(decoded(base64.b64decode(clips["real"])), square(real, 4)) < 3
    assert differs(decoded(base64.b64decode(clips["generated"])), square(drifting(16), 4)) < 3
    assert differs(shown(text, "Colours &lt;and&gt; places"), drifting(6, 3).unflatten(0, (2, 3))) < 3
    last = text[text.index("<h2>Over the training") : text.index("<h2>Losses")]
    moments = re.findall(r'base64,([^"]+)"></video></div><figcaption><b>([\d,]+)</b> steps', last)
    assert [step for _, step in moments] == ["0", "100", "300"]
    assert differs(decoded(base64.b64decode(moments[2][0])), square(drifting(4), 2)) < 3
    assert differs(decoded(base64.b64decode(moments[0][0])), square(0 * drifting(4), 2)) < 3


def test_the_nearest_real_clip_is_the_nearest_and_a_copy_is_seen(tmp_path: Path) -> None:
    real = drifting(20, seed=1)
    copies = torch.cat([real[[7, 3]], drifting(14, seed=9)])
    text = write_report(tmp_path, Drifting(lambda n: copies), Batch(real)).read_text()
    distances = torch.stack([((fake - real) ** 2).mean((1, 2, 3, 4)).sqrt() for fake in copies[:6]])  # (6, 20)
    expected = torch.stack([copies[:6], real[distances.argmin(1)]])
    assert distances.argmin(1)[:2].tolist() == [7, 3]
    assert differs(shown(text, "<h2>Nearest real clips"), expected) < 3
    across = text[text.index("<h2>Nearest real clips") :].partition('class="across"')[2].partition("</div>")[0]
    numbers = [float(value) for value in re.findall(r"<span>([\d.]+)</span>", across)]
    assert numbers == pytest.approx(distances.min(1).values.tolist(), abs=0.006) and numbers[:2] == [0, 0]
    among = ((real[:, None] - real) ** 2).mean((2, 3, 4, 5)).sqrt()
    usual = among.fill_diagonal_(9).min(1).values.median().item()
    assert f"typically {usual:.3g} from its nearest among these 20" in text


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    text = write_report(tmp_path, Drifting(), Batch(drifting(20))).read_text()
    assert re.findall(r"<h2>([^<]+)</h2>", text)[2:] == ["Nearest real clips", "Space and time"]
    assert "<b>3</b><span>parameters of all networks" in text


def test_reals_of_another_size_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for video in (drifting(1), drifting(4)[..., :8]):
        with pytest.raises(ValueError, match=r"at least 2 real clips of \(C, T, H, W\) = \(3, 8, 16, 16\), got"):
            write_report(tmp_path, Drifting(), Batch(video))
    assert not list(tmp_path.iterdir())


def test_a_model_goes_on_training_after_its_report(tmp_path: Path) -> None:
    model = Drifting().train()
    write_report(tmp_path, model, Batch(drifting(20)))
    assert model.training


@pytest.mark.parametrize("name", list_models())
def test_every_model_gets_a_report(name: str, tmp_path: Path) -> None:
    model = create(name, preset="tiny")
    c = model.config
    video = torch.linspace(-1, 1, 8).view(8, 1, 1, 1, 1).expand(8, c.channels, c.frames, c.size, c.size)
    text = write_report(tmp_path, model, Batch(video, torch.arange(8) % 2)).read_text()
    assert "Real and generated" in text and text.count("<video") >= 3


# ---- what a run left


def test_losses_are_means_of_even_groups_of_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    every = read_losses(run, points=1000)
    assert every.steps == list(range(1, 301)) and every.bucket == 1
    assert every.by_name["generator"][0] == pytest.approx(2 - 1 / 300)
    few = read_losses(run, points=7)
    assert len(few.steps) == 7 and few.steps[-1] == 300 and few.bucket == 43
    assert few.by_name["judge_of_frames"][0] == pytest.approx(1 + (1 + 42) / 2 / 300)
    (run / "metrics.jsonl").write_text(
        '{"step": 2, "losses": {"b": 1}}\n[]\n{"step": 1, "losses": {"a": 2, "b": null}}\n'
    )
    assert read_losses(run)[:2] == ([1, 2], {"a": [2, None], "b": [None, 1]})
    assert read_losses(tmp_path / "nowhere").steps == [] and read_settings(tmp_path / "nowhere") == {}


def test_moments_are_spread_evenly_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    video = to_bytes(drifting(2)).permute(0, 2, 3, 4, 1).numpy()
    for step in range(0, 2500, 100):
        np.savez_compressed(tmp_path / "samples" / f"step-{step:06d}.npz", video=video)
    moments = read_moments(tmp_path, most=5)
    assert [step for step, _ in moments] == [0, 600, 1200, 1800, 2400]
    assert torch.equal(to_bytes(moments[0][1]), to_bytes(drifting(2)))
    whole = (tmp_path / "samples" / "step-000600.npz").read_bytes()
    (tmp_path / "samples" / "step-000600.npz").write_bytes(whole[: len(whole) // 2])
    np.savez_compressed(tmp_path / "samples" / "step-001200.npz", other=video)
    np.savez_compressed(tmp_path / "samples" / "step-001800.npz", video=video.astype(float))
    assert [step for step, _ in read_moments(tmp_path, most=5)] == [0, 2400]


# ---- the parts


def test_a_grid_has_its_clips_in_rows_and_a_line_between() -> None:
    clips = torch.linspace(-1, 1, 6).view(2, 3, 1, 1, 1, 1).expand(2, 3, 1, 4, 5, 7)
    frames = tiled(clips)
    assert frames.shape == (4, 3, 11, 23) and frames.dtype == torch.uint8
    assert [frames[0, 1, y, x].item() for y in (2, 8) for x in (3, 11, 19)] == [0, 51, 102, 153, 204, 255]
    assert (frames[:, :, 5] == 72).all() and (frames[..., 7] == 72).all() and (frames[..., 15] == 72).all()
    assert square(torch.zeros(7, 1), 2).shape == (2, 2, 1) and square(torch.zeros(3, 1), 4).shape == (1, 3, 1)
    assert decoded(grid_mp4(clips, 8)).shape == (4, 232, 484, 3)  # 21 times 11 x 23, padded to even


def test_a_slice_is_the_row_where_most_happens_in_order_of_time() -> None:
    clip = torch.full((1, 3, T, SIZE, SIZE), -1.0)
    for t in range(T):
        clip[0, :, t, 5, t] = 1
    slices = time_slices(torch.cat([clip, clip.flip(3)]))
    assert slices.shape == (2, 3, T, SIZE)
    assert torch.equal(slices[0, 0] > 0, torch.eye(T, SIZE).bool()) and torch.equal(slices[0], slices[1])
    with av.open(io.BytesIO(slices_png(slices[None])), format="png_pipe") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    scale = picture.shape[1] // 33
    assert picture.shape == (T * scale, 33 * scale, 3)
    assert (picture[scale // 2 :: scale, scale // 2 :: scale][:, :SIZE, 0] > 0).tolist() == np.eye(
        T, SIZE, dtype=bool
    ).tolist()


def test_a_chart_over_steps_has_its_points_at_their_steps_and_no_playhead() -> None:
    chart = page.line_chart([page.Series("a", [0.0, 1, 2])], "loss", steps=[0, 10_000, 40_000], width=560)
    points = [float(x) for x in re.findall(r"[ML]([\d.]+) ", chart.partition('class="series')[2])]
    assert (points[1] - points[0]) / (points[2] - points[0]) == pytest.approx(0.25, abs=1e-3)
    assert "playhead" not in chart and "data-step" not in chart and "loss, by step" in chart and ">20k<" in chart
    assert not re.search("nan|inf", page.line_chart([page.Series("a", [5.0])], "loss", steps=[3]))
    frames = page.line_chart([page.Series("a", [0.0, 1, 2])], "dB", first=1)
    assert "playhead" in frames and 'data-left="52" data-step="467"' in frames and "dB, by frame" in frames


def test_a_score_is_shown_with_gate_baselines_spread_and_protocol() -> None:
    cards = score_cards([*SCORES, Score("ACD-C", float("nan"), "ACD", baselines={"real clips": 0.0})])
    assert re.findall(r'badge (\w+)">gate ([^<]+)<', cards) == [("held", "≤ 0.1: held"), ("missed", "≤ 0.1: missed")]
    assert "IS[&lt;net&gt;, fff" in cards and "5 ± 0.25" in cards and "–" in cards and "nan" not in cards
    first = cards.split('class="score"')[1]
    widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%"', first)]
    assert widths == [20, 15, 100] and set(re.findall(r"--gate:([\d.]+)%", first)) == {"50.0"}


def test_the_terminal_s_table_has_the_protocols() -> None:
    rich_console = pytest.importorskip("rich.console", reason="rich is not installed")
    console = rich_console.Console(width=100, record=True, file=io.StringIO())
    console.print(score_table(SCORES))
    text = console.export_text()
    assert all(score.name in text and score.protocol.partition(",")[0] in text for score in SCORES)
    assert "≤ 0.1 missed" in text and "≤ 0.1 held" in text and "real against real 0.03" in text and "5 ± 0.25" in text


# ---- in a browser


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_in_a_browser_the_clips_play_and_nothing_is_asked_for(
    report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    with Page(tmp_path / "profile", width=width, dark=dark) as browser:
        browser.open(report)
        count = browser.evaluate("document.querySelectorAll('video').length")
        for index in range(count):  # those out of sight wait
            moved = browser.evaluate(f"""(async () => {{
                const video = document.querySelectorAll('video')[{index}];
                video.scrollIntoView();
                for (let i = 0; i < 200 && !(video.currentTime > 0.1); i++) await new Promise(go => setTimeout(go, 50));
                return [video.currentTime > 0.1, video.paused, video.error && video.error.message, video.loop];
            }})()""")
            assert moved == [True, False, None, True], index
        assert count >= 7
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("getComputedStyle(document.querySelector('video')).imageRendering") == "pixelated"
        brightness = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert max(brightness) < 60 if dark else min(brightness) > 200
        small = browser.evaluate("""[...document.querySelectorAll('p, span, td, figcaption, svg text')]
            .filter(e => e.textContent.trim() && e.getBoundingClientRect().height < 8).map(e => e.textContent)""")
        assert not small
        assert browser.requests == [report.resolve().as_uri()] and not browser.complaints


def test_in_a_browser_the_pair_is_stepped_together(report: Path, tmp_path: Path) -> None:
    with Page(tmp_path / "profile") as browser:
        browser.open(report)
        seen = browser.evaluate("""(async () => {
            const slider = document.querySelector('.player input');
            slider.value = 5;
            slider.dispatchEvent(new Event('input'));
            await new Promise(go => setTimeout(go, 400));
            const videos = [...document.querySelectorAll('.player video')];
            return [videos.length, ...videos.map(v => [v.paused, Math.floor(v.currentTime * 8)]),
                    document.querySelector('.player output').textContent,
                    document.querySelector('.player button').textContent];
        })()""")
        assert seen == [2, [True, 5], [True, 5], "frame 6 of 8", "Play"]
