#!/usr/bin/env bash
# Settles on a GPU what the emulator can't: tools/gpu_report.sh [--dry-run] FOLDER. Decides the steps, their limits and
# what is kept (at most 8 files of 16 MB in FOLDER); docs/gpu.md says what each file holds. A step that fails or runs
# out of its time goes on to the next one. --dry-run: the same steps on the emulated kernels and CPU tensors, small.
# The interpreter is $PYTHON (python3): one with torch, setuptools, ninja, pytest and hypothesis. No network is needed.
set -uo pipefail
dry=""
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
[[ $# -eq 1 && $1 != -* ]] || { echo "usage: $0 [--dry-run] FOLDER" >&2; exit 2; }
mkdir -p "$1" || exit 2
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
py=${PYTHON:-python3}
command -v "$py" >/dev/null || { echo "$0: there is no interpreter $py: name one with PYTHON=..." >&2; exit 2; }
export VGKERNELS_REQUIRE_NATIVE=1 PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8 HYPOTHESIS_PROFILE=ci
log=$folder/log.txt summary=$folder/summary.txt rows=() failed=0
: >"$log"

set -m # a step is a process group of its own, which gets no Ctrl-C and is stopped here
stop() {
  trap - INT TERM
  echo "$0: interrupted" >&2
  { kill -INT -- "-$(jobs -p)" && sleep 1 && kill -KILL -- "-$(jobs -p)"; } 2>/dev/null
  exit $((128 + $1))
}
trap 'stop 2' INT
trap 'stop 15' TERM

# step NAME SECONDS COMMAND...: "figure: ..." of its output, or else its last line, goes to the table; exit status 77
# means "not there".
step() {
  local name=$1 limit=$2 begin=$SECONDS status said figure
  shift 2
  echo "=== $name, at most $limit s: $*" | tee -a "$log"
  said=$(mktemp)
  # an interrupted pytest still writes its report; in the background, so that a trap need not wait for it
  timeout --signal=INT --kill-after=5 "$limit" "$@" </dev/null 2>&1 | tee "$said" &
  wait %%
  case $? in
    0) status=ok ;;
    77) status="not there" ;;
    124 | 137) status="timed out" failed=1 ;;
    *) status=failed failed=1 ;;
  esac
  tail -c 2000000 "$said" >>"$log"
  figure=$(sed -n 's/^figure: //p' "$said" | tail -1)
  [ "$figure" ] || figure=$(tail -1 "$said")
  rm -f "$said"
  rows+=("$(printf '%-12s %5s  %-9s  %s' "$name" $((SECONDS - begin)) "$status" "$figure")")
}

# Where a dry run differs: whose kernels run, on which device, and how much of each.
if [ "$dry" ]; then
  run=("$py" tests/native/emulated_ops.py) device=cpu build=(tools.gpu_report_environment --build --dry-run)
  environment=(--dry-run) sanitizers=(--dry-run) determinism=(--small --every 100 --repeats 2 --seconds 30)
  suite=(--backend emulated -k "test_equals_reference and not volume") benchmarks=(--check --seconds 25)
else
  run=("$py" -m) device=cuda build=(tools.gpu_report_environment --build)
  environment=() sanitizers=(--seconds 85) determinism=(--every 2 --seconds 30)
  suite=(--backend cuda) benchmarks=(--seconds 60)
  "$py" -c "import xdist" 2>/dev/null && suite+=(-n 8)
fi
mapfile -t tests < <(grep -lE 'Suite\)|device: str' tests/test_*.py)

step environment 25 "$py" -m tools.gpu_report_environment "${environment[@]}" "$folder/environment.json"
step build 85 "${run[@]}" "${build[@]}"
step suite 100 "$py" -m tools.gpu_report_suite "$folder/suite.xml" "${suite[@]}" "${tests[@]}"
step sanitizers 95 "${run[@]}" tools.gpu_report_sanitizers "${sanitizers[@]}"
step benchmarks 95 "${run[@]}" benchmarks --device "$device" --json "$folder/benchmarks.json" "${benchmarks[@]}"
step determinism 40 "${run[@]}" tools.gpu_report_determinism --device "$device" --json "$folder/determinism.json" \
  "${determinism[@]}"

{
  echo "=== GPU report${dry:+, dry run on the emulator: says nothing of a GPU}: $folder"
  printf '%-12s %5s  %-9s  %s\n' step s status figure
  printf '%s\n' "${rows[@]}"
} | tee "$summary" | tee -a "$log"
exit "$failed"
