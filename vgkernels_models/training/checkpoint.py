"""Checkpoints: safetensors weights, the optimizers' state, and a manifest that proves both whole.

Decides what is saved, how it gets to disk in one piece, and what is refused; when to save is left to the trainer.

    RUN/checkpoints/step-000500/
        weights.safetensors    the weights that are trained; model, preset, configuration and version in its metadata
        ema.safetensors        their moving average, where the run has one: what is sampled from
        resume.pt              step and optimizers, read with weights_only=True
        manifest.json          size and SHA-256 of each file, and of itself
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vgkernels
from vgkernels_models import model_class
from vgkernels_models.model import VideoModel

FORMAT, SCHEMA = "vgkernels_models", 1
KEPT = 2  # checkpoints of a run
WEIGHTS, AVERAGED, RESUME, MANIFEST = "weights.safetensors", "ema.safetensors", "resume.pt", "manifest.json"
_STEP, _PARTIAL = "step-", ".partial-"


class CheckpointError(ValueError):
    """A checkpoint or run that cannot be used; the message is one line that names the file and the reason."""


@dataclass(frozen=True)
class Identity:
    """What a model needs to be built again."""

    model: str  # a name that `create` takes
    preset: str
    config: Mapping[str, Any]


def save(
    folder: Path,
    step: int,
    identity: Identity,
    weights: Mapping[str, Tensor],
    averaged: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> Path:
    """Writes `folder`/step-000500 for step 500: whole or not at all, whenever the process or the machine stops.

    Files go to a folder of another name, are synced, and the folder is renamed; older ones but the last go then.

    Returns:
        The checkpoint's folder; one that is there already is left as it is.
    """
    target, partial = folder / f"{_STEP}{step:06d}", folder / f"{_PARTIAL}{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    if not target.exists():
        partial.mkdir()
        try:
            _write(partial, step, identity, weights, averaged, optimizers)
        except (OSError, RuntimeError) as error:  # a full disk; torch has its own for it
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{target}: can't be written ({str(error).splitlines()[0]})") from error
        partial.rename(target)
        sync(folder)
    for old in checkpoints(folder)[:-KEPT]:
        old.rename(partial)  # first, or a stop while files go would leave a checkpoint with some of them
        shutil.rmtree(partial)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder of them, oldest first, whole or not."""
    found = [path for path in folder.glob(f"{_STEP}*") if path.name.removeprefix(_STEP).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_STEP)))


def clean(folder: Path) -> None:
    """Removes what a stopped process left half-written."""
    for stray in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(stray)


def newest(run: Path) -> Path:
    """The newest checkpoint of a run; a checkpoint's own folder is taken as it is.

    Raises:
        CheckpointError: none there.
    """
    if (run / MANIFEST).exists() or run.name.startswith(_STEP):
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run")
    if not (found := checkpoints(run / "checkpoints")):
        raise CheckpointError(f"{run}: no checkpoint in it, expected {run}/checkpoints/{_STEP}...")
    return found[-1]


def load_model(run: str | Path, averaged: bool = True) -> VideoModel:
    """The model of a run (its newest checkpoint) or of one checkpoint, in evaluation mode, on the CPU.

    Args:
        run: RUN, or RUN/checkpoints/step-...
        averaged: take the moving average of the weights where there is one.

    Raises:
        CheckpointError: no run, or a file that is missing, damaged or foreign.
    """
    checkpoint = newest(Path(run))
    files = read_manifest(checkpoint)["files"]
    name = AVERAGED if averaged and AVERAGED in files else WEIGHTS
    tensors, metadata = read_weights(checkpoint, name)
    model = build(checkpoint / name, read_identity(checkpoint / name, metadata))
    fill(model, tensors, checkpoint / name)
    return model.eval()


def build(source: Path, identity: Identity) -> VideoModel:
    """A new model of this identity.

    Raises:
        CheckpointError: no such model, or a configuration that it refuses; the message begins with `source`.
    """
    try:
        cls = model_class(identity.model)
        return cls(cls.Config.preset("paper", **{name: _tuples(value) for name, value in identity.config.items()}))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{source}: no model can be made of its configuration ({error})") from error


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copies the weights in, after all of them have been found to fit.

    Raises:
        CheckpointError: names, shapes or dtypes differ; the model is as it was.
    """
    own = model.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in tensors or name not in own:
            which = "is missing" if name in own else "is none of this model's"
            raise CheckpointError(f"{source}: tensor {name} {which}")
        if (own[name].shape, own[name].dtype) != (tensors[name].shape, tensors[name].dtype):
            expected, came = ((each[name].dtype, tuple(each[name].shape)) for each in (own, tensors))
            raise CheckpointError(
                f"{source}: expected {name} to be {expected[0]} {expected[1]}, got {came[0]} {came[1]}"
            )
    model.load_state_dict(dict(tensors))


def read_identity(source: Path, metadata: Mapping[str, str]) -> Identity:
    """What the metadata of a weights file say about the model.

    Raises:
        CheckpointError: another format, or a newer schema.
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{source}: not written by vgkernels_models (its metadata name no format {FORMAT!r})")
    _check_schema(source, metadata.get("schema"))
    try:
        config = json.loads(metadata["config"])
        return Identity(metadata["model"], metadata["preset"], {**config})
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{source}: model or configuration missing from its metadata ({error})") from error


