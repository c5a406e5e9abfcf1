"""The report for a terminal: results, what differs, the layers' health, what could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from fusestep.report import health, tables
from fusestep.report.runs import Run


def print_summary(runs: Sequence[Run], file: TextIO | None = None) -> None:
    """Prints tables of ``runs`` to ``file`` (default: standard output).

    Raises ImportError, with the remedy, when rich is missing.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as missing:
        raise ImportError("a summary needs rich: pip install 'fusestep[train]'") from missing

    console = Console(file=file)
    table = Table(*tables.RESULTS, title="Results")
    for row in tables.results(runs):
        table.add_row(*map(Text, row))  # Text: a name in brackets is no markup
    console.print(table)
    differences = tables.differences([run.settings for run in runs])
    if differences:
        table = Table("", title="What differs")
        for run in runs:
            table.add_column(Text(run.name))
        for row in differences:
            table.add_row(*map(Text, row))
        console.print(table)
    for run in runs:
        if run.health:
            console.print(Text(f"{run.name}: health by layer: {health.summary(run.health)}"))
        for problem in run.problems:
            console.print(Text(f"{run.name}: {problem}", style="yellow"))
