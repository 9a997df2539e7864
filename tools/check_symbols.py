"""Checks built libraries: nothing of CPython inside, no CUDA runtime to find, no kernel declared but never written.

`python tools/check_symbols.py vgkernels/_C.abi3.so ...`; exit code 1 and one line for each fault. Uses nm and readelf.
"""

import re
import subprocess
import sys

FORBIDDEN_LIBRARIES = r"lib(python|torch_python|torch_cuda|c10_cuda|cudart)\b\S*"


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def faults(library: str) -> list[str]:
    """What is wrong with the library, in words."""
    undefined = [line.split(maxsplit=1)[-1] for line in _lines("nm", "-DC", "--undefined-only", library)]
    found = [f"needs CPython's {name}" for name in undefined if re.match(r"U _?Py[A-Z_]", name)]
    found += [f"{name[2:]} is declared and called but not defined" for name in undefined if "vgkernels::" in name]
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", "\n".join(_lines("readelf", "-d", library)))
    return found + [f"links {name}" for name in needed if re.match(FORBIDDEN_LIBRARIES, name)]


if __name__ == "__main__":
    all_faults = [f"{library}: {fault}" for library in sys.argv[1:] for fault in faults(library)]
    print("\n".join(all_faults) or f"symbols ok: {' '.join(sys.argv[1:])}")
    sys.exit(bool(all_faults))
