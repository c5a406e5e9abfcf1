"""The command line: ``fusestep train``, ``fusestep bench``, ``fusestep info``."""

from fusestep.cli.main import main

__all__ = ["main"]
