"""The rules of ARCHITECTURE.md that can be read off the sources: who may include, import and write what, and how long.

`violations` checks any tree; the tests run it on this one, and on small trees with one planted fault for each rule.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("csrc", "vgkernels", "vgkernels_models", "tests", "benchmarks", "tools")
MAX_LINES, MAX_COLUMNS = 400, 120
TORCH_DOORS = (
    "common/module.cpp",
    "common/check.h",
    "common/library.h",
    "common/tensor_bridge.h",
)  # and every <op>_ops.cpp
MODEL_ROOTS = ("model", "training", "data", "metrics", "report", "blocks")  # what serves all models
RAW_CUDA = r"<<<|\b__shared__\b|\b(__)?asm(__)?\b"
CUDA_DOORS = ("common/launch.h", "common/device_primitives.h")


def imports(path: Path, package: str) -> Iterator[str]:
    """Absolute dotted names of all that a Python file imports, at any depth; `from . import x` gives package.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def python_violations(root: Path) -> Iterator[str]:
    for layer, forbidden in (
        ("vgkernels", {"vgkernels_models", "tests", "benchmarks"}),
        ("vgkernels_models", {"tests", "benchmarks"}),
        ("benchmarks", {"tests"}),
    ):
        for path in sorted((root / layer).rglob("*.py")):
            inside = path.relative_to(root)
            for name in imports(path, ".".join(inside.parts[:-1])):
                parts = name.split(".")
                if parts[0] in forbidden:
                    yield f"{inside} imports {name}"
                is_room = len(inside.parts) == 2 and not inside.stem.startswith("_")
                other_room = len(parts) > 1 and parts[0] == layer and parts[1] != inside.stem
                if layer == "vgkernels" and is_room and other_room and (root / "csrc" / parts[1]).is_dir():
                    yield f"op {inside} imports the op {name}"
                is_model = is_room and inside.stem not in MODEL_ROOTS and f'"{inside.stem}' in registry(root)
                if layer == "vgkernels_models" and is_model and other_room and f'"{parts[1]}' in registry(root):
                    yield f"model {inside} imports the model {name}"


def registry(root: Path) -> str:
    path = root / "vgkernels_models/__init__.py"
    return path.read_text() if path.exists() else ""


def cpp_violations(root: Path) -> Iterator[str]:
    csrc = root / "csrc"
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in (".h", ".cpp", ".cu")):
        name, room = path.relative_to(csrc).as_posix(), path.parent.name
        code = re.sub(r"//.*", "", path.read_text())
        door = name in TORCH_DOORS or name.endswith("_ops.cpp")
        for included in re.findall(r'#\s*include\s*[<"]([^>"]+)', code):
            if re.match(r"(torch|ATen|c10|pybind11)/|Python\.h", included) and not door:
                yield f"csrc/{name} includes {included}: torch stays behind *_ops.cpp and {', '.join(TORCH_DOORS)}"
            if included in TORCH_DOORS and not door:
                yield f"csrc/{name} includes {included}, which includes torch"
            if (csrc / included).exists() and included.split("/")[0] not in ("common", room):
                yield f"csrc/{name} includes another op's {included}"
        if name not in CUDA_DOORS and (found := re.search(RAW_CUDA, code)):
            yield f"csrc/{name} writes {found[0]}: only {', '.join(CUDA_DOORS)} do, so that the emulator sees it"


def size_violations(root: Path) -> Iterator[str]:
    files = [path for folder in SOURCES for path in sorted((root / folder).rglob("*"))] + [root / "setup.py"]
    for path in files:
        if path.suffix not in (".py", ".h", ".cpp", ".cu", ".sh") or not path.is_file():
            continue
        lines = path.read_text().splitlines()
        if len(lines) > MAX_LINES:
            yield f"{path.relative_to(root)} has {len(lines)} lines: the room wants a second file"
        if long := [number for number, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS]:
            yield f"{path.relative_to(root)}:{long[0]} is longer than {MAX_COLUMNS} columns"


def violations(root: Path) -> list[str]:
    return [*python_violations(root), *cpp_violations(root), *size_violations(root)]


def test_the_rules_hold() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


PLANTED = {
    "vgkernels/op_a.py": [
        ("import vgkernels_models.tgan", "imports vgkernels_models.tgan"),
        ("def f():\n    from tests import op_suite", "imports tests.op_suite"),
        ("from .op_b import b", "op vgkernels/op_a.py imports the op vgkernels.op_b.b"),
        ("from vgkernels import op_b", "imports the op vgkernels.op_b"),
        ("x = 1\n" * 401, "has 401 lines"),
        ("x = '" + "y" * 120 + "'", "is longer than 120 columns"),
    ],
    "vgkernels_models/one.py": [
        ("from .two import Two", "model vgkernels_models/one.py imports the model vgkernels_models.two.Two"),
        ("from benchmarks import harness", "imports benchmarks.harness"),
    ],
    "csrc/op_a/op_a_cuda.cu": [
        ("#include <torch/csrc/stable/tensor.h>", "torch stays behind"),
        ('#include "common/tensor_bridge.h"', "which includes torch"),
        ('#include "op_b/op_b.h"', "includes another op's op_b/op_b.h"),
        ("void f() { k<<<1, 1>>>(); }", "writes <<<"),
        ("__shared__ float x[4];", "writes __shared__"),
        ('asm volatile("");', "writes asm"),
    ],
    "csrc/op_a/op_a_cpu.cpp": [("#include <ATen/ATen.h>", "torch stays behind")],
}


@pytest.mark.parametrize(
    ("path", "text", "expected"), [(path, *fault) for path, faults in PLANTED.items() for fault in faults]
)
def test_a_planted_fault_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    clean = {
        "setup.py": "",
        "vgkernels/op_a.py": "from . import _checks",
        "vgkernels/op_b.py": "b = 1",
        "vgkernels_models/__init__.py": 'MODELS = {"one": "one:One", "two": "two:Two"}',
        "vgkernels_models/one.py": "from .model import VideoModel\nfrom vgkernels import op_a",
        "vgkernels_models/two.py": "",
        "csrc/common/tensor_bridge.h": "#include <torch/csrc/stable/tensor.h>",
        "csrc/common/launch.h": "#define VG_SHARED __shared__",
        "csrc/op_a/op_a_cuda.cu": '#include "op_a/op_a.h"  // not __shared__',
        "csrc/op_a/op_a_ops.cpp": "#include <torch/csrc/stable/library.h>",
        "csrc/op_a/op_a.h": '#include "common/launch.h"',
        "csrc/op_b/op_b.h": "",
    }
    for name, content in clean.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert not violations(tmp_path)
    (tmp_path / path).write_text(text)
    found = violations(tmp_path)
    assert len(found) == 1
    assert expected in found[0]
