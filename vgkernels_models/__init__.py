"""Video models, and the data, scores and reports that serve them all, built on the ops of `vgkernels`.

Decides the models' names; imports nothing until a model is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from vgkernels_models.model import VideoModel

MODELS = {
    "mocogan": "mocogan:MoCoGAN",
    "tgan": "tgan:TGAN",
    "vgan": "vgan:VGAN",
}  # name -> "module:class"


def list_models() -> list[str]:
    """The names that `create` takes."""
    return sorted(MODELS)


def model_class(name: str) -> type[VideoModel]:
    """The class of this name.

    Raises:
        ValueError: no model of this name.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; perhaps you meant {close[0]}" if close else ""
        raise ValueError(f"expected a model out of {', '.join(list_models())}, got {name!r}{hint}")
    module, _, class_name = MODELS[name].partition(":")
    return getattr(importlib.import_module(f"vgkernels_models.{module}"), class_name)


def create(name: str, preset: str = "paper", **changes: Any) -> VideoModel:
    """A new model of random weights.

    Args:
        name: one of `list_models()`.
        preset: "paper", "small" or "tiny".
        changes: fields of the model's `Config`.

    Raises:
        ValueError: no such model, preset or field.

    >>> create("tgan", preset="tiny", channels=1).sample(2).shape
    torch.Size([2, 1, 16, 32, 32])
    """
    cls = model_class(name)
    return cls(cls.Config.preset(preset, **changes))


def load(run: str | Path) -> VideoModel:
    """The model of a run (or one of its checkpoints), as it was last saved, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: no run, or files that are damaged or foreign; the message names file and reason.
    """
    from vgkernels_models.training.checkpoint import load_model

    return load_model(run)
