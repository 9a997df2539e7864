"""Checkpoints: what comes back is what was saved, bit by bit, and anything else is refused with a file and a reason.

Decides what a reader of checkpoints can rely on; how a run uses them is in test_training_resume.py.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'vgkernels[models]'")

import training_fakes as fakes
from safetensors.torch import save_file

import vgkernels_models
from vgkernels_models.training import checkpoint as checkpoints
from vgkernels_models.training.checkpoint import CheckpointError, load_model, read_resume
from vgkernels_models.training.run_folder import RunFolder, checkpoint_to_resume, open_run, read_record
from vgkernels_models.training.trainer import TrainingOptions


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with checkpoints at 3 and 6. Read only."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert fakes.train(out, fakes.FakeConfig(steps=6), TrainingOptions(save_every=3, log_every=1, ema=0.5)) == 0
    return out


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(run, tmp_path / "copy")


def read_all(checkpoint: Path) -> object:
    """All that is read from a checkpoint, in a form that can be compared."""
    tensors = {averaged: load_model(checkpoint, averaged).state_dict() for averaged in (False, True)}
    return repr(read_resume(checkpoint)), {k: {n: t.tolist() for n, t in v.items()} for k, v in tensors.items()}


def sign(checkpoint: Path) -> None:
    """A new manifest: the files are as their (hostile) author wants them."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {name: checkpoints._fingerprint(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_bytes(checkpoints._signed(manifest))


def test_a_run_comes_back_as_a_model(run: Path) -> None:
    model = vgkernels_models.load(run)
    assert isinstance(model, fakes.Fake) and not model.training
    assert model.config == fakes.FakeConfig(steps=6)
    clips = model.sample(3, seed=1)
    assert clips.shape == (3, 1, 2, 4, 4)
    assert torch.equal(clips, load_model(run / "checkpoints/step-000006").sample(3, seed=1))
    assert not torch.equal(clips, load_model(run, averaged=False).sample(3, seed=1))
    assert not torch.equal(clips, load_model(run / "checkpoints/step-000003").sample(3, seed=1))


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    fakes.train(tmp_path / "run", fakes.FakeConfig(steps=9), TrainingOptions(save_every=2))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-000008", "step-000009"]


def test_tensors_that_share_memory_and_any_layout_are_saved(tmp_path: Path) -> None:
    shared = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {"a": shared, "b": shared.transpose(0, 2), "c": torch.tensor(7), "d": shared[:, 1:2]}
    folder = checkpoints.save(tmp_path, 1, checkpoints.Identity("fake", "paper", {}), tensors, None, {})
    fakes.assert_equal(checkpoints.read_weights(folder)[0], tensors)


def damage(data: bytes, kind: str, chance: random.Random) -> bytes:
    if kind == "cut":
        return data[: chance.randrange(len(data))]
    spot = chance.randrange(len(data) if kind == "bit" else min(200, len(data)))
    new = data[spot] ^ (1 << chance.randrange(8)) if kind == "bit" else (data[spot] + chance.randrange(1, 256)) % 256
    return data[:spot] + bytes([new]) + data[spot + 1 :]


