"""Decides what is taken away from the kernels to see whether a test notices: reads the sites off the sources and writes
a copy in which each can be switched off at run time (mutants.h). Which tests run on it is up to tools/mutations.py.

A site is a barrier, a bound check, an atomic, a mask or an index clamp. Sources are read as clang-format leaves them: a
comparison has spaces around it, a template's brackets have none.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BARRIERS = r"__syncthreads\w*|__syncwarp|__threadfence\w*|prim::grid_sync|prim::cp_async_wait<[^;]*?>"
DOORS = ("csrc/common/device_primitives.h", "csrc/common/launch.h")  # behind them is the emulator, not a kernel
ATOMICS = {"atomicAdd": "plain_add", "red_add": "plain_add", "red_add4": "plain_add", "atomicExch": "plain_exchange"}
CLAMPS = {"min": "least", "max": "most", "clamp": "clamped"}
# What a compiler needs to know can't be switched at run time. A loop to a constant is a shape, not a bound check.
FIXED = (
    r"\b(?:static_assert|if constexpr|decltype|sizeof|alignas|noexcept|__launch_bounds__|VG_SHARED|enable_if\w*) ?[(<]"
)
CONSTANT = (
    r"(?:\d[\w.']*|k[A-Z]\w*|[AEGNQRST]|VG_\w+|Tile::k\w+|\w+\.parts|int|int64_t|double|sizeof|[-+*/()<>\s,]|::)+"
)
NOTHING = r"(?:0|-1|\w+\(0\)|nullptr|T\{\}|\w+<[\w, ]+>\{\}|make_uint4\(0, 0, 0, 0\)|-\(1 << 30\))\s*[;,:)]"
EXIT = r"\s*\{?\s*(?:return|continue|break|throw)\b"


@dataclass(frozen=True)
class Site:
    file: str  # from the repository's root
    line: int
    kind: str
    text: str  # what is taken away
    source: str  # the line that it begins on
    occurrence: int = 1  # among sites of this text on such lines of the file

    @property
    def key(self) -> str:
        """What names it in committed files: no line number, which every edit above would change."""
        again = f" #{self.occurrence}" if self.occurrence > 1 else ""
        return f"{self.file}: {self.source} [{self.text}]{again}"


@dataclass(frozen=True)
class Edit:
    """Text that replaces code[begin:end]; `width` orders those at one place: what closes first, then the widest."""

    begin: int
    end: int
    text: str
    width: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        return self.begin, 0 if self.width < 0 else 2 if self.end > self.begin else 1, -self.width


def blanked(text: str) -> str:
    """The code alone: comments, strings and preprocessor lines become spaces, so that places stay."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
    code = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL | re.MULTILINE)
    for match in re.finditer(FIXED, code):
        end = (
            closing(code, match.end() - 1) if code[match.end() - 1] != " " else match.end()
        )  # blank: inside of another
        code = code[: match.end()] + re.sub(r"[^\n]", " ", code[match.end() : end]) + code[end:]
    for match in re.finditer(r"(?<!if )\bconstexpr\b", code):
        begin = re.compile(r"[;{]").search(code, match.end())
        end = begin.end() if begin and begin[0] == ";" else closing(code, begin.start()) + 1 if begin else len(code)
        code = code[: match.start()] + re.sub(r"[^\n{};]", " ", code[match.start() : end]) + code[end:]
    return code


def closing(code: str, at: int) -> int:
    """Where the bracket that opens at `at` closes."""
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    opens, closes, depth = code[at], pairs[code[at]], 0
    for i in range(at, len(code)):
        depth += (code[i] == opens) - (code[i] == closes)
        if depth == 0:
            return i
    return len(code)


def step(code: str, at: int, way: int) -> int | None:
    """The next place of an operand from `at` leftwards (way -1) or rightwards (1), over brackets; None: it ends."""
    c, before, after = code[at], code[at - 1], code[at + 1 : at + 2]
    opens, closes = ("([{", ")]}") if way > 0 else (")]}", "([{")
    if c in closes or c in ";?" or (c == "}" and after in "\n "):  # of a block; of a value something follows
        return None
    if c in opens:
        depth, i = 0, at
        while depth or i == at:
            depth += (code[i] in "([{") - (code[i] in ")]}")
            i += way
        return i
    if (
        (c == ">" if way < 0 else c == "<")
        and not (before in " -<>" and c != ">")
        and not (c == ">" and before in " -")
    ):
        depth, i = 0, at  # a template's brackets, which stand close
        while depth or i == at:
            depth += (code[i] == "<") - (code[i] == ">" and code[i - 1] != "-")
            i += way
        return i
    if c == ":" and before != ":" and after != ":":
        return None
    if c in ",=" or (c in "&|^" and (before == c or after == c or (before in " \n" and after in " \n"))):
        return None
    if c in "<>" and before in " \n" and after in " =\n":
        return None
    if c == "!" and after == "=":
        return None
    return at + way


