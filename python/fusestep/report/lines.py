"""Files of one JSON object a line, as a run that died may have left them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parsed_lines(path: Path, parse: Callable[[dict[str, Any]], T], problems: list[str]) -> list[T]:
    """What ``parse`` makes of each line. Those that cannot be read are left out, and ``problems`` is told."""
    parsed = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            what = "is cut short" if number == len(lines) else "cannot be read"
            problems.append(f"Line {number} of {path.name} {what}: it is left out.")
            continue
        parsed.append(entry)
    return parsed
