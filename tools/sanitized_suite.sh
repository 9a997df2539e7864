#!/usr/bin/env bash
# The whole Python suite on a CPU library with ASan and UBSan: tools/sanitized_suite.sh [PYTEST ARGUMENTS]. Decides
# what is compiled how and which tests are left out; flags and runtimes are those of tests/native/build.py. Works in a
# copy, build/sanitized/tree, so that the library in the tree stays as it is. What a sanitizer finds ends its process,
# which pytest-xdist reports as a failed test; the reports come last. Results are in runs/sanitized.xml. The
# interpreter is $PYTHON (python3). A -k of one's own takes the place of ours, "not emulated": those kernels are
# sanitized elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
py=$(command -v "${PYTHON:-python3}")
[[ $py == /* ]] || py=$PWD/$py
tree=build/sanitized/tree
reports=$PWD/build/sanitized/reports

mkdir -p "$tree" "$reports" runs
rm -f "$reports"/* runs/sanitized.xml
git ls-files --cached --others --exclude-standard --deduplicate | sort >build/sanitized/files
(cd "$tree" && find . -type f -not -path './build/*' -not -name '*.so' -not -name _build_info.json -printf '%P\n') |
  sort | comm -13 build/sanitized/files - | (cd "$tree" && xargs -r -d '\n' rm -f)  # what is no longer in the tree
while read -r file; do # a copy's time is the present: ninja compiles again what includes it
  [ -f "$file" ] || continue
  cmp -s "$file" "$tree/$file" || cp --parents "$file" "$tree"
done <build/sanitized/files

settings=$(PYTHONPATH=tests "$py" -c "
from native import build
print('flags=\"' + ' '.join(build.VARIANTS['asan']) + '\"')
print('runtimes=\"' + ' '.join(map(build._runtime, build.RUNTIMES['asan'])) + '\"')")
eval "$settings"
echo "compiling with $flags"
(cd "$tree" && VGKERNELS_CUDA=0 CXXFLAGS=$flags LDFLAGS=$flags "$py" setup.py --quiet build_ext --inplace)

left_out=(
  'test_*_cpu_native.py' 'test_*emulat*.py' 'test_conv_gru_cuda_driver.py' # compile their own modules, sanitized there
  'test_common_scratch.py' 'test_mutations.py'                             # the same
  'test_packaging.py' 'test_gpu_report*.py' 'test_kernel_budgets.py'       # compile and install the package again
  'test_*benchmark*.py'                                                    # measure time
  'test_hostile_memory.py' 'test_kept_scratch.py'                          # limit and measure memory, ASan's too
  'test_architecture.py' 'test_proof.py' 'test_readme.py'                  # text
)
ignored=()
for pattern in "${left_out[@]}"; do ignored+=("--ignore-glob=tests/$pattern"); done

export LD_PRELOAD=$runtimes VGKERNELS_REQUIRE_NATIVE=1 HYPOTHESIS_PROFILE=ci PYTHONPATH=
# CPython keeps memory until the process ends; numpy's MemoryError for absurd sizes is the tests' business.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$reports/asan
export UBSAN_OPTIONS=print_stacktrace=1:log_path=$reports/ubsan
status=0
(cd "$tree" && "$py" -m pytest -n "${WORKERS:-2}" --dist loadfile -q -p no:cacheprovider -k "not emulated" \
  "${ignored[@]}" --junitxml=../../../runs/sanitized.xml "$@") || status=$?
unset LD_PRELOAD
for report in "$reports"/*; do
  grep -qs -e ERROR -e 'runtime error' "$report" || continue # a refused allocation is but a warning
  echo "=== $report"
  head -60 "$report"
  status=1
done
exit "$status"
