"""Holds every kernel to its entry in kernel_budgets.json: registers, shared memory, occupancy, machine instructions.

`python tools/kernel_budgets.py` compares; `--update` lowers bounds and adds kernels, and raises a bound only with
`--reason "one line"`, which is kept beside the kernel. Rules about instructions and the limits of stack and spills are
written by hand, in the file. Compiling and naming kernels is left to compile_kernels.py, reading cubins to nvdisasm.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # as a script: tools/ is on the path, its parent is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.compile_kernels import ARCHS, Compiled, compile_all, find_nvcc, kernels, nvcc_version, readable, workers

FILE = Path(__file__).with_suffix(".json")
COLUMNS = ("registers", "shared bytes", "occupancy %")
ASSUMED_THREADS = 1024  # where a kernel has no __launch_bounds__: the largest block that may be launched


# ---- occupancy ----


class Multiprocessor(NamedTuple):
    """CUDA C++ Programming Guide, technical specifications per compute capability; the same in cuda_occupancy.h."""

    threads: int
    blocks: int
    shared: int


MULTIPROCESSOR = {
    "80": Multiprocessor(2048, 32, 164 * 1024),
    "90": Multiprocessor(2048, 32, 228 * 1024),
    "100": Multiprocessor(2048, 32, 228 * 1024),
    "120": Multiprocessor(1536, 24, 100 * 1024),
}
REGISTERS = 64 * 1024  # of a multiprocessor, in four parts; a warp's are in one part, by units of 256
RESERVED_SHARED = 1024  # of each block, by the system; shared memory is given by units of 128 bytes


def occupancy(arch: str, threads: int, registers: int, shared: int) -> int:
    """Percent of the multiprocessor's warps that can be resident, rounded down.

    Dynamic shared memory is known at the launch only, so this is what registers, static shared memory and the size of
    the block allow, and a kernel that asks for dynamic shared memory may have less.
    """
    sm = MULTIPROCESSOR[arch]
    warps = math.ceil(threads / 32)
    by_registers = 4 * (REGISTERS // 4 // (256 * math.ceil(32 * registers / 256))) // warps
    by_shared = sm.shared // (128 * math.ceil((shared + RESERVED_SHARED) / 128))
    blocks = min(sm.blocks, sm.threads // 32 // warps, by_registers, by_shared)
    return 100 * 32 * blocks * warps // sm.threads


# ---- machine code ----


class Code(NamedTuple):
    threads: int  # of the largest block
    instructions: frozenset[str]  # with their modifiers: LDG.E.128.CONSTANT


class Measured(NamedTuple):
    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spilled: int
    code: Code | None  # None without nvdisasm

    def numbers(self) -> list[int]:
        """As COLUMNS; the last one only where the size of the block is known."""
        known = [] if self.code is None else [occupancy(self.arch, self.code.threads, self.registers, self.shared)]
        return [self.registers, self.shared, *known]


def find_nvdisasm() -> str | None:
    """That of this environment, whose version is pinned, before any other."""
    ours = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    home = os.environ.get("CUDA_HOME")
    candidates = [*map(str, ours), shutil.which("nvdisasm"), f"{home}/bin/nvdisasm" if home else None]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def parse(text: str) -> dict[str, Code]:
    """By mangled name, from all that nvdisasm prints of a cubin."""
    threads, found = {}, {}
    for section in re.split(r"\n\s*\.section\s+", text):
        kind, name = re.match(r"(\.nv\.info\.|\.text\.)?([^,\s]*)", section).groups()
        if kind == ".nv.info." and (bounds := section.partition("EIATTR_MAX_THREADS\n")[2]):
            threads[name] = math.prod(int(word, 16) for word in re.findall(r"\.word\s+(0x\w+)", bounds)[:3])
        elif kind == ".text.":
            found[name] = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", section, re.M)
    return {name: Code(threads.get(name, ASSUMED_THREADS), frozenset(found[name])) for name in found}


def disassemble(nvdisasm: str, version: str, cubin: Path) -> dict[str, Code]:
    """From the cache, beside the cubin, if it has been read before."""
    kept = cubin.with_suffix(f".nvdisasm-{version}.json")
    if not kept.exists():
        text = subprocess.run([nvdisasm, str(cubin)], capture_output=True, text=True, check=True).stdout
        rows = {name: [code.threads, sorted(code.instructions)] for name, code in parse(text).items()}
        kept.write_text(json.dumps(rows))
    return {name: Code(row[0], frozenset(row[1])) for name, row in json.loads(kept.read_text()).items()}


def measure(compiled: list[Compiled], nvdisasm: str | None) -> list[Measured]:
    codes: list[dict[str, Code]] = [{} for _ in compiled]  # apart: mangled names are the same for some architectures
    if nvdisasm:
        version = release(subprocess.run([nvdisasm, "--version"], capture_output=True, text=True, check=True).stdout)
        with workers() as pool:
            codes = list(pool.map(lambda one: disassemble(nvdisasm, version, one.cubin), compiled))
    rows = [
        (row, code[row.name] if nvdisasm else None)
        for one, code in zip(compiled, codes, strict=True)
        for row in kernels(one.log)
    ]
    names = readable([row.name for row, _ in rows])
    return [
        Measured(name, row.arch, row.registers, row.shared, row.stack, row.spilled, code)
        for name, (row, code) in zip(names, rows, strict=True)
    ]


def release(version: str) -> str:
    return (re.findall(r"\bV(\d+\.\d+\.\d+)", version) or ["unknown"])[0]


# ---- comparison ----


def excess(allowed: list[int], came: list[int]) -> list[str]:
    """What exceeds, column by column: registers and shared memory are at most, occupancy at least what is allowed."""
    return [
        f"{came[i]} {COLUMNS[i]}, {'at least' if i == 2 else 'at most'} {allowed[i]} allowed"
        for i in range(len(came))
        if (came[i] < allowed[i] if i == 2 else came[i] > allowed[i])
    ]


def broken_rules(rule: dict[str, Any], kernel: Measured) -> list[str]:
    assert kernel.code
    faults = []
    for pattern in rule.get("must", []):
        if not any(re.match(pattern, one) for one in kernel.code.instructions):
            like = sorted(one for one in kernel.code.instructions if one.startswith(re.split(r"\W", pattern)[0]))
            faults.append(f"no {pattern} ({rule['why']}), but {', '.join(like) or 'nothing alike'}")
    for pattern in rule.get("must_not", []):
        if found := sorted(one for one in kernel.code.instructions if re.match(pattern, one)):
            faults.append(f"{', '.join(found)}, not allowed ({rule['why']})")
    return faults


def governs(rule: dict[str, Any], kernel: Measured) -> bool:
    return kernel.arch in rule.get("archs", ARCHS) and bool(re.match(rule["kernels"], kernel.name))


def compare(budgets: dict[str, Any], measured: list[Measured]) -> list[str]:
    """One line for each fault."""
    faults, entries, seen = [], budgets["kernels"], set()
    for kernel in measured:
        head, entry = f"{kernel.name} sm_{kernel.arch}: ", entries.get(kernel.name, {}).get(kernel.arch)
        if (kernel.name, kernel.arch) in seen:
            faults.append(f"{head}two kernels have this name")
        seen.add((kernel.name, kernel.arch))
        if entry is None:
            came = zip(kernel.numbers(), COLUMNS, strict=False)
            faults.append(f"{head}no entry; came: {', '.join(f'{number} {column}' for number, column in came)}")
        else:
            faults += [head + line for line in excess(entry, kernel.numbers())]
        for what, allowed in budgets["all"].items():
            if getattr(kernel, what) > allowed:
                faults.append(f"{head}{getattr(kernel, what)} bytes {what}, {allowed} allowed")
        if kernel.code:
            rules = [rule for rule in budgets["instructions"] if governs(rule, kernel)]
            faults += [head + line for rule in rules for line in broken_rules(rule, kernel)]
    stale = [(name, arch) for name in entries for arch in ARCHS if arch in entries[name] and (name, arch) not in seen]
    faults += [f"{name} sm_{arch}: an entry without a kernel" for name, arch in stale]
    for rule in budgets["instructions"]:
        if not any(governs(rule, kernel) for kernel in measured):
            faults.append(f"{rule['kernels']}: a rule without a kernel ({rule['why']})")
    return faults


# ---- update ----


def update(budgets: dict[str, Any], measured: list[Measured], reason: str) -> tuple[dict[str, Any], list[str]]:
    """(what was measured as the new bounds, what would be raised without a reason)."""
    refused, entries = [], {}
    for kernel in sorted(measured, key=lambda kernel: (kernel.name, kernel.arch)):
        old = budgets["kernels"].get(kernel.name, {})
        entry = entries.setdefault(kernel.name, {"raised": old["raised"]} if "raised" in old else {})
        entry[kernel.arch] = kernel.numbers()
        if raised := excess(old.get(kernel.arch, kernel.numbers()), kernel.numbers()):
            refused += [] if reason else [f"{kernel.name} sm_{kernel.arch}: {line}" for line in raised]
            entry["raised"] = reason
    return {**budgets, "kernels": entries}, refused


def written(budgets: dict[str, Any]) -> str:
    """JSON, one line to a kernel and to a rule."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    def ordered(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: entry[key] for key in (*ARCHS, "raised") if key in entry}

    rules = ",\n".join(f"    {line(rule)}" for rule in budgets["instructions"])
    rows = ",\n".join(f"    {line(name)}: {line(ordered(entry))}" for name, entry in sorted(budgets["kernels"].items()))
    head = "".join(
        f"  {line(key)}: {line(value)},\n" for key, value in budgets.items() if key not in ("instructions", "kernels")
    )
    return f'{{\n{head}  "instructions": [\n{rules}\n  ],\n  "kernels": {{\n{rows}\n  }}\n}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="make what was measured the bounds")
    parser.add_argument("--reason", help="one line: why bounds may be raised")
    arguments = parser.parse_args()
    reason = " ".join((arguments.reason or "").split())
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None:
        print("budgets: SKIPPED, there is no nvcc here")
        return 0
    if not nvdisasm:
        print("budgets: occupancy and instructions NOT CHECKED, no nvdisasm: pip install nvidia-cuda-nvdisasm")
        if arguments.update or os.environ.get("CI") == "true":
            return 1
    if not shutil.which("c++filt"):
        print("budgets: c++filt is missing (Debian, Ubuntu: apt install binutils)", file=sys.stderr)
        return 1
    compiled = compile_all(nvcc)
    if not all(one.good for one in compiled):
        print("budgets: not compared, as not all kernels compile: python tools/compile_kernels.py", file=sys.stderr)
        return 1
    budgets, measured = json.loads(FILE.read_text()), measure(compiled, nvdisasm)
    version = release(nvcc_version(nvcc))
    if arguments.update:
        budgets, refused = update({**budgets, "nvcc": version}, measured, reason)
        if refused:
            print(*refused, 'budgets: nothing written; raising needs --reason "one line"', sep="\n", file=sys.stderr)
            return 1
        FILE.write_text(written(budgets))
    faults = compare(budgets, measured)
    if faults and version != budgets["nvcc"]:
        faults.append(f"(the bounds are those of nvcc {budgets['nvcc']}; this is {version})")
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    print(f"budgets: {len(measured)} kernels, {len(budgets['instructions'])} rules, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
