#!/usr/bin/env bash
# Installs a wheel beside a given torch into an empty virtual environment, and uses both from there.
#   tools/check_wheel_torch.sh WHEEL TORCH...
# TORCH: a version. PyPI's for x86-64 bring gigabytes of CUDA along, and do not import without it: torch's own
# index of wheels for CPUs, given as PIP_EXTRA_INDEX_URL, has small ones.
set -euo pipefail
wheel=$(realpath "$1")
shift
program=$(realpath "$(dirname "$0")/use_with_torch.py")
for torch in "$@"; do
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  "${PYTHON:-python3}" -m venv "$place/venv"
  "$place/venv/bin/pip" install --quiet "$wheel" "torch==$torch"
  (cd "$place" && venv/bin/python "$program")
  rm -rf "$place"
done
