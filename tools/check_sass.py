"""Proves what the CUDA compiler made of the kernels: wide loads and stores, no spills, no more registers than planned.

A build without a GPU cannot time a kernel. But a kernel that reads element by element where it should read vectors, or
that keeps its values in local memory instead of registers, is slow on every device, and the machine code shows it.

To add a kernel: one row in RULES. Its pattern is searched in the demangled name, template arguments and all. A row that
fits no kernel fails, so that a renamed kernel does not go unchecked. Registers and instructions are also held against
what they were (tools/sass_counts.py).

    python tools/check_sass.py $(find build/cmake/cuda -name '*.cu.o')
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import sass_counts


@dataclass(frozen=True)
class Rule:
    kernel: str  # a regular expression, searched in the kernel's demangled name
    contains: tuple[str, ...] = ()  # regular expressions; each matches an instruction
    lacks: tuple[str, ...] = ()  # none of them matches an instruction
    registers: int = 255  # of a thread, at most
    shared: int = 48 * 1024  # bytes of static shared memory of a block, at most
    architectures: tuple[str, ...] = ("sm_80", "sm_90a")


# Spills, and arrays that are indexed by what only the run knows. No kernel has these but those named here.
LOCAL_MEMORY = r"^(STL|LDL)\b"
MAY_USE_LOCAL_MEMORY = (
    r"::dropout<\w+, true, ",  # strided: the path for what is rare
    r"::softmax_mask_(sums|combine)<",
    r"::plain_\w+<",  # head dims up to 256 in registers; double needs twice as many
    r"::attention_(forward|backward)<",  # each a few registers; see bench/README.md
)

# Loads and stores of 16 bytes.
WIDE_LOAD = r"^LDG?\.E\.(\w+\.)*128"
WIDE_STORE = r"^STG?\.E\.(\w+\.)*128"

RULES = (
    # Two different 16-bit dtypes are read by 8 bytes: four elements, as many as float32 results are written together.
    Rule(r"::dropout<\w+, false, (\S+), \1>\(", contains=(WIDE_LOAD, WIDE_STORE), registers=64),
    Rule(r"::update<.*, false>\(", contains=(WIDE_LOAD, WIDE_STORE), registers=128),
    # A row is kept in registers, read once and written once.
    Rule(r"::softmax_(forward|backward)<[^>]*>", contains=(WIDE_LOAD, WIDE_STORE), registers=128),
    Rule(r"::cross_entropy<", contains=(WIDE_LOAD, WIDE_STORE), registers=128),
    # Products on the tensor cores. More registers than these are given to them while they run (setmaxnreg).
    Rule(
        r"::attention_(forward|backward)<\S*Sm90",
        contains=(r"^HGMMA\.", r"^LDGSTS\."),
        registers=168,
        architectures=("sm_90a",),
    ),
    Rule(
        r"::attention_(forward|backward)<\S*Sm80",
        contains=(r"^HMMA\.", r"^LDSM\.", r"^LDGSTS\."),
        architectures=("sm_80",),
    ),
    # The kernels that are measured keep all they have in registers.
    Rule(
        r"::attention_forward<\S*Sm90.*\(fusestep::cuda::Mask\)[01], ", lacks=(LOCAL_MEMORY,), architectures=("sm_90a",)
    ),
)


@dataclass
class Kernel:
    name: str
    architecture: str
    instructions: list[str] = field(default_factory=list)
    registers: int = 0
    shared: int = 0


# cuobjdump's lines: "arch = sm_80", "Function : NAME" and "/*0010*/ @P0 LDG.E.128 R4, ... ;", "Function NAME:" and
# " REG:32 STACK:0 SHARED:0 LOCAL:0 ...".
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<code>[^;]+);")
RESOURCES = re.compile(r"REG:(?P<registers>\d+) .*?\bSHARED:(?P<shared>\d+)")


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def find_cuobjdump() -> str:
    """The toolkit's own where it is on the PATH; otherwise that of NVIDIA's packages on PyPI."""
    found = shutil.which("cuobjdump")
    if found is None:
        spec = importlib.util.find_spec("nvidia")
        places = [Path(path) / "cu13/bin/cuobjdump" for path in (spec and spec.submodule_search_locations) or ()]
        found = next((str(place) for place in places if place.exists()), None)
    if found is None:
        sys.exit("check_sass: cuobjdump was not found. Install nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.")
    return found


def compiler_version(cuobjdump: str) -> str:
    """That of the nvcc beside it."""
    return re.findall(r"V([\d.]+)", output_of(str(Path(cuobjdump).with_name("nvcc")), "--version"))[-1]


def kernels_of(cuobjdump: str, file: Path) -> list[Kernel]:
    found: dict[tuple[str, str], Kernel] = {}
    architecture = name = ""
    for line in output_of(cuobjdump, "--dump-sass", str(file)).splitlines():
        if (code := INSTRUCTION.match(line)) is not None:
            found[name, architecture].instructions.append(code["code"].strip())
        elif line.startswith("arch = "):
            architecture = line.split()[-1]
        elif line.lstrip().startswith("Function : "):
            name = line.split()[-1]
            found[name, architecture] = Kernel(name, architecture)
    for line in output_of(cuobjdump, "--dump-resource-usage", str(file)).splitlines():
        if (resources := RESOURCES.search(line)) is not None and (name, architecture) in found:
            found[name, architecture].registers = int(resources["registers"])
            found[name, architecture].shared = int(resources["shared"])
        elif line.startswith("arch = "):
            architecture = line.split()[-1]
        elif line.startswith(" Function "):
            name = line.split()[-1].rstrip(":")
    kernels = list(found.values())
    mangled = "\n".join(kernel.name for kernel in kernels)
    demangled = subprocess.run(["c++filt"], input=mangled, check=True, capture_output=True, text=True).stdout
    for kernel, readable in zip(kernels, demangled.splitlines(), strict=True):
        kernel.name = readable
    return kernels


def faults_of(kernel: Kernel, rule: Rule) -> list[str]:
    def matching(pattern: str) -> list[str]:
        return [code for code in kernel.instructions if re.search(pattern, code)]

    faults = [f"has no instruction like {pattern}" for pattern in rule.contains if not matching(pattern)]
    faults += [f"has {code}" for pattern in rule.lacks for code in matching(pattern)[:1]]
    if kernel.registers > rule.registers:
        faults.append(f"takes {kernel.registers} registers, planned are {rule.registers}")
    if kernel.shared > rule.shared:
        faults.append(f"takes {kernel.shared} bytes of shared memory, planned are {rule.shared}")
    return faults


def check(kernels: list[Kernel], everywhere: set[str]) -> list[str]:
    """What is wrong, in sentences. everywhere: the architectures that all kernels were compiled for."""
    failures = []
    for kernel in kernels:
        if not any(re.search(pattern, kernel.name) for pattern in MAY_USE_LOCAL_MEMORY):
            faults = faults_of(kernel, Rule("", lacks=(LOCAL_MEMORY,)))
            failures += [f"{kernel.architecture}: {kernel.name}: {fault}" for fault in faults]
    for rule in RULES:
        for architecture in rule.architectures:
            chosen = [k for k in kernels if k.architecture == architecture and re.search(rule.kernel, k.name)]
            if not chosen and (architecture in everywhere or len(rule.architectures) == 1):
                failures.append(f"{architecture}: no kernel is called {rule.kernel}")
            failures += [f"{architecture}: {k.name}: {fault}" for k in chosen for fault in faults_of(k, rule)]
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="objects, libraries or modules with device code")
    parser.add_argument(
        "--architectures",
        default="80-real;90a-real;80-virtual",
        help="those that all kernels were compiled for, as CMake names them (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="print each kernel with its registers and instructions")
    parser.add_argument("--write-counts", action="store_true", help=f"write {sass_counts.HELD.name} anew")
    arguments = parser.parse_args()
    cuobjdump = find_cuobjdump()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # of cuobjdump's processes, which take nearly all of the time
        lists = pool.map(partial(kernels_of, cuobjdump), arguments.files)
        kernels = [kernel for kernels in lists for kernel in kernels]
    if arguments.list:
        for kernel in sorted(kernels, key=lambda k: (k.architecture, k.name)):
            print(
                f"{kernel.architecture}  {kernel.registers:3} registers  {kernel.shared:5} bytes shared  "
                f"{len(kernel.instructions):5} instructions  {kernel.name}"
            )
    real = [name.removesuffix("-real") for name in arguments.architectures.split(";") if name.endswith("-real")]
    everywhere = {f"sm_{name}" for name in real}
    counts = sass_counts.count(kernels)
    if arguments.write_counts:
        sass_counts.write(counts, compiler_version(cuobjdump))
    failures = check(kernels, everywhere) + sass_counts.compare(counts, compiler_version(cuobjdump), everywhere)
    for failure in failures:
        print(f"check_sass: {failure}")
    if not failures:
        print(f"check_sass: {len(kernels)} kernels checked, {len(RULES)} rules hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
