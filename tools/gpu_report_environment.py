"""What a GPU report ran on, to a JSON file: device, driver, versions, commit; and whether the built kernels are those.

Decides what counts as the commit: git's, and where the tree that travelled has no .git, $VGKERNELS_COMMIT, as
`git describe --always --dirty` prints it. `python -m tools.gpu_report_environment FILE`, `... --build`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "VGKERNELS_COMMIT"


def said(*command: str) -> str:
    """What a command prints; empty where there is none or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def commit() -> tuple[str, bool | None]:
    """(commit, whether the tree differs from it); ("unknown", None) where nobody says."""
    described = said("git", "describe", "--always", "--dirty", "--abbrev=12") if (ROOT / ".git").exists() else ""
    described = described or os.environ.get(COMMIT, "")
    return (described.removesuffix("-dirty"), described.endswith("-dirty")) if described else ("unknown", None)


def facts(dry_run: bool) -> dict[str, Any]:
    import torch

    name, dirty = commit()
    found: dict[str, Any] = {
        "dry_run": dry_run,
        "commit": name,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": (re.findall(r"V(\d[\d.]+)", said("nvcc", "--version")) or ["none"])[0],
        "compute_sanitizer": (re.findall(r"(\d+\.\d[\d.]*)", said("compute-sanitizer", "--version")) or ["none"])[0],
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "device": "the emulator" if dry_run else None,
    }
    if torch.cuda.is_available() and not dry_run:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_GiB": round(properties.total_memory / 2**30, 1),
            "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def build() -> int:
    """Compiles in place for this device what is older than its sources, unless what is there is of a clean commit."""
    import torch

    sys.path.insert(0, str(ROOT))
    folder, (name, dirty) = ROOT / "vgkernels", commit()
    info = folder / "_build_info.json"
    built = json.loads(info.read_text()) if info.exists() else {}
    there = (folder / "_C_cuda.abi3.so").exists() and dirty is False and built.get("commit") == name
    if there:
        print(f"the kernels there are of this commit, {name}")
    else:
        major, minor = torch.cuda.get_device_capability()
        settings = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "VGKERNELS_CUDA": "1"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        print(f"{' '.join(command)}  # {settings}", flush=True)
        if failed := subprocess.run(command, cwd=ROOT, env=os.environ | settings).returncode:
            return failed
    report = subprocess.run([sys.executable, "-m", "vgkernels.info"], cwd=ROOT, capture_output=True, text=True).stdout
    print(report)
    reason = re.search(r"^(?:cpu|cuda) kernels +(not loaded.*)", report, re.MULTILINE)
    print(f"figure: {reason[1] if reason else 'loaded' if there else 'compiled'}")
    return 1 if reason or not report else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.gpu_report_environment", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--build", action="store_true", help="compile the kernels for this device, where needed")
    parser.add_argument("--dry-run", action="store_true", help="the device is the emulator")
    given = parser.parse_args(argv)
    if given.build and not given.dry_run:
        return build()
    if given.build:
        import vgkernels._native as native

        print(f"figure: {native.kernels.name}, built where they were not")
        return 0
    found = facts(given.dry_run)
    text = json.dumps(found, indent=1)
    print(text)
    if given.file:
        given.file.write_text(text + "\n")
    if found["device"] is None:
        print("figure: no GPU")
        return 1
    print(f"figure: {found['device']}, {found['commit']}{' + changes' if found['dirty'] else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
