"""``fusestep report``: one run or several, as an HTML page or in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusestep.cli.errors import UserError, as_user_errors


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="compare runs in one HTML page",
        description="Make one HTML page of one run or several: results, curves, settings, samples. It needs no other "
        "file and no network.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, as fusestep train and Trainer write it"
    )
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--terminal", action="store_true", help="print a summary instead of making a page")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from fusestep.report import load_runs, print_summary, render_page
    except ImportError as missing:
        raise UserError(f"report needs torch: {missing}. Try: pip install 'fusestep[train]'") from missing

    with as_user_errors(ValueError, OSError, ImportError):
        runs = load_runs(options.runs)
        if options.terminal:
            print_summary(runs)
            return 0
        Path(options.output).write_text(render_page(runs), encoding="utf-8")
    for each in runs:
        for problem in each.problems:
            print(f"{each.name}: {problem}")
    print(f"see {options.output}")
    return 0