def operand(code: str, at: int, way: int) -> int:
    """How far the operand that ends (way -1) or begins (way 1) at `at` reaches, without spaces around it."""
    i = at - 1 if way < 0 else at
    while 0 <= i < len(code) and (following := step(code, i, way)) is not None:
        i = following
    if way < 0:
        i += 1
        while word := re.compile(r"\s+|(?:return|else|do)\b|!(?=\()").match(code, i):
            i = word.end()
        return min(i, at)
    return i - len(code[at:i]) + len(code[at:i].rstrip())


def places(code: str, begin: int, end: int) -> Iterator[int]:
    """All places between but those within brackets."""
    while begin < end:
        yield begin
        begin = step(code, begin, 1) or begin + 1


def opening(code: str, at: int) -> int:
    """The parenthesis or brace around `at`, or -1."""
    depth = 0
    for i in range(at - 1, -1, -1):
        depth += (code[i] in ")]}") - (code[i] in "([{")
        if depth < 0:
            return i
    return -1


def loop_of(code: str, begin: int) -> str | None:
    """How the loop goes on whose condition the comparison at `begin` is ("" if unknown); None if it is no loop's."""
    around = opening(code, begin)
    head = re.search(r"\b(for|while) \($", code[: around + 1])
    if not head:
        return None
    if head[1] == "while":
        return re.match(r"[^;{]*", code[closing(code, around) + 1 :])[0]  # type: ignore[index]
    inside, clause = code[around + 1 : closing(code, around)], code.count(";", around, begin)
    return inside.rsplit(";", 1)[-1] if clause == 1 else None


def one_turn_more(own: str, comparison: str, bound: str, goes_on: str) -> str:
    """The condition `own comparison bound` as it is before the loop has gone on as it does, a turn too late."""
    by = re.search(r"(\w+) ([-+*])= ([^,]+)|\+\+(\w+)|(\w+)\+\+", goes_on)
    far = by[3].strip() if by and by[3] else "1"
    counter = by and (by[1] or by[4] or by[5])
    if counter and "*" in own and (not by[2] or by[2] == "+"):
        earlier = re.sub(rf"(?<![\w.>]){counter}\b", f"(int64_t({counter}) - ({far}))", own)
        return f"({earlier}) {comparison} ({bound})"
    way = "*" if by and by[2] == "*" else "+" if comparison[0] == "<" else "-"
    return f"({own}) {comparison} ({bound}) {way} ({far})"


def passes(code: str, begin: int, end: int) -> bool:
    """Whether a check that is gone counts as passed: what it guards is then done, and an early exit is not."""
    before, after = code[:begin].rstrip(), code[end:].lstrip()
    value, looked = True, False
    if before.endswith(("&&", "||")) or after.startswith(("&&", "||")):
        value, looked = before.endswith("&&") or (after.startswith("&&") and not before.endswith("||")), True
    around = begin
    while (around := opening(code, around)) >= 0 and code[around] == "(":
        if code[around - 1] == "!":
            value = not value
        if code[:around].endswith(("if ", "while ")):
            exits = re.match(EXIT, code[closing(code, around) + 1 :])
            return (
                value
                if not exits
                else code[around + 1] == "!" and closing(code, around + 2) == closing(code, around) - 1
            )
    if not looked and after.startswith("?") and re.match(r"\?\s*" + NOTHING, after):
        return False
    return value


def is_plan(file: str, code: str, at: int) -> bool:
    """Whether a place of a CUDA file runs on the host: it chooses paths and sizes, and reads no array."""
    if not file.endswith((".cu", "_cuda.h")):
        return False
    while (at := opening(code, at)) >= 0:
        head = re.split(r"[;{}]", code[:at])[-1]
        if code[at] == "{" and re.search(r"\b(?:__global__|__device__|VG_HOST_DEVICE)\b", head):
            return False
    return True


def wrap(begin: int, end: int, first: str, last: str = ")", *more: Edit) -> list[Edit]:
    return [Edit(begin, begin, first, end - begin), Edit(end, end, last, begin - end), *more]


