"""`python -m vgkernels_models`: every command once with a fake model, every error in one line and exit code 2.

Decides what a user is told; training is tested in test_training_*.py, the models in their own files.
"""

import builtins
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for needed in ("safetensors", "tyro", "rich", "PIL", "av"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'vgkernels[models]'")

import av  # noqa: E402
import training_fakes as fakes  # noqa: E402
from PIL import Image  # noqa: E402

import vgkernels_models  # noqa: E402
from vgkernels_models import samples  # noqa: E402
from vgkernels_models.__main__ import main  # noqa: E402
from vgkernels_models.command import main as command  # noqa: E402
from vgkernels_models.command.train import needs_condition  # noqa: E402
from vgkernels_models.training.run_folder import read_record  # noqa: E402

SMALL = ("--channels", "3", "--frames", "4", "--size", "16", "--steps", "4")  # of shape-motion


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the command line made. Read only."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "fake", *SMALL, "--out", str(out), "--seed", "5", "--ema", "0.5"]) == 0
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which these arguments are refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("vgkernels_models: ")
    return message.removeprefix("vgkernels_models: ").strip()


def test_list_names_models_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == vgkernels_models.list_models()
    assert any(line.startswith("tgan ") and line.endswith("[paper, small, tiny]") for line in lines)


def test_train_leaves_a_run_that_says_how_it_was_made(run: Path) -> None:
    record = read_record(run)
    assert (record.model, record.preset, record.ranks) == ("fake", "paper", 1)
    assert record.config["size"] == 16 and record.config["rate"] == 0.02 and record.training["seed"] == 5
    assert "shape-motion" in record.source and record.versions["torch"] == torch.__version__
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "metrics.jsonl", "samples", "checkpoints"}
    assert vgkernels_models.load(run).sample(2).shape == (2, 3, 4, 16, 16)


def test_help_comes_from_the_comments_and_defaults_from_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fake", "--preset", "tiny", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "dimension of z (default: 3)" in shown and "updates (default: 5)" in shown
    assert "what is learnt: a folder of videos" in shown and "of the first weights" in shown
    assert "runs/fake-tiny" in shown
    for arguments in (["--help"], ["train", "--help"]):
        assert main(arguments) == 0
        assert "train MODEL" in capsys.readouterr().out
    assert main([]) == 2
    assert "train MODEL" in capsys.readouterr().err


