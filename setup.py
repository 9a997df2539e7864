"""Decides what is built (vgkernels._C, and vgkernels._C_cuda where there is nvcc), with which flags, and records it.

Leaves metadata to pyproject.toml and finding torch from an isolated build to tools/vgkernels_build.py. A new op never
edits this file: its sources are found by name. torch is not imported: its headers, libraries and version are enough,
so this builds against any torch, also a CPU one for _C_cuda (torch.utils.cpp_extension refuses that), with no start-up.
"""

import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("_C", "_C_cuda")
OLDEST_TORCH = (2, 11)
DEFAULT_ARCHS = "8.0;9.0;10.0;12.0+PTX"
DEBUG = os.environ.get("VGKERNELS_DEBUG") == "1"

DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # the stable ABI as torch 2.11 has it
OPTIMIZE = ["-O1", "-g", "-DVG_DEBUG"] if DEBUG else ["-O3", "-g0"]
# errno and trapping are given up so that loops vectorise; values are not: no -ffast-math.
CXX_FLAGS = [*OPTIMIZE, "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]  # psabi: vectors only go to inlined functions


def fail(message):
    raise SystemExit(f"vgkernels: {message}")


def switch(name):
    """True, False, or None where the environment variable is not set."""
    value = os.environ.get(name, "")
    return {"": None, "0": False, "1": True}[value] if value in ("", "0", "1") else fail(f"{name} must be 0 or 1")


def output_of(*command):
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def find_torch():
    """(folder, version, CUDA version or None) of the torch that this interpreter would import, or None."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return Path(spec.origin).parent, str(facts["__version__"]), facts.get("cuda")


def find_compiler():
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    return next(([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), None)


def find_nvcc():
    """nvcc drives every step of _C_cuda, so no toolkit folder is needed: nvcc on PATH may be a wrapper script."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    chosen = [Path(home, "bin/nvcc") for home in homes if home]
    candidates = [*chosen, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((str(path) for path in candidates if path and os.access(path, os.X_OK)), None)


def cuda_archs(nvcc):
    """TORCH_CUDA_ARCH_LIST, else what the visible GPUs are, else the default as far as this nvcc knows it."""
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        archs = re.split(r"[;,\s]+", chosen.strip("; "))
    elif gpus := output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"):
        archs = sorted(set(gpus.split()), key=float)
    else:
        known = (output_of(nvcc, "--list-gpu-arch") or "").split()
        archs = [a for a in DEFAULT_ARCHS.split(";") if f"compute_{a.removesuffix('+PTX').replace('.', '')}" in known]
    if bad := [arch for arch in archs if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]:
        fail(f"TORCH_CUDA_ARCH_LIST: expected numbers such as {DEFAULT_ARCHS!r}, got {bad[0]!r}")
    return archs


def gencode(arch):
    number = arch.removesuffix("+PTX").replace(".", "")
    kinds = ["sm", "compute"] if arch.endswith("+PTX") else ["sm"]
    return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]


def sources(*patterns):
    found = {path for pattern in patterns for path in (ROOT / "csrc").glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found)  # relative: __FILE__ names no build machine


def version_tuple(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def plan():
    """Facts for vgkernels/_build_info.json; `why_no_cpu` and `why_no_cuda` are None where that library is built."""
    torch, compiler, nvcc = find_torch(), find_compiler(), find_nvcc()
    want_cuda, why = switch("VGKERNELS_CUDA"), None
    if switch("VGKERNELS_NO_NATIVE"):
        why = "it was built with VGKERNELS_NO_NATIVE=1"
    elif (sys.platform, platform.machine()) != ("linux", "x86_64"):
        why = f"there are no native kernels for {sys.platform} {platform.machine()}"
    elif torch is None:
        why = "it was built where no torch was installed"
    elif version_tuple(torch[1]) < OLDEST_TORCH:
        why = f"it was built where torch was {torch[1]}, and the native kernels need 2.11"
    elif compiler is None:
        why = "it was built where there was no C++ compiler"
    why_no_cuda = why
    if why and want_cuda:  # nothing was built yet
        fail(f"VGKERNELS_CUDA=1 can't be followed: {why.replace('it was built', 'this is a build')}")
    if want_cuda and not nvcc:
        fail("VGKERNELS_CUDA=1, but there is no nvcc: put it on PATH or set CUDA_HOME")
    if not why and want_cuda is False:
        why_no_cuda = "it was built with VGKERNELS_CUDA=0"
    elif not why and not want_cuda and not torch[2]:
        why_no_cuda = "it was built against a torch without CUDA (VGKERNELS_CUDA=1 forces it)"
    elif not why and not nvcc:
        why_no_cuda = "it was built where torch has CUDA but there was no nvcc"
        print(f"vgkernels: warning: {why_no_cuda}; building the CPU kernels only", file=sys.stderr)
    with_cuda = why_no_cuda is None
    commit = output_of("git", "describe", "--always", "--dirty", "--abbrev=12") if (ROOT / ".git").exists() else None
    return {
        "why_no_cpu": why,
        "why_no_cuda": why_no_cuda,
        "torch": torch[1] if torch else None,
        "torch_cuda": torch[2] if torch else None,
        "compiler": (output_of(*compiler, "--version") or "unknown").splitlines()[0] if not why else None,
        "flags": " ".join([*CXX_FLAGS, *DEFINES]) if not why else None,
        "nvcc": (re.findall(r"V(\d[\d.]+)", output_of(nvcc, "--version") or "") or ["unknown"])[0]
        if with_cuda
        else None,
        "archs": cuda_archs(nvcc) if with_cuda else [],
        "commit": commit or None,
    }


PLAN = plan()


def record(folder):
    """Writes the facts beside the package's files; a library of an earlier build must not be taken for this one's."""
    package = Path(folder) / "vgkernels"
    for name, why in zip(LIBRARIES, (PLAN["why_no_cpu"], PLAN["why_no_cuda"]), strict=True):
        if why:
            (package / f"{name}.abi3.so").unlink(missing_ok=True)
    (package / "_build_info.json").write_text(json.dumps(PLAN, indent=2) + "\n")


class BuildPy(build_py):
    def run(self):
        if not self.editable_mode:  # what an earlier build left in build/lib must not slip into this wheel
            for package in self.packages or []:
                shutil.rmtree(Path(self.build_lib, *package.split(".")), ignore_errors=True)
        super().run()
        record(ROOT if self.editable_mode else self.build_lib)


class BuildExt(build_ext):
    """Compiles by a ninja file of its own: header dependencies, parallel, the same for g++ and nvcc."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".abi3.so"  # no CPython inside: one name for all of them

    def finalize_options(self):
        super().finalize_options()
        if self.inplace:  # one place for `pip install -e` and build_ext --inplace: neither repeats the other's work
            self.build_temp = str(ROOT / "build" / "inplace")

    def run(self):
        if self.inplace:
            record(ROOT)
        super().run()

    def build_extensions(self):
        temp = Path(os.path.relpath(self.build_temp, ROOT))
        temp.mkdir(parents=True, exist_ok=True)
        steps = [step for ext in self.extensions for step in self.steps(ext, temp / ext.name)]
        try:
            run_steps(steps, temp)
        except subprocess.CalledProcessError as error:  # never swallowed: only a missing compiler means pure Python
            fail(f"the native kernels don't compile, see above (VGKERNELS_NO_NATIVE=1 leaves them out): {error}"[:300])
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(temp / f"{ext.name}.so"), str(target))

    def steps(self, ext, folder):
        """(output, inputs, command, depfile or None) of every compilation and of the link."""
        torch_folder, torch_version, _ = find_torch()
        torch_headers = ["-isystem", f"{torch_folder}/include"]
        cxx = find_compiler()
        if ext.name.endswith("_C_cuda"):
            host = [f"-Xcompiler={flag}" for flag in CXX_FLAGS]
            archs = [flag for arch in PLAN["archs"] for flag in gencode(arch)]
            compiler = [find_nvcc(), "-ccbin", cxx[-1], *OPTIMIZE[:1], *(["-lineinfo"] if DEBUG else []), *archs, *host]
            # The CUDA runtime is linked in: no libcudart to find, and none to clash with torch's. libtorch.so, not
            # libtorch_cuda.so, is named as needed: a CPU torch has it too, and a CUDA torch's brings libtorch_cuda with
            # it, so one _C_cuda serves whichever torch it was built against. On a CPU torch the stream function stays
            # undefined and loading fails, as _native.py expects; a weak symbol would only move that to the first call.
            linker = ["-shared", "-cudart=static", "-Xlinker=--no-as-needed", "-ltorch", "-ltorch_cpu"]
        else:
            compiler = [*cxx, *CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
            linker = ["-shared", "-ltorch_cpu", "-Wl,-z,defs", *shlex.split(os.environ.get("LDFLAGS", ""))]
        objects = []
        for source in ext.sources:
            output = folder / (source.replace("/", "__") + ".o")
            # The torch-free sources are held to C++17; what includes torch takes the standard that torch is built with.
            has_torch = source.endswith(("_ops.cpp", "module.cpp"))
            standard = "-std=c++20" if has_torch and version_tuple(torch_version) >= (2, 13) else "-std=c++17"
            defines = [*DEFINES, *(f"-D{name}" for name, _ in ext.define_macros)]
            headers = ["-Icsrc", *(torch_headers if has_torch else [])]
            files = ["-MD", "-MF", f"{output}.d", "-c", source, "-o", str(output)]
            command = [*compiler, standard, *defines, *headers, *files]
            yield str(output), [source], command, f"{output}.d"
            objects.append(str(output))
        library = f"{folder}.so"
        at_torch = [f"-L{torch_folder}/lib", *linker[1:]]
        yield library, objects, [compiler[0], *linker[:1], "-o", library, *objects, *at_torch], None


def run_steps(steps, folder):
    """Through ninja where there is one (only what changed, MAX_JOBS at a time), else every step, one by one."""
    ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else [shutil.which("ninja")]
    for output, *_ in steps:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    if ninja == [None]:
        print("vgkernels: no ninja here, compiling one file at a time", file=sys.stderr)
        for _, _, command, _ in steps:
            print(shlex.join(command))
            subprocess.run(command, cwd=ROOT, check=True)
        return

    def escape(path):
        return re.sub(r"([$ :])", r"$\1", path)

    lines = [f"builddir = {escape(str(folder))}", "rule link", "  command = $cmd", "  description = $out"]
    lines += ["rule compile", "  command = $cmd", "  description = $in", "  depfile = $out.d", "  deps = gcc"]
    for output, inputs, command, depfile in steps:
        rule = "compile" if depfile else "link"
        lines.append(f"build {escape(output)}: {rule} {' '.join(map(escape, inputs))}")
        lines.append(f"  cmd = {shlex.join(command).replace('$', '$$')}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    subprocess.run([*ninja, "-f", str(folder / "build.ninja"), "-j", jobs], cwd=ROOT, check=True)


def extensions():
    ops = sources("*/*_ops.cpp")
    if not PLAN["why_no_cpu"]:
        yield Extension("vgkernels._C", [*sources("common/*.cpp", "*/*_cpu*.cpp"), *ops], py_limited_api=True)
    if not PLAN["why_no_cuda"]:
        macros = [("VG_CUDA", None), ("USE_CUDA", None)]  # USE_CUDA makes torch's headers declare the stream function
        yield Extension("vgkernels._C_cuda", [*ops, *sources("*/*.cu")], define_macros=macros, py_limited_api=True)


EXTENSIONS = list(extensions())
ABI3 = bool(EXTENSIONS) and not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 else {},
)
