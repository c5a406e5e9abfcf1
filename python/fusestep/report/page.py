"""The report as one HTML page, which needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources

import fusestep
from fusestep._refusal import refuse
from fusestep.report import charts, health, tables
from fusestep.report.runs import Run

_BORDERS = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}


def render_page(runs: Sequence[Run]) -> str:
    """Results, curves, health by layer, samples, settings and machines of ``runs``, as the text of an HTML file.

    Light or dark as the reader's system is; readable on a narrow screen. The same runs give the same text.
    Raises ValueError without any run; ImportError, with the remedy, when jinja2 or matplotlib is missing.
    """
    if not runs:
        refuse("render_page", "runs", "at least one", "none")
    try:
        from jinja2 import Environment
    except ImportError as missing:
        raise ImportError("a report needs jinja2: pip install 'fusestep[train]'") from missing

    environment = Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    several = len(runs) > 1
    drawn = charts.CHARTS if any(run.steps for run in runs) else ()
    settings = [run.settings for run in runs]
    return template.render(
        title=f"{len(runs)} runs" if several else f"Run {runs[0].name}",
        names=[run.name for run in runs],
        problems=[(run.name, problem) for run in runs for problem in run.problems],
        results_head=tables.RESULTS,
        results=[
            {"cells": row, "color": charts.color(i), "style": _BORDERS[charts.style(i)]}
            for i, row in enumerate(tables.results(runs))
        ],
        differences=tables.differences(settings) if several else [],
        charts=[
            {
                "title": chart.title,
                "description": chart.description,
                "light": _data_uri(charts.svg(chart, runs, dark=False)),
                "dark": _data_uri(charts.svg(chart, runs, dark=True)),
            }
            for chart in drawn
        ],
        health=[
            {
                "name": run.name,
                "summary": health.summary(run.health),
                "light": _data_uri(charts.health_svg(run, dark=False)),
                "dark": _data_uri(charts.health_svg(run, dark=True)),
            }
            for run in runs
            if run.health
        ],
        samples=[(run.name, run.sample) for run in runs if run.sample],
        settings=tables.together(settings),
        machines=tables.together([run.machine for run in runs]),
        version=fusestep.__version__,
    )


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
