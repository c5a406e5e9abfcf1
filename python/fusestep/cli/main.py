"""Which command was asked for, and how its errors end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import fusestep
from fusestep.cli import diagnose, info, report, train
from fusestep.cli.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``fusestep`` with ``argv`` (default: the process's arguments); returns the exit status.

    0: done; 2: the user's mistake, one line on stderr; 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"]:  # its own parser: it knows the benchmarks
        from fusestep import bench

        return int(bench.main(arguments[1:]) or 0)
    parser = argparse.ArgumentParser(prog="fusestep", description=fusestep.__doc__)
    parser.add_argument("--version", action="version", version=f"fusestep {fusestep.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | report | diagnose | bench | info")
    train.add_parser(commands)
    report.add_parser(commands)
    diagnose.add_parser(commands)
    commands.add_parser("bench", help="measure against what is installed (fusestep bench --help)")
    info.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, which all end so, one says it
            print(f"fusestep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
