"""What became of one run or several, as one HTML page or in the terminal. ``pip install 'fusestep[train]'``."""

from fusestep import _torch as _torch
from fusestep.report.page import render_page
from fusestep.report.runs import Run, load_run, load_runs
from fusestep.report.terminal import print_summary

__all__ = ["Run", "load_run", "load_runs", "print_summary", "render_page"]
