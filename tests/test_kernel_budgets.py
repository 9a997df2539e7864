"""tools/kernel_budgets.py on made-up kernels, without nvcc: each excess is found, raising wants a reason, occupancy is
NVIDIA's. What the real kernels use is for `make kernels` to compare.
"""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native.build import NativeUnavailable, cuda_include

from tools import compile_kernels, kernel_budgets
from tools.kernel_budgets import COLUMNS, MULTIPROCESSOR, Code, Measured, compare, occupancy, parse, update, written

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'warp' for 'sm_{arch}'
ptxas info    : Function properties for warp
    {stack} bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
"""
DISASSEMBLED = """	.target	sm_90
	.section	.nv.info.warp,"",@"SHT_CUDA_INFO"
	//----- nvinfo : EIATTR_REGCOUNT
        /*0008*/ 	.word	0x00000028
	//----- nvinfo : EIATTR_MAX_THREADS
        /*0044*/ 	.byte	0x04, 0x05
        /*0046*/ 	.short	(.L_297 - .L_296)
.L_296:
        /*0048*/ 	.word	0x00000020
        /*004c*/ 	.word	0x00000004
        /*0050*/ 	.word	0x00000002
	//----- nvinfo : EIATTR_CRS_STACK_SIZE
        /*0058*/ 	.word	0x00000000

//--------------------- .text.warp
	.section	.text.warp,"ax",@progbits
	.align	128
warp:
.text.warp:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/             @!UP1 STG.E.128 desc[UR4][R2.64], R4 ;
.L_x_0:
        /*0030*/                   {more} R4, R8, R12, R4 ;
	.section	.text.unbounded,"ax",@progbits
        /*0000*/                   EXIT ;
