"""Reading what `fusestep bench --json` has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusestep._refusal import refuse
from fusestep.cli.errors import UserError

from .rows import Row

READABLE_SCHEMAS = (1, 2)
_SAME_MACHINE = ("cpu", "cpus", "architecture", "simd", "threads")


def load(operation: str, path: Path) -> dict[str, Any]:
    """The document in a file. Raises UserError where there is none."""
    expected = "a file that `fusestep bench --json` has written"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        refuse(operation, str(path), expected, error.strerror or type(error).__name__, error=UserError)
    except ValueError:
        refuse(operation, str(path), expected, "no JSON", error=UserError)
    if not isinstance(document, dict) or not {"schema", "quick", "machine", "results"} <= document.keys():
        refuse(operation, str(path), expected, "another kind of JSON", error=UserError)
    if document["schema"] not in READABLE_SCHEMAS:
        readable = " or ".join(map(str, READABLE_SCHEMAS))
        remedy = "It was written by another version of fusestep: measure again."
        refuse(operation, str(path), f"schema {readable}", repr(document["schema"]), remedy, UserError)
    return document


def key(row: Row) -> tuple[str, str, str]:
    """What is measured in a row: the same in every file."""
    if "check" in row:
        return row["bench"], row["check"], ""
    if "binding" in row:
        return row["bench"], f"{row['binding']}: {row['source']}", f"{row['arrays']:,} arrays"
    return row["bench"], row["operation"], row["case"]


def title(row: Row) -> str:
    return ", ".join(part for part in key(row)[1:] if part)


def by_key(document: dict[str, Any]) -> dict[tuple[str, str, str], Row]:
    return {key(row): row for row in document["results"]}


def machine_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What differs between the machines of two documents, as `cpu: AMD EPYC and Intel Xeon`; empty if nothing does."""
    one, other = a["machine"], b["machine"]
    return [f"{name}: {one[name]} and {other[name]}" for name in _SAME_MACHINE if one[name] != other[name]]


def version_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    one, other = a["machine"]["versions"], b["machine"]["versions"]
    return [
        f"{name}: {one.get(name)} and {other.get(name)}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]
