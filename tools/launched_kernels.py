"""Which CUDA kernels the tests have run on the emulator: python tools/launched_kernels.py FILE, where FILE is what
VGKERNELS_LAUNCHED named while they ran (tests/native/cuda_emu_launched.h).

Compares with the kernels of kernel_budgets.json, every template instantiation that nvcc makes, keeps the outcome in
docs/proof/launched.json, and exits 1 if one of them was never launched.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.compile_kernels import readable  # noqa: E402
from tools.proof import BUDGETS, LAUNCHED, here  # noqa: E402


def launched(lines: Iterable[str]) -> set[str]:
    """Readable names of what lies at "LIBRARY OFFSET" lines."""
    offsets = defaultdict(set)
    for line in lines:
        library, offset = line.rsplit(" ", 1)
        offsets[library].add(int(offset, 16))
    symbols = []
    for library, wanted in sorted(offsets.items()):
        listed = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True).stdout
        places = [line.split(" ", 2) for line in listed.splitlines()]
        symbols += [name for place, _, name in places if int(place, 16) in wanted]
    return set(readable(symbols))


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    kernels = sorted(json.loads((ROOT / BUDGETS).read_text())["kernels"])
    found = launched(Path(sys.argv[1]).read_text().splitlines())
    missing = [name for name in kernels if name not in found]
    for name in missing:
        print(f"never launched: {name}")
    print(f"launched_kernels: {len(kernels) - len(missing)} of {len(kernels)} kernels")
    run = {"date": str(datetime.date.today()), **here(ROOT), "kernels": len(kernels), "missing": missing}
    (ROOT / LAUNCHED).write_text(json.dumps(run, indent=1) + "\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
