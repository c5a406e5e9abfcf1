#!/usr/bin/env bash
# Installs a wheel into an empty virtual environment with NumPy alone, and uses it from there.
#   tools/check_wheel.sh WHEEL [CUDA ARCHITECTURES]
# CUDA ARCHITECTURES: those that the wheel must have kernels for, as `fusestep info` prints them.
# PYTHON: the interpreter; the one that the wheel is for.
set -euo pipefail
wheel=$(realpath "$1")
program=$(realpath "$(dirname "$0")/use_with_numpy.py")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
begin=${EPOCHREALTIME/[.,]/}
"$place/venv/bin/pip" install --quiet "$wheel"
echo "check_wheel: $(basename "$wheel") and NumPy installed in $(( (${EPOCHREALTIME/[.,]/} - begin) / 1000 )) ms"
cd "$place"
venv/bin/python "$program"
venv/bin/fusestep info | tee info
grep --quiet "^cuda architectures .*${2:-}" info