def switches(text: str, code: str) -> Iterator[tuple[str, int, list[str], list[Edit]]]:
    """(kind, place, what its sites take away one at a time, edits): `#0` stands for the number of the first of them."""

    def said(begin: int, end: int) -> str:
        return " ".join(re.sub(r"//.*", "", text[begin:end]).split())

    for match in re.finditer(rf"\b(?:{BARRIERS})\(", code):
        begin, end = match.start(), closing(code, match.end() - 1) + 1
        yield "barrier", begin, [said(begin, end)], wrap(begin, end, "VG_MUTANT_SKIP(#0, ")
    for match in re.finditer(rf"\b(?:prim::)?({'|'.join(ATOMICS)})\(", code):
        begin, end = match.start(), closing(code, match.end() - 1) + 1
        macro = f"VG_MUTANT_ATOMIC(#0, {ATOMICS[match[1]]}, {match[0][:-1]}, "
        yield "atomic", begin, [said(begin, end)], [Edit(begin, match.end(), macro)]
    for match in re.finditer(r"\b__(?:ballot|shfl|any|all|match)\w*_sync\(", code):
        exchange = said(match.start(), closing(code, match.end() - 1) + 1)
        edits = wrap(match.end(), operand(code, match.end(), 1), "VG_MUTANT_MASK(#0, ")
        yield "mask", match.start(), [exchange], edits
    for match in re.finditer(r" & ", code):
        begin, end = operand(code, match.start(), -1), operand(code, match.end(), 1)
        if re.fullmatch(r"\(.* - 1\)|(\w+\.)?mask", code[match.end() : end]):
            middle = Edit(match.start(), match.end(), "), (")
            yield "mask", begin, [said(begin, end)], wrap(begin, end, "VG_MUTANT_BITS(#0, (", "))", middle)
    for match in re.finditer(r"(?<![\w.>])(?:std::)?(min|max|clamp)(?:<(\w+)>)?\((?!\{)", code):
        begin, end = match.start(), closing(code, match.end() - 1)
        commas = [match.end() - 1, *(at for at in places(code, match.end(), end) if code[at] == ","), end]
        arguments = [said(first + 1, last) for first, last in itertools.pairwise(commas)]
        kept = arguments[:1] if match[1] == "clamp" else [a for a in arguments if not re.fullmatch(CONSTANT, a)]
        numbers = [f"#{kept.index(a)}" if a in kept else "-1" for a in arguments[: 1 if match[1] == "clamp" else 2]]
        call = f"mutants::{CLAMPS[match[1]]}{f'<{match[2]}>' if match[2] else ''}({', '.join(numbers)}, "
        yield "clamp", begin, [f"{said(begin, end + 1)} -> {a}" for a in kept], [Edit(begin, match.end(), call)]
    for match in re.finditer(
        r"(?<=[(! ])(?:\w+(?:\.|->))*(?:inside|in|in_range)(?:\[\w+\])?(?=\)| &&| \?| \|\|)", code
    ):
        if re.search(r"(?:if \(|!|&& |\|\| |= |return |: |, )$", code[: match.start()]):
            yield "bound", match.start(), [match[0]], wrap(match.start(), match.end(), "VG_MUTANT_FLAG(#0, ")
    for match in re.finditer(r"\s(<=?|>=?)\s", code):
        begin, end = operand(code, match.start(), -1), operand(code, match.end(), 1)
        own, bound = text[begin : match.start()], text[match.end() : end]
        if not own or not bound or all(re.fullmatch(CONSTANT, side) for side in (own, bound)):
            continue
        middle = Edit(match.start(), match.end(), f"), {match[1]}, (")
        if (goes_on := loop_of(code, begin)) is not None:
            if match[1][0] == "<" and re.fullmatch(CONSTANT, bound):
                continue
            turn = f"), ({one_turn_more(own, match[1], bound, goes_on)}))"
            yield "loop", begin, [said(begin, end)], wrap(begin, end, "VG_MUTANT_TURN(#0, (", turn, middle)
        else:
            flip = "!" if passes(code, begin, end) else ""
            edits = wrap(begin, end, f"VG_MUTANT_COMPARE(#0, {flip}, (", "))", middle)
            yield "bound", begin, [said(begin, end)], edits


def mutate(file: str, text: str, first: int) -> tuple[list[Site], str]:
    """The sites of a source file, numbered from `first`, and the text with their switches, line for line."""
    sites: list[Site] = []
    edits: list[Edit] = []
    lines, seen = text.split("\n"), Counter[tuple[str, str, str]]()
    code = blanked(text)
    for kind, at, texts, own in switches(text, code):
        number = first + len(sites)
        numbered = [re.sub(r"#(\d)", lambda m, n=number: str(n + int(m[1])), edit.text) for edit in own]
        edits += [Edit(edit.begin, edit.end, new, edit.width) for edit, new in zip(own, numbered, strict=True)]
        for taken in texts:
            line = text.count("\n", 0, at) + 1
            source = re.sub(r"\s*//.*", "", lines[line - 1]).strip()
            seen[kind, taken, source] += 1
            sites.append(
                Site(file, line, "plan" if is_plan(file, code, at) else kind, taken, source, seen[kind, taken, source])
            )
    for edit in sorted(edits, key=lambda edit: edit.order, reverse=True):
        kept = text[edit.begin : edit.end]
        text = text[: edit.begin] + edit.text + "\n" * kept.count("\n") + text[edit.end :]
    return sites, f'#include "mutants.h"\n#line 1\n{text}'


def write(root: Path, to: Path, files: Sequence[str]) -> dict[int, Site]:
    """A copy of csrc at `to` in which the files have switches, beside the tests as they are; its sites by number."""
    sites: dict[int, Site] = {}
    # Each file has its own hundred numbers: a site more in one leaves what is compiled of the others.
    for first, path in enumerate(sorted(path for path in (root / "csrc").rglob("*") if path.is_file())):
        file, text = path.relative_to(root).as_posix(), path.read_text()
        if file in files and file not in DOORS:
            found, text = mutate(file, text, 100 * first)
            assert len(found) <= 100, f"{file} has {len(found)} sites"
            sites |= dict(enumerate(found, 100 * first))
        target = to / file
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    if not (to / "tests").exists():
        (to / "tests").symlink_to(root / "tests")
    return sites
