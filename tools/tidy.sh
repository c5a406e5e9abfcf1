#!/usr/bin/env bash
# clang-tidy (.clang-tidy) over the module's C++. The kernels once, in their scalar form: it is the same sources in all.
#   tools/tidy.sh [REGULAR EXPRESSION OF FILES]
# PYTHON: one with cmake, ninja, pybind11 and clang-tidy beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-python3}")
PATH=$(dirname "$python"):$PATH
cmake -S . -B build/tidy -G Ninja --log-level=WARNING -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DSKBUILD_PROJECT_VERSION=0 \
    -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DFUSESTEP_CUDA=OFF
"$python" - <<'END'
import json
from pathlib import Path

commands = Path("build/tidy/compile_commands.json")
others = ("FUSESTEP_ISA=avx", "FUSESTEP_ISA=neon")
kept = [entry for entry in json.loads(commands.read_text()) if not any(isa in entry["command"] for isa in others)]
commands.write_text(json.dumps(kept))
END
run-clang-tidy.py -p build/tidy -quiet -extra-arg=-Wno-unknown-warning-option "${1:-/cpp/}"
