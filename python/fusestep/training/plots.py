"""One picture of a run: losses, learning rate, gradient norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusestep.training.metrics import read_metrics

_TRAIN, _VAL, _RATE, _NORM, _FAINT = "#4c72b0", "#c44e52", "#55a868", "#8172b3", "#8c8c8c"


def plot_curves(metrics_path: str | Path, png_path: str | Path, *, baseline_loss: float | None = None) -> None:
    """Draws ``metrics.jsonl`` into a PNG: three panels over the steps.

    baseline_loss: a loss to compare with, drawn as a dashed line (default: none).
    Raises ImportError, with the remedy, when matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError as missing:
        raise ImportError("curves need matplotlib: pip install matplotlib") from missing

    metrics = read_metrics(metrics_path)
    steps = [m.step for m in metrics]
    losses = [m.loss for m in metrics]
    evaluated = [(m.step, m.val_loss) for m in metrics if m.val_loss is not None]
    norms = [(m.step, m.grad_norm) for m in metrics if m.grad_norm is not None]

    # Margins by hand: matplotlib's layouts find them by drawing everything once more.
    figure = Figure(figsize=(8, 8.5))
    figure.subplots_adjust(left=0.12, right=0.985, bottom=0.06, top=0.95, hspace=0.1)
    loss, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 1, 1])

    loss.plot(steps, losses, color=_TRAIN, alpha=0.25, linewidth=0.8)
    loss.plot(steps, smooth(losses), color=_TRAIN, linewidth=1.6, label="training, smoothed (dropout on)")
    if evaluated:
        last = evaluated[-1][1]
        label = f"validation, {last:.3f} at the end"
        loss.plot(*zip(*evaluated, strict=True), "o-", color=_VAL, markersize=4, linewidth=1.6, label=label)
    if baseline_loss is not None:
        label = f"baseline, {baseline_loss:.3f}"
        loss.axhline(baseline_loss, color=_FAINT, linestyle="--", linewidth=1.2, label=label)
    loss.set_ylabel("loss")
    loss.legend(frameon=False)

    rate.plot(steps, [m.lr for m in metrics], color=_RATE, linewidth=1.6)
    rate.set_ylabel("learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    rate.set_ylim(bottom=0)

    if norms:
        at, values = zip(*norms, strict=True)
        norm.plot(at, values, color=_NORM, alpha=0.3, linewidth=0.8)
        norm.plot(at, smooth(values), color=_NORM, linewidth=1.6)
        norm.set_yscale("log")
        norm.yaxis.set_major_formatter(LogFormatter())
        norm.yaxis.set_minor_formatter(LogFormatter())
    norm.set_ylabel("gradient norm")
    norm.set_xlabel("step")

    if metrics:
        end = metrics[-1]
        figure.suptitle(f"{end.step:,} steps, {end.tokens:,} tokens, {end.seconds:,.0f} s", fontsize=11)
    for axes in (loss, rate, norm):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(x=0.01)
        axes.yaxis.set_label_coords(-0.1, 0.5)
    figure.savefig(png_path, dpi=130)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a fiftieth of the run to either side, less near the ends: unlike a running mean it does not lag."""
    smooth = []
    for i in range(len(values)):
        reach = min(len(values) // 50, i, len(values) - 1 - i)
        smooth.append(sum(values[i - reach : i + reach + 1]) / (2 * reach + 1))
    return smooth
