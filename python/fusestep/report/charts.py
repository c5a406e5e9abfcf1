"""The curves of several runs in one picture each, as SVG text for a light or a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusestep.diagnostics.drawing import height_of_rows
from fusestep.report import health
from fusestep.report.runs import Run
from fusestep.training.metrics import StepMetrics
from fusestep.training.plots import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by readers who see few colours, on white and on black (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", "--", ":", "-.")  # when the colours come round again


_INKED = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")


@dataclass(frozen=True)
class Chart:
    title: str
    description: str  # for readers who do not see it
    draw: Callable[[Axes, Run, str, str], None]  # of one run: axes, run, colour, line style
    log_scale: bool = False


def _losses(axes: Axes, run: Run, color: str, style: str) -> None:
    steps = [step.step for step in run.steps]
    losses = [step.loss for step in run.steps]
    axes.plot(steps, losses, color=color, alpha=0.2, linewidth=0.7)
    axes.plot(steps, smooth(losses), style, color=color, linewidth=1.4, alpha=0.7)


def _validation(axes: Axes, run: Run, color: str, style: str) -> None:
    losses = [(step.step, step.val_loss) for step in run.steps if step.val_loss is not None]
    axes.plot([at for at, _ in losses], [loss for _, loss in losses], "o" + style, color=color, markersize=4)
    if run.baseline_loss is not None:
        axes.axhline(run.baseline_loss, color=color, linewidth=0.8, linestyle=(0, (1, 3)))


def _rates(axes: Axes, run: Run, color: str, style: str) -> None:
    axes.plot([step.step for step in run.steps], [step.lr for step in run.steps], style, color=color)


def _norms(axes: Axes, run: Run, color: str, style: str) -> None:
    norms = [(step.step, step.grad_norm) for step in run.steps if step.grad_norm is not None]
    axes.plot([at for at, _ in norms], smooth([norm for _, norm in norms]), style, color=color)


def _speed(axes: Axes, run: Run, color: str, style: str) -> None:
    # Over a fiftieth of the run: single steps are too short to be told apart by the clock.
    reach = max(1, len(run.steps) // 50)
    pairs = list(zip(run.steps, run.steps[reach:], strict=False))
    axes.plot([b.step for _, b in pairs], [_between(a, b) for a, b in pairs], style, color=color)


def _between(a: StepMetrics, b: StepMetrics) -> float:
    return (b.tokens - a.tokens) / (b.seconds - a.seconds) if b.seconds > a.seconds else float("nan")


CHARTS = (
    Chart("Training loss", "Loss of each update, faint, and smoothed", _losses),
    Chart("Validation loss", "Loss at each evaluation; dotted: the baseline", _validation),
    Chart("Learning rate", "Rate of each update", _rates),
    Chart("Gradient norm", "Norm before clipping, smoothed, on a logarithmic scale", _norms, log_scale=True),
    Chart("Tokens a second", "Input tokens a second, evaluations included", _speed),
)


def color(i: int) -> str:
    """Of the run with index i."""
    return COLORS[i % len(COLORS)]


def style(i: int) -> str:
    """matplotlib's line style of the run with index i."""
    return STYLES[i // len(COLORS) % len(STYLES)]


def svg(chart: Chart, runs: Sequence[Run], *, dark: bool) -> str:
    """All runs in one picture. Raises ImportError, with the remedy, when matplotlib is missing."""

    def draw(axes: Axes) -> None:
        for i, run in enumerate(runs):
            chart.draw(axes, run, color(i), style(i))
        if chart.log_scale:
            axes.set_yscale("log")
        axes.grid(alpha=0.2, linewidth=0.6)

    return _svg(chart.title, draw, (6, 3.2), dark)


def health_svg(run: Run, *, dark: bool) -> str:
    """The heat map of one run's layers. Raises ImportError as ``svg`` does."""
    rows = len(health.layers_of(run.health))
    return _svg(run.name, lambda axes: health.draw(axes, run.health), (10, height_of_rows(rows)), dark)


def _svg(name: str, draw: Callable[[Axes], None], size: tuple[float, float], dark: bool) -> str:
    """A picture of ``size`` inches, over steps, in ink for a light or a ``dark`` page."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError("a report needs matplotlib: pip install 'fusestep[train]'") from missing

    ink = "#e6e6e6" if dark else "#222222"
    colors: dict[Any, Any] = dict.fromkeys(_INKED, ink)
    # The same file for the same runs: identifiers would be drawn at random.
    with rc_context({**colors, "svg.hashsalt": name, "font.size": 11}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
