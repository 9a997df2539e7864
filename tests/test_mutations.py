"""Decides that the search for untested lines finds what it should, and that switched-off code does what is claimed.

The sites are those of tests/native/mutations.py; how many of the kernels' own the tests catch is measured by
tools/mutations.py (`make weekly`), and here only that each explained survivor still is in the sources.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest
from native import build, mutations

FOUND = [
    ("barrier", "__syncthreads();", ["__syncthreads()"]),
    ("barrier", "prim::cp_async_wait<Tile::kStages - 2>();", ["prim::cp_async_wait<Tile::kStages - 2>()"]),
    ("atomic", "prim::red_add(image + at, sum[f(1, 2)]);", ["prim::red_add(image + at, sum[f(1, 2)])"]),
    ("mask", "sum += __shfl_xor_sync(kAllLanes, sum, 1);", ["__shfl_xor_sync(kAllLanes, sum, 1)"]),
    ("mask", "rank = __popc(same & ((1u << lane) - 1));", ["same & ((1u << lane) - 1)"]),
    ("clamp", "n = std::min<int64_t>(kBlock, width - x);", ["std::min<int64_t>(kBlock, width - x) -> width - x"]),
    ("clamp", "n = min(a ? b : c, d);", ["min(a ? b : c, d) -> a ? b : c", "min(a ? b : c, d) -> d"]),
    ("bound", "if (i < n) out[i] = 0;", ["i < n"]),
    ("bound", "x = f<a, b>(i) >= n ? 0 : in[i];", ["f<a, b>(i) >= n"]),
    ("bound", "if (!spot.inside) return;", ["spot.inside"]),
    ("loop", "for (int i = 0; i < n; i += 4) f(i);", ["i < n"]),
    ("loop", "while (left > right) f();", ["left > right"]),
]
NOT_FOUND = (
    "for (int q = 0; q < 4; ++q) f(q);",  # a shape, not a bound
    "for (int i = 0; i < kTile / 2; ++i) f(i);",
    "template <class A, int N> constexpr int parts = N < 4 ? 1 : N;",
    "static_assert(sizeof(A) < 16);",
    "if constexpr (N > 1) f();",
    "// if (i < n) __syncthreads();",
    '#define IF if (i < n)\nconst char* text = "a < b";',
    "x = y >> 2 << z->a;",
)


def sites(text: str) -> list[mutations.Site]:
    return mutations.mutate("csrc/op/op.h", text, 0)[0]


@pytest.mark.parametrize(("kind", "text", "taken"), FOUND)
def test_what_is_found(kind: str, text: str, taken: list[str]) -> None:
    assert [(site.kind, site.text) for site in sites(text)] == [(kind, each) for each in taken]


def test_what_is_found_side_by_side() -> None:
    together = sites("\n".join(text for _, text, _ in FOUND))
    assert sorted((site.kind, site.text) for site in together) == sorted((k, t) for k, _, texts in FOUND for t in texts)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_is_left_alone(text: str) -> None:
    assert not sites(text)


@pytest.mark.parametrize(
    ("text", "later"),
    [
        ("for (int i = 0; i < n; ++i) f(i);", "(i) < (n) + (1)"),
        ("for (int64_t i = begin; i < n; i += kStep * 2) f(i);", "(i) < (n) + (kStep * 2)"),
        ("for (int i = n; i >= 0; i -= R) f(i);", "(i) >= (0) - (R)"),
        ("for (; run < most && !error; run *= 2) f(run);", "(run) < (most) * (2)"),
        ("for (int step = 0; step * kStep < n; step++) f(step);", "((int64_t(step) - (1)) * kStep) < (n)"),
        ("while (power < n) power *= 2;", "(power) < (n) * (2)"),
        ("while (left > n) {\n  left *= 2;\n}", "(left) > (n) - (1)"),
    ],
)
def test_a_loop_makes_one_turn_more(text: str, later: str) -> None:
    assert f", ({later}))" in mutations.mutate("csrc/op/op.h", text, 0)[1]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("if (i < n) f();", True),
        ("if (i >= n) return;", False),
        ("if (i >= n || !p) {\n  continue;\n}", False),
        ("a = i >= n ? 0 : f();", False),
        ("a = i < n ? f() : 0;", True),
        ("ok = p && i < n;", True),
        ("out = p || i < n;", False),
        ("if (!(i < n)) return;", True),
    ],
)
def test_a_check_that_is_gone_lets_pass(text: str, passed: bool) -> None:
    begin = text.index("i ")
    assert mutations.passes(text, begin, text.index("n", begin) + 1) is passed


def test_keys_are_one_for_each_site_and_know_no_line_numbers() -> None:
    text = "if (i < n) f();\nif (i < n) f();\n"
    keys = [site.key for site in sites(text)]
    assert len(set(keys)) == 2
    assert keys == [site.key for site in sites("\n\n" + text)]


SWITCHED = """#include <algorithm>
#include <cstdint>
extern "C" int64_t run(int what, int64_t i, int64_t n) {
  const float f = float(i), g = float(n);
  switch (what) {
    case 0:
      return i < n ? 1 : 0;
    case 1:
      return std::min(i, n);
    case 2: {
      int64_t turns = 0;
      for (int64_t k = 0; k < n; k += 3) ++turns;
      return turns;
    }
    case 3:
      if (i >= n || i < 0) return -1;
      return 7;
    default:
      return f < g ? 5 : 6;
  }
}
"""
# By the mutant that is on (None: none is) and what is run with i = 9, n = 6: the sites in the order they are found.
RUNS = {
    None: (0, 6, 2, -1, 6),
    "std::min(i, n) -> i": (0, 9, 2, -1, 6),
    "std::min(i, n) -> n": (0, 6, 2, -1, 6),
    "i < n": (1, 6, 2, -1, 6),
    "k < n": (0, 6, 3, -1, 6),
    "i >= n": (0, 6, 2, 7, 6),
    "i < 0": (0, 6, 2, -1, 6),
    "f < g": (0, 6, 2, -1, 6),  # no integers: stays as it is
}
CALL = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).run; f.restype = ctypes.c_int64; "
CALL += "print(*(f(i, ctypes.c_int64(9), ctypes.c_int64(6)) for i in range(5)))"


def test_a_switch_takes_away_one_thing_and_marks_its_place(tmp_path) -> None:
    found, text = mutations.mutate("csrc/op/op.cpp", SWITCHED, 0)
    assert [site.text for site in found] == [name for name in RUNS if name]
    assert text.count("\n") == SWITCHED.count("\n") + 2  # a line that includes, one that counts lines anew
    source, library, marks = tmp_path / "op.cpp", tmp_path / "op.so", tmp_path / "marks"
    source.write_text(text)
    try:
        command = [build._compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{build.ROOT / 'tests/native'}"]
    except build.NativeUnavailable as reason:
        pytest.skip(str(reason))
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    for number, (name, expected) in enumerate(RUNS.items(), -1):
        marks.write_bytes(bytes(1 << 15))
        environment = dict(os.environ, VGKERNELS_MUTANT=str(number), VGKERNELS_MUTANTS_REACHED=str(marks))
        done = subprocess.run(
            [sys.executable, "-c", CALL, str(library)], env=environment, capture_output=True, text=True
        )
        assert (done.stdout.split(), done.stderr) == ([str(value) for value in expected], ""), name
    reached = [place for place, mark in enumerate(marks.read_bytes()) if mark]
    integers, other = list(range(0, 2 * len(found) - 2, 2)), [2 * len(found) - 1]
    assert set(integers + other) >= set(reached) >= {0, 2, 4, 6, 8, other[0]}
    assert ctypes.sizeof(ctypes.c_int64) == 8


def test_every_explained_survivor_is_still_there() -> None:
    explained = json.loads((build.ROOT / "docs/proof/mutations_explained.json").read_text())
    reasons = explained["equivalent"] | explained["not seen by these tests"]
    known = set()
    for path in (build.ROOT / "csrc").rglob("*"):
        file = path.relative_to(build.ROOT).as_posix()
        if path.suffix in (".h", ".cu", ".cpp"):
            known |= {site.key for site in mutations.mutate(file, path.read_text(), 0)[0]}
    assert not sorted(set(reasons) - known)
    assert all(reasons.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "nosuch"], "invalid choice: 'nosuch'"),
        (["--only", "("], "'(' is no pattern"),
        (["--only", "zzzz", "--op", "flow_warp"], "no site matches --only 'zzzz' in flow_warp"),
        (["-j", "0"], "invalid choice: 0"),
    ],
)
def test_arguments_that_choose_nothing(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, build.ROOT / "tools/mutations.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
