"""`fusestep bench compare A.json B.json`: the same rows of two files beside each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusestep._refusal import refuse
from fusestep.cli.errors import UserError

from . import documents
from .report import machine, table
from .rows import OURS, Row, noise

OPERATION = "compare"
_Document = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusestep bench compare",
        description="The rows that two results have in common: our times (of one machine only), our ratios to the "
        "other contestants, and whether their quartiles overlap. Where they do not, something has changed.",
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="written by fusestep bench --json")
    parser.add_argument("b", type=Path, metavar="B.json", help="likewise; ratios are B's over A's")
    args = parser.parse_args(argv)
    print(render(documents.load(OPERATION, args.a), documents.load(OPERATION, args.b), str(args.b)), end="")
    return 0


def render(a: _Document, b: _Document, name_of_b: str = "B") -> str:
    """Raises UserError where nothing can be compared."""
    if a["quick"] != b["quick"]:
        kind = {True: "a quick run", False: "a full run"}
        remedy = "Quick runs have smaller arrays: they are no results. Measure both alike."
        refuse(OPERATION, name_of_b, f"{kind[a['quick']]}, as the first file", kind[b["quick"]], remedy, UserError)
    rows_a, rows_b = documents.by_key(a), documents.by_key(b)
    common = [key for key in rows_a if key in rows_b]
    if not common:
        benches = [" and ".join(dict.fromkeys(key[0] for key in rows)) for rows in (rows_a, rows_b)]
        expected = f"some rows of the first file (of {benches[0]})"
        refuse(OPERATION, name_of_b, expected, f"only others (of {benches[1]})", error=UserError)
    pairs = [(rows_a[key], rows_b[key]) for key in common]
    other_machine = documents.machine_differences(a, b)
    parts = [f"A: {machine(a['machine'])}", f"B: {machine(b['machine'])}"]
    if other_machine:
        parts.append(
            f"The machines differ ({'; '.join(other_machine)}): times say nothing about the kernels, and are not "
            "compared; ratios are those to the same contestants on each machine."
        )
    if versions := documents.version_differences(a, b):
        parts.append(f"The versions differ: {'; '.join(versions)}.")
    sections = ([] if other_machine else [_times(pairs)]) + [_ratios(pairs), _checks(pairs)]
    parts += [section for section in sections if section]
    parts += [
        f"Only in {name}: {'; '.join(documents.title(rows[key]) for key in rows if key not in others)}"
        for name, rows, others in (("A", rows_a, rows_b), ("B", rows_b, rows_a))
        if rows.keys() - others.keys()
    ]
    if any(noise(row) for pair in pairs for row in pair):
        parts.append("*: the machine was noisy in one of the two runs; the difference may be the machine's.")
    return "\n\n".join(parts) + "\n"


def _times(pairs: list[tuple[Row, Row]]) -> str:
    body = []
    for a, b in pairs:
        if "contestants" in a and OURS in a["contestants"]:
            one, other = (row["contestants"][OURS]["seconds"] for row in (a, b))
            body.append(_line(a, b, "", one, other, 1e3))
        if "ns_a_call" in a:
            body.append(_line(a, b, "", a["ns_a_call"], b["ns_a_call"], 1e-6))
    return _section("our time, ms", body)


def _ratios(pairs: list[tuple[Row, Row]]) -> str:
    body = [
        _line(a, b, f" / {name}", ratio, b["ratios"][name], 1.0)
        for a, b in pairs
        for name, ratio in a.get("ratios", {}).items()
        if name in b["ratios"]
    ]
    return _section("our time over theirs", body)


def _checks(pairs: list[tuple[Row, Row]]) -> str:
    body = [
        [
            documents.title(a),
            *("-" if row[OURS] is None else f"{row[OURS]:.3g} {row['unit']}".strip() for row in (a, b)),
        ]
        for a, b in pairs
        if "check" in a
    ]
    return "\n".join(table(["checks", "A", "B"], body)) if body else ""


def _section(name: str, body: list[list[str]]) -> str:
    return "\n".join(table([name, "A", "quartiles", "B", "quartiles", "B/A", ""], body)) if body else ""


def _line(a: Row, b: Row, against: str, one: Row, other: Row, scale: float) -> list[str]:
    mark = " *" if noise(a) or noise(b) else ""
    figures = [
        text
        for spread in (one, other)
        for text in (f"{spread['median'] * scale:.4g}", f"{spread['q1'] * scale:.4g}-{spread['q3'] * scale:.4g}")
    ]
    return [
        documents.title(a) + against + mark,
        *figures,
        f"{other['median'] / one['median']:.3f}",
        _change(one, other),
    ]


def _change(one: Row, other: Row) -> str:
    if other["q1"] > one["q3"]:
        return "slower"
    return "faster" if other["q3"] < one["q1"] else "overlap"