"""


@pytest.fixture
def budgets() -> dict:
    return {
        "all": {"stack": 0, "spilled": 0},
        "nvcc": "13.0.88",
        "instructions": [
            {"kernels": "", "must_not": ["LDL|STL"], "why": "registers"},
            {"kernels": "warp<float", "must": ["LDG\\.E\\.128"], "must_not": ["DFMA"], "why": "16 bytes"},
        ],
        "kernels": {"warp<float>": {arch: [38, 1024, 75 if arch != "120" else 100] for arch in MULTIPROCESSOR}},
    }


@pytest.fixture
def measured() -> list[Measured]:
    code = Code(256, frozenset({"LDG.E.128.CONSTANT", "FFMA"}))
    return [Measured("warp<float>", arch, 38, 1024, 0, 0, code) for arch in MULTIPROCESSOR]


def changed(measured: list[Measured], on: str, code: dict | None = None, **fields) -> list[Measured]:
    if code:
        fields["code"] = measured[0].code._replace(**code)
    return [kernel._replace(**fields) if kernel.arch == on else kernel for kernel in measured]


# ---- reading ----


def test_the_log_of_ptxas_is_read() -> None:
    log = LOG.format(arch="90", stack=16, spilled=8, registers=40, shared=64)
    assert compile_kernels.kernels(log) == [compile_kernels.Kernel("warp", "90", 40, 8, 64, 16)]


def test_the_machine_code_is_read() -> None:
    code = parse(DISASSEMBLED.format(more="LDL.64"))
    assert code["warp"] == Code(256, frozenset({"LDC", "LDG.E.128", "STG.E.128", "LDL.64"}))
    assert code["unbounded"] == Code(1024, frozenset({"EXIT"})), "without __launch_bounds__ any block may come"


# ---- comparing ----


def test_what_is_within_its_bounds_passes(budgets: dict, measured: list[Measured]) -> None:
    assert not compare(budgets, measured)
    assert not compare(budgets, changed(measured, "90", registers=32, shared=0))
    assert not compare(budgets, [kernel._replace(code=None) for kernel in measured]), "nvdisasm may be missing"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"registers": 39}, "warp<float> sm_90: 39 registers, at most 38 allowed"),
        ({"registers": 39, "code": None}, "warp<float> sm_90: 39 registers, at most 38 allowed"),
        ({"shared": 1028}, "warp<float> sm_90: 1028 shared bytes, at most 1024 allowed"),
        ({"stack": 8}, "warp<float> sm_90: 8 bytes stack, 0 allowed"),
        ({"spilled": 4}, "warp<float> sm_90: 4 bytes spilled, 0 allowed"),
        ({"code": {"threads": 1024}}, "warp<float> sm_90: 50 occupancy %, at least 75 allowed"),
        ({"code": {"instructions": {"LDG.E.64"}}}, "warp<float> sm_90: no LDG\\.E\\.128 (16 bytes), but LDG.E.64"),
        ({"code": {"instructions": {"LDG.E.128", "STL.64"}}}, "warp<float> sm_90: STL.64, not allowed (registers)"),
        ({"code": {"instructions": {"LDG.E.128", "DFMA.RM"}}}, "warp<float> sm_90: DFMA.RM, not allowed (16 bytes)"),
        ({"name": "flow"}, "flow sm_90: no entry; came: 38 registers, 1024 shared bytes, 75 occupancy %"),
        ({"arch": "120"}, "warp<float> sm_120: two kernels have this name"),
    ],
)
def test_an_excess_is_found(budgets: dict, measured: list[Measured], change: dict, expected: str) -> None:
    found = compare(budgets, changed(measured, "90", **change))
    assert expected in found
    moved = {"name", "arch"} & change.keys()  # then its own entry has no kernel, too
    assert found == [expected, *(["warp<float> sm_90: an entry without a kernel"] if moved else [])]


def test_an_entry_or_a_rule_without_a_kernel_is_found(budgets: dict, measured: list[Measured]) -> None:
    budgets["kernels"]["gone"] = {"80": [1, 0, 100]}
    budgets["instructions"].append({"kernels": "lost", "must": ["HMMA"], "why": "tensor cores"})
    assert compare(budgets, measured) == [
        "gone sm_80: an entry without a kernel",
        "lost: a rule without a kernel (tensor cores)",
    ]


def test_a_rule_may_be_for_some_architectures(budgets: dict, measured: list[Measured]) -> None:
    budgets["instructions"].append({"kernels": "warp", "archs": ["90"], "must": ["REDG"], "why": "four at once"})
    assert compare(budgets, measured) == ["warp<float> sm_90: no REDG (four at once), but nothing alike"]


# ---- updating ----


def test_lowering_and_adding_are_free(budgets: dict, measured: list[Measured]) -> None:
    budgets["kernels"]["gone"] = {"80": [1, 0, 100]}
    lower = [*changed(measured, "90", registers=32), measured[0]._replace(name="new")]
    after, refused = update(budgets, lower, "")
    assert not refused
    assert after["kernels"]["warp<float>"] == {**budgets["kernels"]["warp<float>"], "90": [32, 1024, 100]}
    assert after["kernels"]["new"] == {"80": [38, 1024, 75]}
    assert after["kernels"].keys() == {"warp<float>", "new"}, "an entry without a kernel goes"


@pytest.mark.parametrize("change", [{"registers": 39}, {"shared": 2048}, {"code": {"threads": 1024}}])
def test_raising_wants_a_reason(budgets: dict, measured: list[Measured], change: dict) -> None:
    higher = changed(measured, "90", **change)
    _, refused = update(budgets, higher, "")
    assert refused == compare(budgets, higher)
    assert len(refused) == 1
    after, refused = update(budgets, higher, "two rows at a time")
    assert not refused
    assert after["kernels"]["warp<float>"]["raised"] == "two rows at a time"
    assert not compare(after, higher)
    after, _ = update(after, measured, "")
    assert after["kernels"]["warp<float>"]["raised"] == "two rows at a time", "it is kept"


def test_a_kernel_or_a_rule_is_one_line_of_the_file(budgets: dict) -> None:
    text = written(budgets)
    assert json.loads(text) == budgets
    assert sum("warp<float" in line for line in text.splitlines()) == 2


def test_the_committed_file() -> None:
    budgets = json.loads(kernel_budgets.FILE.read_text())
    assert written(budgets) == kernel_budgets.FILE.read_text(), "as --update writes it"
    assert budgets["all"] == {"stack": 0, "spilled": 0}
    assert tuple(budgets["columns"]) == COLUMNS
    for rule in budgets["instructions"]:
        assert rule["why"]
        assert rule.get("must") or rule.get("must_not")
        for pattern in (rule["kernels"], *rule.get("must", []), *rule.get("must_not", [])):
            re.compile(pattern)
    for name, entry in budgets["kernels"].items():
        assert entry.keys() - {"raised"} == set(compile_kernels.ARCHS), name
        assert all(len(entry[arch]) == len(COLUMNS) and entry[arch][2] > 0 for arch in compile_kernels.ARCHS), name
        assert "\n" not in entry.get("raised", "")


# ---- the command ----


@pytest.fixture
def command(tmp_path: Path, budgets: dict, monkeypatch: pytest.MonkeyPatch):
    """kernel_budgets.main with these arguments, registers and last instruction; nvcc and nvdisasm are shell scripts."""
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\n[ "$1" = --version ] && echo V13.0.88 || cat "$1"\n')
    tool.chmod(0o755)
    file = tmp_path / "kernel_budgets.json"
    kernel = budgets["kernels"].pop("warp<float>")
    budgets["instructions"][1]["kernels"] = "warp"
    file.write_text(written({**budgets, "kernels": {"warp": kernel}}))
    runs = itertools.count()

    def run(*arguments: str, registers: int = 38, more: str = "FFMA", nvcc: bool = True, nvdisasm: bool = True) -> int:
        compiled = []
        number = next(runs)
        for arch in MULTIPROCESSOR:
            cubin = tmp_path / f"warp.sm_{arch}.{number}.cubin"
            cubin.write_text(DISASSEMBLED.replace("{more}", more if arch == "80" else "FFMA"))
            log = LOG.format(arch=arch, stack=0, spilled=0, registers=registers, shared=1024)
            compiled.append(compile_kernels.Compiled(True, log, cubin))
        monkeypatch.setattr(kernel_budgets, "FILE", file)
        monkeypatch.setattr(kernel_budgets, "find_nvcc", lambda: str(tool) if nvcc else None)
        monkeypatch.setattr(kernel_budgets, "find_nvdisasm", lambda: str(tool) if nvdisasm else None)
        monkeypatch.setattr(kernel_budgets, "compile_all", lambda _: compiled)
        monkeypatch.setattr("sys.argv", ["kernel_budgets.py", *arguments])
        return kernel_budgets.main()

    monkeypatch.delenv("CI", raising=False)
    run.file = file
    return run


def test_the_command_compares_and_updates(command, capsys: pytest.CaptureFixture[str]) -> None:
    before = command.file.read_text()
    assert command() == 0
    assert command(registers=39) == 1
    assert "warp sm_90: 39 registers, at most 38 allowed" in capsys.readouterr().err
    assert command("--update", registers=39) == 1
    assert "nothing written" in capsys.readouterr().err
    assert command.file.read_text() == before
    assert command("--update", "--reason", "two rows\nat a time", registers=39) == 0
    assert json.loads(command.file.read_text())["kernels"]["warp"]["raised"] == "two rows at a time"
    assert command(registers=39) == 0
    assert command("--update") == 0
    assert command(registers=39) == 1


def test_each_architecture_has_its_own_code(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(more="LDL.64") == 1
    assert capsys.readouterr().err == "warp sm_80: LDL.64, not allowed (registers)\n"


def test_missing_tools_are_named(command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(nvcc=False) == 0
    assert "SKIPPED, there is no nvcc" in capsys.readouterr().out
    assert command(nvdisasm=False, more="LDL") == 0
    assert "no nvdisasm" in capsys.readouterr().out
    assert command(nvdisasm=False, registers=39) == 1, "the rest is checked"
    assert command("--update", nvdisasm=False) == 1
    monkeypatch.setenv("CI", "true")
    assert command(nvdisasm=False) == 1


def test_machine_code_is_read_once(command, tmp_path: Path) -> None:
    assert command() == 0
    cubin = next(tmp_path.glob("warp.sm_90.*.cubin"))
    read = kernel_budgets.disassemble("no such tool", "13.0.88", cubin)
    assert read == parse(cubin.read_text())


# ---- occupancy ----


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks"),
    [
        ("90", 256, 32, 0, 8),  # 64 K registers: all 2048 threads
        ("90", 256, 33, 0, 6),  # a warp takes registers by 256
        ("80", 256, 128, 0, 2),
        ("100", 1024, 64, 0, 1),
        ("120", 1024, 16, 0, 1),  # 1536 threads
        ("90", 32, 16, 0, 32),
        ("120", 32, 16, 0, 24),
        ("80", 256, 32, 163 * 1024, 1),  # 164 KiB, of which a block leaves one to the system
        ("80", 256, 32, 164 * 1024, 0),
        ("90", 256, 32, 227 * 1024, 1),
        ("90", 256, 32, 75 * 1024, 3),
        ("90", 256, 32, 75 * 1024 + 1, 2),  # by 128 bytes
        ("120", 256, 32, 99 * 1024, 1),
        ("120", 256, 32, 99 * 1024 + 1, 0),
        ("90", 96, 168, 0, 4),  # 12 warps: three in each of four parts
    ],
)
def test_occupancy(arch: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert occupancy(arch, threads, registers, shared) == 100 * blocks * threads // MULTIPROCESSOR[arch].threads


CALCULATOR = """
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
  cudaOccDeviceProp device;
  cudaOccFuncAttributes kernel;
  cudaOccDeviceState state;
  cudaOccResult result;
  int arch, threads, shared;
  device.maxThreadsPerBlock = kernel.maxThreadsPerBlock = 1024;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32, device.numSms = 1;
  device.sharedMemPerBlock = 48 * 1024, device.reservedSharedMemPerBlock = 1024;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
  while (scanf("%d %d %d %d %d", &arch, &device.maxThreadsPerMultiprocessor, &shared, &threads, &kernel.numRegs) == 5) {
    device.computeMajor = arch / 10, device.computeMinor = arch % 10;
    device.sharedMemPerMultiprocessor = shared, device.sharedMemPerBlockOptin = shared - 1024;
    for (kernel.sharedSizeBytes = 0; kernel.sharedSizeBytes < 100000; kernel.sharedSizeBytes += 4999) {
      if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0)) return 1;
      printf("%d ", result.activeBlocksPerMultiprocessor);
    }
  }
}
"""


def test_occupancy_is_that_of_nvidias_calculator(tmp_path: Path) -> None:
    try:
        include = cuda_include()
    except NativeUnavailable as error:
        pytest.skip(str(error))
    if not shutil.which("g++") or not (include / "cuda_occupancy.h").exists():
        pytest.skip("no g++ or no cuda_occupancy.h")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    build = ["g++", "-w", f"-I{include}", "calculator.cpp", "-o", "calculator"]
    subprocess.run(build, cwd=tmp_path, check=True)
    sizes = list(itertools.product(MULTIPROCESSOR, range(32, 1025, 32), range(1, 256, 2)))
    asked = "\n".join(
        f"{arch} {MULTIPROCESSOR[arch].threads} {MULTIPROCESSOR[arch].shared} {threads} {registers}"
        for arch, threads, registers in sizes
    )
    answer = subprocess.run([tmp_path / "calculator"], input=asked, capture_output=True, text=True, check=True)
    blocks = map(int, answer.stdout.split())
    for arch, threads, registers in sizes:
        for shared in range(0, 100000, 4999):
            expected = 100 * next(blocks) * threads // MULTIPROCESSOR[arch].threads
            assert occupancy(arch, threads, registers, shared) == expected, (arch, threads, registers, shared)
    assert next(blocks, None) is None
