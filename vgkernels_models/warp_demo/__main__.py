"""`python -m vgkernels_models.warp_demo`: `command.py`, imported so that Ctrl-C and what is missing get one line.

Decides nothing else, and imports nothing heavy itself: torch alone takes seconds, in which people press Ctrl-C.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """`command.run`; also 2 where a package is missing, and 130 when interrupted."""
    try:
        from vgkernels_models.warp_demo.command import run

        return run(arguments)
    except ImportError as error:
        print(f"warp_demo: {error}: pip install 'vgkernels[demo]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        exec("")  # or CPython ends by SIGINT, not by 130, where an exec such as namedtuple's was interrupted
        print("warp_demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