def read_weights(checkpoint: Path, name: str = WEIGHTS) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that the manifest proves whole.

    Raises:
        CheckpointError: missing, damaged or not safetensors.
    """
    import safetensors

    path = _proven(checkpoint, name, read_manifest(checkpoint)["files"])
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from error


def read_resume(checkpoint: Path) -> dict[str, Any]:
    """Step and optimizers' states: {"step": int, "optimizers": {name: state_dict}}.

    Raises:
        CheckpointError: missing, damaged or foreign.
    """
    path = _proven(checkpoint, RESUME, read_manifest(checkpoint)["files"])
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch and pickle meet in a file that others wrote
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable with weights_only=True ({reason})") from error
    if not isinstance(state, dict) or set(state) != {"step", "optimizers"}:
        raise CheckpointError(f"{path}: expected step and optimizers, got {type(state).__name__} of something else")
    if not isinstance(state["step"], int) or state["step"] < 0:
        raise CheckpointError(f"{path}: expected step to be a number of updates, got {state['step']!r}")
    return state


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest, proven whole by its own hash.

    Raises:
        CheckpointError: missing, damaged, foreign, or not that of this step.
    """
    path = checkpoint / MANIFEST
    written = _read(path, path.read_bytes)
    manifest = _read(path, lambda: json.loads(written))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not written by vgkernels_models")
    _check_schema(path, manifest.get("schema"))
    if written != _signed(manifest):
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the one that it names")
    step, files = manifest.get("step"), manifest.get("files")
    if not isinstance(step, int) or not isinstance(files, dict):
        raise CheckpointError(f"{path}: expected a step and files, got {step!r} and {type(files).__name__}")
    if checkpoint.name.startswith(_STEP) and checkpoint.name != f"{_STEP}{step:06d}":
        raise CheckpointError(f"{path}: of step {step}, in the folder of another")
    return manifest


def prove(checkpoint: Path) -> None:
    """Checks every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    files = read_manifest(checkpoint)["files"]
    for name in files:
        _proven(checkpoint, name, files)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(
    folder: Path,
    step: int,
    identity: Identity,
    weights: Mapping[str, Tensor],
    averaged: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    metadata = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "model": identity.model,
        "preset": identity.preset,
        "config": json.dumps(identity.config),
        "version": vgkernels.__version__,
        "step": str(step),
    }
    _write_tensors(folder / WEIGHTS, weights, metadata)
    if averaged is not None:
        _write_tensors(folder / AVERAGED, averaged, metadata)
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    torch.save({"step": step, "optimizers": states}, folder / RESUME)
    for path in folder.iterdir():
        path.chmod((folder / RESUME).stat().st_mode)  # safetensors leaves its files to the owner alone
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    manifest = _signed({"format": FORMAT, "schema": SCHEMA, "step": step, "files": files})
    (folder / MANIFEST).write_bytes(manifest)
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _proven(checkpoint: Path, name: str, files: Mapping[str, Any]) -> Path:
    path = checkpoint / name
    if name not in files:
        raise CheckpointError(f"{path}: not in the manifest")
    found = _read(path, lambda: _fingerprint(path))
    if found != files[name]:
        raise CheckpointError(f"{path}: damaged, expected {files[name]} as the manifest says, got {found}")
    return path


def _read(path: Path, reader: Callable[[], Any]) -> Any:
    try:
        return reader()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error


def _check_schema(path: Path, schema: Any) -> None:
    if str(schema) != str(SCHEMA):
        raise CheckpointError(
            f"{path}: expected schema {SCHEMA}, got {schema!r}: another version of vgkernels wrote it"
        )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}  # none shares memory
    try:
        save_file(apart, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _signed(manifest: Mapping[str, Any]) -> bytes:
    """The one way in which a manifest is written; so a file of other bytes with the same meaning is refused too."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps(body, indent=1) + "\n").encode()


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configurations have."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