def test_a_typo_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert "perhaps you meant train" in refusal(capsys, "tran", "fake")
    assert "perhaps you meant fake" in refusal(capsys, "train", "fakr")
    for arguments, hint in (
        (["train", "fake", "--step", "4"], "--steps"),
        (["train", "fake", "--presett", "tiny"], "--preset"),
        (["sample", "x", "--lenght", "4"], "--length"),
        (["evaluate", "x", "--sed", "4"], "--seed"),
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert "Perhaps you meant" in message and hint in message


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["list", "all"], "list: expected nothing more, got 'all'"),
        (["train"], "train: expected a model first"),
        (["train", "--preset", "tiny"], "train: expected a model first"),
        (["train", "fake", "--preset", "huge"], "expected preset to be one of paper, tiny, got 'huge'"),
        (["train", "fake", "--data", "nowhere"], "data: no such file or folder as 'nowhere'"),
        (["train", "fake", "--data", "shape-moton"], "perhaps you meant shape-motion"),
        (["train", "fake", "--device", "gpu"], "expected device to be auto, cpu or cuda, got 'gpu'"),
        (["train", "fake", "--channels", "2"], "expected channels to be 1 (grey) or 3 (colour), got 2"),
        (["train", "fake", "--batch-size", "0"], "expected batch_size to be at least 1, got 0"),
        (["train", "fake", "--steps", "0"], "expected steps to be at least 1, got 0"),
        (["train", "fake", "--rate", "nan"], "expected rate to be at least 0 and finite, got nan"),
        (["train", "fake", "--decay", "2"], "expected decay to be a share of the steps from 0 to 1, got 2"),
        (["train", "fake", "--seed", "9" * 23], "expected seed to be at least 0 and of 63 bits"),
        (["train", "tgan", "--preset", "tiny", "--svc-every", "0"], "expected svc_every to be at least 1, got 0"),
        (["train", "tgan", "--temporal-channels", "8", "0"], "temporal_channels to be at least 1, got (8, 0)"),
        (["train", "vgan", "--width", "0"], "expected width to be at least 1, got 0"),
        (["train", "mocogan", "--image-batch", "0"], "expected image_batch to be at least 1, got 0"),
        (["train", "tgan", "--preset", "tiny", "--size", "20"], "TGAN: expected size to be a multiple of 16"),
        (["sample", "nowhere"], "nowhere: no such run"),
        (["evaluate", "nowhere"], "nowhere: no such run"),
        (["evaluate", "nowhere", "--n", "1"], "expected n to be at least 2, got 1"),
    ],
)
def test_what_can_not_be_used_is_said_in_one_line(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, *arguments)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("arguments", [["--ema", "2"], ["--save-every", "0"], ["--steps", "many"], ["--ema"]])
def test_values_that_do_not_fit_a_flag_name_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fake", *arguments]) == 2
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_a_run_that_is_there_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "a run is there already: --resume goes on with it" in refusal(capsys, "train", "fake", "--out", run)
    for flags, change in (
        (["--rate", "0.5"], "rate = 0.02, got 0.5"),
        (["--preset", "tiny"], "preset = paper, got tiny"),
        (["--seed", "1"], "seed = 5, got 1"),
        (["--crop", "random"], "crop = center, got random"),
        (["--steps", "3"], "steps = 4, got 3 (it may only grow)"),
    ):
        assert change in refusal(capsys, "train", "fake", "--out", run, "--resume", *flags)
    assert "this run has model = fake, got tgan" in refusal(
        capsys, "train", "tgan", "--preset", "tiny", "--out", run, "--resume"
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resume_needs_no_more_than_the_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "fake", *SMALL[:-1], "2", "--out", str(out), "--seed", "5", "--ema", "0.5", "--resume"]) == 0
    assert "nothing to resume: starts anew" in capsys.readouterr().out
    assert main(["train", "fake", "--out", str(out), "--resume", "--steps", "4"]) == 0
    printed = capsys.readouterr().out
    assert "resumed at step 2" in printed and "peak memory" in printed
    for averaged in (False, True):
        fakes.assert_equal(fakes.weights(out, averaged), fakes.weights(run, averaged))


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    flags = ["train", "fake", *SMALL[:-1], "100000", "--out", "my run", "--save-every", "100000", "--log-every", "1"]
    start = [sys.executable, fakes.__file__, *flags]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen(start, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    line = next(line for line in child.stdout if line.startswith("step "))
    child.send_signal(signal.SIGTERM)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 143, line + printed
    assert printed.splitlines()[-1].strip() == "python -m vgkernels_models train fake --out 'my run' --resume"
    done = int(printed.split("stopped and saved at step ")[1].split(";")[0])
    assert [path.name for path in (tmp_path / "my run/checkpoints").iterdir()] == [f"step-{done:06d}"]


def test_torchrun_trains_one_model_with_two_processes(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", fakes.__file__]
    flags = ["train", "fake", *SMALL, "--out", str(tmp_path / "run"), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *flags], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1 and "on 2 x CPU" in done.stdout
    assert read_record(tmp_path / "run").ranks == 2


@pytest.mark.parametrize("kind", [".mp4", ".gif", ".png", ".npz"])
def test_samples_are_written_in_the_format_that_the_name_says(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"clips{kind}"
    arguments = ["sample", str(run), "--n", "5", "--seed", "2", "--fps", "5", "--out", str(out)]
    assert main(arguments) == 0
    assert f"{out}: 5 clips of 4 frames, 16 x 16\npeak memory" in capsys.readouterr().out
    expected = samples.to_bytes(vgkernels_models.load(run).sample(5, seed=2))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    if kind == ".npz":
        assert np.array_equal(np.load(out)["video"], expected)
    elif kind == ".png":
        picture = np.array(Image.open(out))  # a row a clip
        assert picture.shape == (5 * 16, 4 * 16, 3)
        assert np.array_equal(picture[16:32, 48:64], expected[1, 3])
    else:
        with av.open(str(out)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            rate = container.streams.video[0].average_rate
        scale = frames[0].shape[1] // (3 * 16 + 2 * 2)
        assert len(frames) == 4 and rate == 5 and scale >= 10
        found = frames[2][scale // 2 :: scale, scale // 2 :: scale][18:34, 18:34].astype(int)  # the fifth clip
        assert abs(found - expected[4, 2]).mean() < 12


def test_grey_clips_are_written_too(tmp_path: Path) -> None:
    video = torch.rand(2, 1, 3, 8, 8) * 2 - 1
    for kind in samples.FORMATS:
        samples.write_samples(tmp_path / f"clips{kind}", video)
    assert np.load(tmp_path / "clips.npz")["video"].shape == (2, 3, 8, 8, 1)
    assert np.array(Image.open(tmp_path / "clips.png")).shape == (16, 24, 3)


def test_bytes_are_those_that_the_data_had() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16)
    assert np.array_equal(samples.to_bytes(pixels / 127.5 - 1).ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--out", "a.avi"], "a.avi: expected a name that ends in .mp4, .gif, .png, .npz, got .avi"),
        (["--out", "clips"], "got no ending"),
        (["--out", "no/where.png"], "no/where.png: no such folder as no"),
        (["--out", "folder.png"], "expected a file's name, got a folder"),
        (["--out", "a.gif", "--fps", "0"], "expected fps to be above 0"),
        (["--n", "0"], "sample: expected n to be at least 1, got 0"),
        (["--length", "9"], "trained on clips of 4 frames and makes no others, got length = 9"),
    ],
)
def test_samples_that_can_not_be_written_are_refused(
    flags: list[str], reason: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert reason in refusal(capsys, "sample", run, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_damaged_run_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "run/checkpoints/step-000004"
    checkpoint.mkdir(parents=True)
    for path in (run / "checkpoints/step-000004").iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes()[:-1])
    assert f"{checkpoint}/manifest.json: " in refusal(capsys, "sample", tmp_path / "run")
    (tmp_path / "run/config.json").write_bytes((run / "config.json").read_bytes())
    resume = refusal(capsys, "train", "fake", "--out", tmp_path / "run", "--resume")
    assert f"{checkpoint}/manifest.json: " in resume and "no older checkpoint is whole" in resume


def test_evaluate_writes_scores_and_a_report(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.json").write_bytes((run / "config.json").read_bytes())
    (run / "checkpoints/step-000004").rename(out / "checkpoints/step-000004")
    try:
        assert main(["evaluate", str(out), "--n", "24"]) == 0
    finally:
        (out / "checkpoints/step-000004").rename(run / "checkpoints/step-000004")
    scores = json.loads((out / "scores.json").read_text())
    assert scores and all(score["protocol"] for score in scores)
    printed = capsys.readouterr().out
    assert scores[0]["name"] in printed and str(out / "report.html") in printed and "peak memory" in printed
    assert (out / "report.html").stat().st_size > 10_000


def test_a_model_that_needs_a_condition_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(model: fakes.Fake, n: int, generator: torch.Generator, condition: Any, length: Any) -> torch.Tensor:
        assert condition.shape == (n, 3, 16, 16)
        return condition[:, :, None].expand(n, 3, 4, 16, 16)

    assert not needs_condition(fakes.Fake(fakes.FakeConfig()))
    monkeypatch.setattr(fakes.Fake, "condition", lambda model, batch: batch.video[:, :, 0])
    monkeypatch.setattr(fakes.Fake, "generate", generate)
    assert needs_condition(fakes.Fake(fakes.FakeConfig()))
    assert main(["train", "fake", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert main(["sample", str(tmp_path / "run"), "--n", "3", "--out", str(tmp_path / "a.npz")]) == 0
    video = np.load(tmp_path / "a.npz")["video"]
    assert len(np.unique(video)) > 1 and np.array_equal(video[:, 0], video[:, 1])


def test_what_breaks_in_training_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "fake", *SMALL, "--out", str(tmp_path / "run"), "--breaks-at", "2"]) == 1
    message = capsys.readouterr().err
    assert message == "vgkernels_models: step 3: the loss 'critic' is nan; there is no checkpoint yet\n"


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> int:
        return int(np.zeros(2).reshape(3)[0])  # a ValueError, but none that a check of ours raises

    monkeypatch.setattr(command, "_list", broken)
    with pytest.raises(ValueError, match="cannot reshape"):
        main(["list"])
    monkeypatch.setattr(command, "_list", lambda words: (_ for _ in ()).throw(RuntimeError("x")))
    with pytest.raises(RuntimeError):
        main(["list"])


def test_files_that_can_not_be_written_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json" in refusal(capsys, "train", "fake", *SMALL, "--out", run / "config.json" / "x")


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(words: list[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(command, "_list", full)
    assert "Tried to allocate 2.00 GiB. A smaller --preset or --batch-size needs less." in refusal(capsys, "list")


def without(names: set[str], function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, *more: None if name in names else function(name, *more)


def test_without_the_extras_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without({"tyro", "PIL"}, importlib.util.find_spec))
    message = refusal(capsys, "list")
    assert message.startswith("pillow, tyro not installed: pip install 'vgkernels[models]'")


def test_a_broken_extra_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = builtins.__import__

    def broken(name: str, *more: Any) -> Any:
        if name.startswith("vgkernels_models.command"):
            raise ImportError("libx264.so is missing")
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert "libx264.so is missing: pip install 'vgkernels[models]'" in refusal(capsys, "list")


def test_a_missing_logger_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without({"wandb"}, importlib.util.find_spec))
    message = refusal(capsys, "train", "fake", *SMALL, "--out", tmp_path / "run", "--wandb")
    assert message == "--wandb: wandb is not installed: pip install 'vgkernels[wandb]'"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_before_the_training_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_list", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "vgkernels_models: interrupted\n"
