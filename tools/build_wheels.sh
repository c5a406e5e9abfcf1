#!/usr/bin/env bash
# Builds wheels from a source distribution alone, in an empty folder without git, for Pythons other than .venv's.
#   tools/build_wheels.sh SDIST FOLDER [PYTHON...]
# The Pythons share a build folder: the kernels, which know nothing of Python, are compiled once.
set -euo pipefail
sdist=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")
shift 2
[ $# -gt 0 ] || exit 0
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
tar --extract --file "$sdist" --directory "$place" --strip-components 1
cd "$place"
for python in "$@"; do
  "$python" -m venv --clear "$place/venv"
  "$place/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$folder" . --config-settings=build-dir="$place/build/cmake" \
      --config-settings=cmake.define.FUSESTEP_WERROR=ON --config-settings=cmake.define.FUSESTEP_CUDA=OFF
done
