"""The one way in which the Python layer refuses an argument, and the checks that need it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any, NoReturn


def refuse(
    operation: str,
    argument: str,
    expected: str,
    got: str,
    remedy: str = "",
    error: type[Exception] = ValueError,
) -> NoReturn:
    """Raises ``error("{operation}: {argument}: expected {expected}, got {got}. {remedy}")``."""
    raise error(f"{operation}: {argument}: expected {expected}, got {got}. {remedy}".strip())


def check_choice(operation: str, argument: str, value: Any, choices: Iterable[str]) -> None:
    """Refuses anything but one of ``choices``, and says which of them is nearest."""
    known = list(choices)
    if value not in known:
        refuse(operation, argument, f"one of {', '.join(known)}", repr(value), did_you_mean(value, known))


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """ "Did you mean 'cosine'?", or nothing where none of ``choices`` is near."""
    near = difflib.get_close_matches(value.lower(), choices, n=1) if isinstance(value, str) else []
    return f"Did you mean '{near[0]}'?" if near else ""


def check_bool(operation: str, argument: str, value: Any) -> None:
    """Refuses anything but True and False."""
    if not isinstance(value, bool):
        refuse(operation, argument, "True or False", repr(value), error=TypeError)


def check_integer(operation: str, argument: str, value: Any, minimum: int) -> None:
    """Refuses anything but an int (not a bool) of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(operation, argument, "an integer", repr(value), error=TypeError)
    if value < minimum:
        refuse(operation, argument, f"an integer >= {minimum}", repr(value))


def check_number(
    operation: str,
    argument: str,
    value: Any,
    minimum: float,
    below: float = math.inf,
    *,
    exclusive: bool = False,
) -> None:
    """Refuses anything but a finite number in [minimum, below), or in (minimum, below) when ``exclusive``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(operation, argument, "a number", repr(value), error=TypeError)
    low_enough = value > minimum if exclusive else value >= minimum
    if not (math.isfinite(value) and low_enough and value < below):
        relation = ">" if exclusive else ">="
        limit = f" and < {below:g}" if below < math.inf else ""
        refuse(operation, argument, f"a finite number {relation} {minimum:g}{limit}", repr(value))


def check_probability(operation: str, argument: str, value: Any) -> None:
    """Refuses anything but a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(operation, argument, "a number", repr(value), error=TypeError)
    if not 0 <= value <= 1:
        refuse(operation, argument, "a probability in [0, 1]", repr(value))
