"""Which command is meant, and what becomes of errors: one line and exit code 2 for all that the user can set right.

Decides that and the help of the whole; each command's flags are in its own file.
"""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vgkernels_models import list_models, model_class
from vgkernels_models.command.demo import demo
from vgkernels_models.command.evaluate import evaluate_run
from vgkernels_models.command.flags import PROGRAM
from vgkernels_models.command.sample import sample
from vgkernels_models.command.train import train
from vgkernels_models.report.encode import EncodeError
from vgkernels_models.training.trainer import NonFinite

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # often without a file's name
_HELP = f"""usage: {PROGRAM} COMMAND ...

  list              the models and their presets
  train MODEL       learn from a folder of videos, an installed clip or a generator
  sample RUN        write clips of a trained model
  evaluate RUN      scores and a report
  demo              all three on a real clip, in a few minutes

{PROGRAM} COMMAND --help (train MODEL --help) lists its flags.
Models: {", ".join(list_models())}
"""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 2 for what the user can set right, 1 where training broke down."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except SystemExit as exit_:  # tyro and argparse have said why
        return exit_.code if isinstance(exit_.code, int) else 2
    except NonFinite as error:
        return _fail(error, 1)
    except (ValueError, EncodeError) as error:
        if not _is_ours(error):
            raise
        return _fail(error, 2)
    except OSError as error:
        if not error.filename and error.errno not in _NO_ROOM:
            raise
        return _fail(f"{error.filename or 'writing'}: {error.strerror or error}", 2)
    except torch.OutOfMemoryError as error:
        return _fail(f"{str(error).splitlines()[0]} A smaller --preset or --batch-size needs less.", 2)


def _dispatch(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "train": _train,
        "sample": sample,
        "evaluate": evaluate_run,
        "demo": demo,
    }
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] not in commands:
        raise ValueError(
            f"expected a command out of {', '.join(commands)}, got {words[0]!r}{_hint(words[0], commands)}"
        )
    return commands[words[0]](words[1:])


def _train(words: list[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if not words or words[0].startswith("-"):
        raise ValueError(f"train: expected a model first: {PROGRAM} train {{{', '.join(list_models())}}} ...")
    return train(words[0], words[1:])


def _list(words: list[str]) -> int:
    if words:
        raise ValueError(f"list: expected nothing more, got {words[0]!r}")
    for name in list_models():
        cls = model_class(name)
        headline = (sys.modules[cls.__module__].__doc__ or name).strip().splitlines()[0]
        print(f"{name:10} {headline}  [{', '.join(cls.Config.PRESETS)}]")
    return 0


def _hint(word: str, known: dict[str, Callable[[list[str]], int]]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; perhaps you meant {close[0]}" if close else ""


def _is_ours(error: Exception) -> bool:
    """Whether our own check raised it: what comes from deeper down is a fault of ours, and keeps its traceback."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    packages = {Path(__file__).parents[1], Path(__file__).parents[2] / "vgkernels"}
    return trace is not None and not packages.isdisjoint(Path(trace.tb_frame.f_code.co_filename).parents)


def _fail(message: object, code: int) -> int:
    print(f"vgkernels_models: {' '.join(str(message).split())}", file=sys.stderr)
    return code
