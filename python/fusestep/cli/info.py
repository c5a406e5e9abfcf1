"""``fusestep info``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import fusestep


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="what was compiled and what this machine has")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    facts = collect()
    if options.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"{name.replace('_', ' '):{width}}  {'not found' if value is None else value}")
    return 0


def collect() -> dict[str, Any]:
    """``fusestep.info()`` and the versions of what it works with; torch is not imported for that."""
    versions = {"python": platform.python_version(), "numpy": _version("numpy"), "torch": _version("torch")}
    return {**fusestep.info(), **versions}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
