"""`python -m vgkernels_models`: `command/`, imported so that Ctrl-C and what is missing get one line.

Decides nothing else, and imports nothing heavy itself: torch alone takes seconds, in which people press Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NEEDED = {"av": "av", "PIL": "pillow", "rich": "rich", "safetensors": "safetensors", "tyro": "tyro"}


def main(arguments: Sequence[str] | None = None) -> int:
    """`command.main.run`; also 2 where a package is missing, and 130 when interrupted."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing and sys.version_info < (3, 11):
        print("vgkernels_models: expected Python 3.11 or later, which PyAV needs", file=sys.stderr)
        return 2
    if missing:
        print(
            f"vgkernels_models: {', '.join(missing)} not installed: pip install 'vgkernels[models]', "
            "or pip install '.[models]' in its folder",
            file=sys.stderr,
        )
        return 2
    try:
        from vgkernels_models.command.main import run

        return run(arguments)
    except ImportError as error:
        print(f"vgkernels_models: {error}: pip install 'vgkernels[models]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        exec("")  # or CPython ends by SIGINT, not by 130, where an exec such as namedtuple's was interrupted
        print("vgkernels_models: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