def test_two_thousand_damaged_files_are_refused(damaged: Path) -> None:
    checkpoint, chance = damaged / "checkpoints/step-000006", random.Random(0)
    names = sorted(path.name for path in checkpoint.iterdir())
    assert names == ["ema.safetensors", "manifest.json", "resume.pt", "weights.safetensors"]
    whole = {name: (checkpoint / name).read_bytes() for name in names}
    readers: dict[str, list[Callable[[], object]]] = {
        "weights.safetensors": [lambda: load_model(checkpoint, averaged=False)],
        "ema.safetensors": [lambda: load_model(checkpoint)],
        "resume.pt": [lambda: read_resume(checkpoint)],
    }
    readers["manifest.json"] = [reader for each in readers.values() for reader in each]
    for count in range(2000):
        name = names[count % 4]
        (checkpoint / name).write_bytes(damage(whole[name], ("cut", "bit", "head")[count // 4 % 3], chance))
        for reader in readers[name]:
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as refusal:
                reader()
            assert "\n" not in str(refusal.value)
        if count % 16 < 4:
            with pytest.raises(CheckpointError):
                checkpoints.prove(checkpoint)
        (checkpoint / name).write_bytes(whole[name])
    assert read_all(checkpoint)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_signed_anew_damage_is_refused_or_read_but_never_crashes(damaged: Path) -> None:
    checkpoint, chance = damaged / "checkpoints/step-000006", random.Random(1)
    refused = 0
    for count in range(80):
        name = ("weights.safetensors", "resume.pt")[count % 2]
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(damage(whole, ("cut", "head")[count // 2 % 2], chance))
        sign(checkpoint)
        try:
            read_all(checkpoint)
        except CheckpointError as error:
            refused += 1
            assert name in str(error)
        (checkpoint / name).write_bytes(whole)
    assert refused > 50


def changed(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor

    return change


def said(**changes: str) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    return lambda tensors, metadata: metadata.update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed("decoder.bias", None), "tensor decoder.bias is missing"),
        (changed("encoder.bias", torch.zeros(2)), "tensor encoder.bias is none of this model's"),
        (
            changed("decoder.bias", torch.zeros(31)),
            r"expected decoder.bias to be torch.float32 \(32,\), got .* \(31,\)",
        ),
        (changed("decoder.bias", torch.zeros(32).double()), "got torch.float64"),
        (lambda tensors, metadata: metadata.clear(), "not written by vgkernels_models"),
        (said(schema="2"), "expected schema 1, got '2'"),
        (said(model="fakes"), "no model can be made .*perhaps you meant fake"),
        (said(config='{"sise": 4}'), "no model can be made .*'sise'"),
        (said(config='{"size": "a"}'), "no model can be made"),
        (said(config="[1]"), "model or configuration missing"),
        (said(config="{"), "model or configuration missing"),
    ],
)
def test_foreign_weights_are_refused(
    damaged: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None], reason: str
) -> None:
    checkpoint = damaged / "checkpoints/step-000006"
    tensors, metadata = checkpoints.read_weights(checkpoint)
    change(tensors, metadata)
    save_file(tensors, checkpoint / "weights.safetensors", metadata)
    sign(checkpoint)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load_model(damaged, averaged=False)
    assert str(checkpoint / "weights.safetensors") in str(refusal.value)


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = fakes.Fake(fakes.FakeConfig())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = {name: torch.zeros_like(tensor) for name, tensor in before.items()} | {"decoder.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError):
        checkpoints.fill(model, wrong, Path("x"))
    fakes.assert_equal(model.state_dict(), before)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_a_pickle_that_runs_code_is_refused(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = damaged / "checkpoints/step-000006"
    torch.save({"step": 6, "optimizers": Hostile()}, checkpoint / "resume.pt")
    sign(checkpoint)
    with pytest.raises(CheckpointError, match=r"resume\.pt: not readable with weights_only=True"):
        read_resume(checkpoint)
    assert "never" not in capsys.readouterr().out
    torch.save([1], checkpoint / "resume.pt")
    sign(checkpoint)
    with pytest.raises(CheckpointError, match="expected step and optimizers"):
        read_resume(checkpoint)


def test_missing_things_are_named(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such run"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: no checkpoint in it"):
        load_model(tmp_path / "empty")
    checkpoint = damaged / "checkpoints/step-000006"
    moved = checkpoint.rename(checkpoint.with_name("step-000007"))
    with pytest.raises(CheckpointError, match="of step 6, in the folder of another"):
        load_model(damaged)
    checkpoint = moved.rename(checkpoint)
    (checkpoint / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: missing"):
        load_model(damaged)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing"):
        load_model(damaged)


def test_a_damaged_newest_checkpoint_names_the_one_to_go_on_from(damaged: Path) -> None:
    newest, older = (damaged / "checkpoints" / name for name in ("step-000006", "step-000003"))
    (newest / "resume.pt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"resume\.pt: damaged.*; step-000003 is whole: `mv (\S+) (\S+)`"
    ) as found:
        checkpoint_to_resume(RunFolder(damaged))
    command = str(found.value).split("`")[1].split()
    shutil.move(command[1], command[2])
    assert checkpoint_to_resume(RunFolder(damaged)) == older
    (older / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: missing; no older checkpoint is whole"):
        checkpoint_to_resume(RunFolder(damaged))


class Stopped(BaseException):
    """The process ends here."""


def test_a_save_that_stops_anywhere_leaves_whole_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = fakes.Fake(fakes.FakeConfig()), RunFolder(tmp_path)
    calls = {"left": 0}

    def stopping(function: Callable[..., object]) -> Callable[..., object]:
        def stop_or_call(*arguments: object, **more: object) -> object:
            calls["left"] -= 1
            if calls["left"] == 0:
                raise Stopped
            return function(*arguments, **more)

        return stop_or_call

    for owner, name in (
        (checkpoints, "sync"),
        (checkpoints, "_write_tensors"),
        (checkpoints, "_fingerprint"),
        (checkpoints.torch, "save"),
        (checkpoints.shutil, "rmtree"),
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "write_bytes"),
    ):
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name)))
    identity, stops = checkpoints.Identity("fake", "paper", {}), 0
    for step in range(1, 40):
        calls["left"] = max(0, step - 2)
        try:
            checkpoints.save(run.checkpoints, step, identity, model.state_dict(), None, model.optimizers())
        except Stopped:
            stops += 1
        calls["left"] = 0
        newest = checkpoint_to_resume(run)
        assert newest is not None
        assert read_resume(newest)["step"] >= (step - 1 if step > 2 else step)
        checkpoints.save(run.checkpoints, step, identity, model.state_dict(), None, model.optimizers())
        kept = [int(path.name[5:]) for path in checkpoints.checkpoints(run.checkpoints)]
        assert kept == [step - 1, step][-step:]
    assert 13 <= stops < 30  # all places, and in the end none


def test_a_half_written_checkpoint_is_ignored_and_cleaned(damaged: Path) -> None:
    stray = damaged / "checkpoints/.partial-000009"
    shutil.copytree(damaged / "checkpoints/step-000006", stray)
    assert checkpoint_to_resume(RunFolder(damaged)) == damaged / "checkpoints/step-000006"
    with open_run(damaged, read_record(damaged), resume=True):
        assert not stray.exists()


def test_a_checkpoint_that_has_no_room_leaves_the_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    monkeypatch.setattr(torch, "save", full)
    model = load_model(run)
    with pytest.raises(CheckpointError, match=r"step-000009: can't be written \(PytorchStreamWriter failed"):
        checkpoints.save(run / "checkpoints", 9, read_record(run).identity, model.state_dict(), None, {})
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


def test_the_weights_can_be_read_by_whoever_can_read_the_rest(run: Path) -> None:
    modes = {path.stat().st_mode for path in (run / "checkpoints/step-000006").iterdir()}
    assert len(modes) == 1


def test_a_run_is_trained_by_one_process_at_a_time(damaged: Path) -> None:
    record = read_record(damaged)
    with open_run(damaged, record, resume=True):
        stray = damaged / "checkpoints/.partial-000009"  # what that process is writing
        stray.mkdir()
        with pytest.raises(ValueError, match="another process is training there"):
            open_run(damaged, record, resume=True)
        assert stray.exists()
    with open_run(damaged, record, resume=True):
        assert not stray.exists()
