#!/usr/bin/env bash
# Runs a command with a build of the package that a sanitizer watches.
#   tools/sanitized.sh address,undefined|thread COMMAND...
# PYTHON: one with all that the tests need. The build has an environment of its own, which takes its packages from there.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizers=$1
shift
python=$(realpath --no-symlinks "${PYTHON:-python3}")
PATH=$(dirname "$python"):$PATH
place=$PWD/build/sanitize/${sanitizers%%,*}
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# A line of a .pth file adds a folder, without that folder's own .pth files: so the other build stays unseen.
"$python" -m venv --without-pip "$place"
echo "$packages" > "$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
"$place/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable . -C build-dir="$place/cmake" \
    -C cmake.build-type=RelWithDebInfo -C install.strip=false -C cmake.define.FUSESTEP_SANITIZE="$sanitizers" \
    -C cmake.define.FUSESTEP_CUDA=OFF -C cmake.define.FUSESTEP_EMULATE_CUDA=OFF

# The interpreter is not instrumented, so the runtime comes first; beside it libstdc++, whose exceptions it intercepts.
runtime=$("${CXX:-c++}" -print-file-name="lib${sanitizers:0:1}san.so")
export LD_PRELOAD="$runtime $("${CXX:-c++}" -print-file-name=libstdc++.so)"
export FUSESTEP_SIMD=scalar  # see CMakeLists.txt
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc
PATH=$place/bin:$PATH exec "$@"
