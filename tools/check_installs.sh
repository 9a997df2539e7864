#!/usr/bin/env bash
# Installs the package for real, each way in a scratch folder, and checks what came of it: tools/check_installs.sh
# PYTHON [CASE...]. PYTHON is an interpreter with torch and setuptools. No case: all of them, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
py=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
[ $# -gt 0 ] || set -- cuda nvcc pure wheel isolated editable offline notorch nocompiler
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pip=(-m pip --quiet --disable-pip-version-check)
fail() { echo "check_installs: FAILED: $*" >&2; exit 1; }
has() { grep -q -- "$2" <<<"$1" || fail "expected '$2' in: $1"; }

# The sources without build products, so that every case starts as from a fresh clone.
sources() {
  mkdir -p "$1"
  tar cf - --exclude='*.so' --exclude=__pycache__ --exclude='*.egg-info' --exclude=_build_info.json \
    csrc tools vgkernels vgkernels_models setup.py pyproject.toml *.md LICENSE MANIFEST.in | tar xf - -C "$1"
}
# A fresh environment; with "torch" as second argument it sees PYTHON's torch and nothing else of it.
environment() {
  "$py" -m venv "$1"
  [ "${2:-}" = torch ] || return 0
  "$py" - "$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" <<'END'
import importlib.metadata, importlib.util, pathlib, sys
target, packages = pathlib.Path(sys.argv[1]), pathlib.Path(importlib.util.find_spec("torch").origin).parents[1]
mine = {"vgkernels", "ninja", "setuptools", "pip", "wheel", "pytest"}
for path in packages.iterdir():
    if path.name.split("-")[0].lower() not in mine and not path.name.startswith("__") and path.suffix != ".pth":
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path)
END
}
# The report of the vgkernels that an interpreter finds, run where no source folder is in the way.
info() { (cd "$scratch" && "$@" -m vgkernels.info); }
call='import torch, vgkernels as v; x = torch.rand(1, 2, 5, 6); assert torch.equal(v.flow_warp(x, x * 0), x)'
works() { (cd "$scratch" && "$@" -c "$call"); }

cuda() {  # _C_cuda compiled and linked, whatever torch this is; PYTHON's own build is left alone
  if ! command -v nvcc >/dev/null && ! [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    echo "cuda: SKIPPED, there is no nvcc here"
    return
  fi
  VGKERNELS_CUDA=1 "$py" setup.py --quiet build_ext --build-lib "$scratch/cuda" --build-temp build/cuda
  "$py" tools/check_symbols.py "$scratch"/cuda/vgkernels/_C*.so
}
nvcc() {  # asked for, and no nvcc: loud
  mkdir "$scratch/home"
  local said
  said=$(PATH=$(without nvcc) VGKERNELS_CUDA=1 CUDA_HOME=$scratch/home "$py" -c "$hide_cuda" build_ext 2>&1) &&
    fail "it was built all the same"
  has "$said" "VGKERNELS_CUDA=1, but there is no nvcc"
}
pure() {
  sources "$scratch/pure"
  VGKERNELS_NO_NATIVE=1 "$py" "${pip[@]}" install --no-build-isolation --no-deps --target "$scratch/lib" "$scratch/pure"
  has "$(info env PYTHONPATH="$scratch/lib" "$py")" "cpu kernels   not loaded: it was built with VGKERNELS_NO_NATIVE=1"
  has "$(PYTHONPATH=$scratch/lib works "$py" 2>&1)" "flow_warp: no native kernel runs"
}
wheel() {
  sources "$scratch/wheel"
  "$py" "${pip[@]}" wheel --no-build-isolation --no-deps -w "$scratch/dist" "$scratch/wheel"
  ls "$scratch"/dist/vgkernels-*-cp310-abi3-linux_x86_64.whl
  has "$("$py" -m zipfile -l "$scratch"/dist/*.whl)" "vgkernels/py.typed"
  "$py" "${pip[@]}" install --no-deps --target "$scratch/unpacked" "$scratch"/dist/*.whl
  PYTHONPATH=$scratch/unpacked VGKERNELS_REQUIRE_NATIVE=1 works "$py"
}
isolated() {  # `pip install .` builds against the environment's torch and fetches none
  environment "$scratch/v1" torch
  sources "$scratch/isolated"
  "$scratch/v1/bin/python" "${pip[@]}" install "$scratch/isolated"
  VGKERNELS_REQUIRE_NATIVE=1 works "$scratch/v1/bin/python"
}
editable() {
  environment "$scratch/v2" torch
  sources "$scratch/editable"
  "$scratch/v2/bin/python" "${pip[@]}" install -e "$scratch/editable"
  VGKERNELS_REQUIRE_NATIVE=1 works "$scratch/v2/bin/python"
  has "$(info "$scratch/v2/bin/python")" "$scratch/editable/vgkernels"
}
offline() {  # setuptools at hand, no ninja, no network
  environment "$scratch/v3" torch
  "$scratch/v3/bin/python" "${pip[@]}" install 'setuptools>=77'
  sources "$scratch/offline"
  "$scratch/v3/bin/python" "${pip[@]}" install --no-index --no-build-isolation --no-deps "$scratch/offline"
  VGKERNELS_REQUIRE_NATIVE=1 works "$scratch/v3/bin/python"
}
notorch() {  # neither the build nor pip fetches a torch
  environment "$scratch/v4"
  sources "$scratch/notorch"
  "$scratch/v4/bin/python" "${pip[@]}" install "$scratch/notorch"
  local said
  said=$(info "$scratch/v4/bin/python")
  has "$said" "torch         BROKEN OR MISSING: ModuleNotFoundError"
  has "$said" "it was built where no torch was installed"
}
nocompiler() {
  sources "$scratch/nocompiler"
  PATH=$(without g++ c++ clang++) "$py" "${pip[@]}" install --no-build-isolation --no-deps --target "$scratch/nocc" \
    "$scratch/nocompiler"
  has "$(info env PYTHONPATH="$scratch/nocc" "$py")" "not loaded: it was built where there was no C++ compiler"
}
# A PATH of links to all commands but these.
without() {
  local bin
  bin=$(mktemp -d -p "$scratch")
  find ${PATH//:/ } -maxdepth 1 -executable ! -type d -exec ln -sf -t "$bin" {} + 2>/dev/null || true
  (cd "$bin" && rm -f "$@")
  echo "$bin"
}
hide_cuda='import os, runpy, sys; a = os.access; os.access = lambda p, m: "cuda/bin" not in str(p) and a(p, m)
sys.argv[0] = "setup.py"; runpy.run_path("setup.py", run_name="__main__")'

for name in "$@"; do
  begin=$SECONDS
  "$name"
  echo "check_installs: $name ok, $((SECONDS - begin)) s"
done
