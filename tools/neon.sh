#!/usr/bin/env bash
# Runs what is compiled for NEON, under emulation, on a machine of another kind: the programs of tests/cpp, and the tests
# of fusestep.ops in an arm64 Python.
#   tools/neon.sh [PYTEST ARGUMENTS]     default: the tests of bits, NEON against scalar among them
# Needs g++-aarch64-linux-gnu and qemu-user-static (Debian's and Ubuntu's names), and apt-get, which fetches that Python
# without installing it. PYTHON: one with pip, cmake, ninja and pybind11.
set -euo pipefail
cd "$(dirname "$0")/.."
compiler=aarch64-linux-gnu-g++
emulator=qemu-aarch64-static
for program in $compiler $emulator; do
  command -v $program > /dev/null || {
    echo "neon: expected $program, found none. Install it: apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2
    exit 1
  }
done
python=$(realpath --no-symlinks "${PYTHON:-python3}")
PATH=$(dirname "$python"):$PATH
place=$PWD/build/neon
root=$place/root
mkdir -p "$place/debs" "$root"

emulated() {
  $emulator -L /usr/aarch64-linux-gnu "$@"
}

echo "neon: the programs of tests/cpp"
$compiler -std=c++20 -O1 -pthread -Icpp tests/cpp/test_threads.cpp cpp/threads/{threads,openmp,pool}.cpp \
    -o "$place/test_threads" -ldl
# It starts itself, by its name: under emulation by the name of a script.
printf '#!/bin/sh\nexec %s -L /usr/aarch64-linux-gnu %s "$@"\n' $emulator "$place/test_threads" > "$place/threads"
chmod +x "$place/threads"
emulated -0 "$place/threads" "$place/test_threads"
$compiler -std=c++20 -O1 -I. -Icpp -Itests/cuda/emulation tests/cpp/test_turns.cpp tests/cuda/emulation/emulation.cpp \
    -o "$place/test_turns"
emulated "$place/test_turns"

# An arm64 Python in a folder of its own. apt keeps its lists there too: the machine's own are left alone.
version=$(apt-cache depends python3-minimal | sed -n 's/.*Depends: \(python3\.[0-9]*\)-minimal/\1/p')
if [ ! -e "$root/usr/bin/$version" ]; then
  apt=(-o "APT::Architecture=arm64" -o "APT::Architectures=arm64" -o "Dir::State=$place/apt" -o "Dir::Cache=$place/apt/cache"
       -o "Dir::State::status=$place/apt/status" -o "APT::Sandbox::User=root")
  mkdir -p "$place/apt/lists/partial" "$place/apt/cache/archives/partial"
  touch "$place/apt/status"
  apt-get "${apt[@]}" --quiet update
  (cd "$place/debs" && apt-get "${apt[@]}" --quiet download "$version-minimal" "lib$version-minimal" "lib$version-stdlib" \
      "lib$version-dev" libexpat1 zlib1g libffi8 libbz2-1.0 liblzma5)
  for package in "$place"/debs/*.deb; do dpkg --extract "$package" "$root"; done
  ln -s ../aarch64-linux-gnu "$root/usr/include/$version/"  # where its pyconfig.h looks for the real one
fi
cat > "$place/python" <<END
#!/bin/sh
exec $emulator -L /usr/aarch64-linux-gnu -E PYTHONHOME=$root/usr -E PYTHONPATH=$place/site \\
    -E LD_LIBRARY_PATH=$root/usr/lib/aarch64-linux-gnu:$root/lib/aarch64-linux-gnu $root/usr/bin/$version "\$@"
END
chmod +x "$place/python"
"$python" -m pip install --quiet --upgrade --target "$place/site" --only-binary :all: --implementation cp \
    --python-version "${version#python}" --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
    numpy pytest hypothesis ml_dtypes typing-extensions filelock fsspec jinja2 networkx sympy
"$python" -m pip install --quiet --upgrade --target "$place/site" --only-binary :all: --implementation cp --no-deps \
    --python-version "${version#python}" --platform manylinux_2_28_aarch64 torch==2.6.0  # a small one: without CUDA
echo "import sys; sys.executable = '$place/python'" > "$place/site/sitecustomize.py"  # for tests that start a Python

echo "neon: the module"
cmake -S . -B "$place/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSKBUILD_PROJECT_VERSION="$(
        sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$compiler -DFUSESTEP_CUDA=OFF \
    -DPython_EXECUTABLE="$place/python" -DPython_INCLUDE_DIR="$root/usr/include/$version" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$place/cmake"
"$python" tools/check_symbols.py "$place/cmake"
rm -rf "$place/site/fusestep"
cp -r python/fusestep "$place/site/"
cp "$place"/cmake/_core.*.so "$place/site/fusestep/"

echo "neon: the tests"
[ $# -gt 0 ] || set -- tests/ops/test_bits.py tests/ops/test_attention_bits.py tests/ops/test_exact.py
"$place/python" -c 'import fusestep; print(fusestep.info()); assert fusestep.info()["simd"] == "neon"'
"$place/python" -m pytest --quiet -p no:cacheprovider "$@"
