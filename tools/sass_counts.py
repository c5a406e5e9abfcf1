"""The registers and instructions of the CUDA kernels, held against what they were: part of tools/check_sass.py.

A kernel is counted with those of its name, over all template arguments. More registers of any of them, or 2% more
instructions in all, is a failure: fewer threads fit on a multiprocessor, or something is computed that was not before.
Both depend on the compiler, whose version the file holds: with another one nothing is compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

HELD = Path(__file__).with_name("sass.json")
MOST = 1.02


class Compiled(Protocol):
    name: str
    architecture: str
    instructions: list[str]
    registers: int


@dataclass
class Counts:
    kernels: int = 0
    registers: int = 0  # of a thread, in the kernel that takes most
    instructions: int = 0
    local_memory: int = 0  # instructions that read or write it


def count(kernels: Iterable[Compiled]) -> dict[str, Counts]:
    """By architecture and name, as "sm_90a update"."""
    counts: dict[str, Counts] = {}
    for kernel in kernels:
        found = re.search(r"(\w+)(<|\()", kernel.name.replace("(anonymous namespace)::", ""))
        name = found[1] if found is not None else kernel.name
        of_name = counts.setdefault(f"{kernel.architecture} {name}", Counts())
        of_name.kernels += 1
        of_name.registers = max(of_name.registers, kernel.registers)
        of_name.instructions += len(kernel.instructions)
        of_name.local_memory += sum(code.startswith(("LDL", "STL")) for code in kernel.instructions)
    return dict(sorted(counts.items()))


def write(counts: dict[str, Counts], compiler: str) -> None:
    kernels = {name: asdict(of_name) for name, of_name in counts.items()}
    HELD.write_text(json.dumps({"compiler": compiler, "kernels": kernels}, indent=1) + "\n", encoding="utf-8")


def compare(counts: dict[str, Counts], compiler: str, everywhere: set[str]) -> list[str]:
    """What has become worse, in sentences. everywhere: the architectures that all kernels were compiled for."""
    held = json.loads(HELD.read_text(encoding="utf-8"))
    if held["compiler"] != compiler:
        print(f"check_sass: counted with nvcc {held['compiler']}, and here is {compiler}: nothing can be compared")
        return []
    before = {name: Counts(**of_name) for name, of_name in held["kernels"].items()}
    worse = [f"{name} is not in {HELD.name}: write it anew (--write-counts)" for name in counts if name not in before]
    expected = [name for name in before if name.split()[0] in everywhere]
    worse += [f"{name} is in {HELD.name} and was not compiled" for name in expected if name not in counts]
    for name in (name for name in counts if name in before):
        old, new = before[name], counts[name]
        if new.registers > old.registers:
            worse.append(f"{name}: {new.registers} registers, were {old.registers}")
        if new.instructions > MOST * old.instructions:
            worse.append(f"{name}: {new.instructions} instructions, were {old.instructions}")
        if new.local_memory > old.local_memory:
            worse.append(f"{name}: {new.local_memory} instructions use local memory, were {old.local_memory}")
    return worse
