"""What 16 and 8 bits do to training: `python -m fusestep.bench.precision FOLDER` trains the default GPT in every way.

It writes precision.json, precision.md (a table) and precision.png (the curves of the validation loss) into a folder.
A run that is in precision.json already is not made again, so that an interrupted command goes on where it was. Runs are
independent: one thread each, as many at a time as there are CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from fusestep import _machine

SCHEMA = 1
SEEDS = (1, 2, 3)
BASELINE = "fp32"

# The dtype of the parameters, what the optimizer is given beside torch's arguments, and whether autocast is on.
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    BASELINE: ("float32", {}, "fp32"),
    "fp32, 8-bit moments": ("float32", {"state_dtype": "8bit"}, "fp32"),
    "fp32, bf16 autocast": ("float32", {}, "bf16-autocast"),
    "bf16, plain": ("bfloat16", {}, "bf16"),
    "bf16, stochastic rounding": ("bfloat16", {"rounding": "stochastic"}, "bf16"),
    "bf16, Kahan summation": ("bfloat16", {"rounding": "kahan"}, "bf16"),
    "bf16, master weights": ("bfloat16", {"master_weights": True}, "bf16"),
}


def train(variant: str, seed: int, steps: int) -> list[tuple[int, float]]:
    """(step, validation loss) at each evaluation."""
    import torch
    from fusestep.cli.settings import MAX_GRAD_NORM, Settings, make_optimizer, make_schedule
    from fusestep.cli.train import EVAL_BATCHES
    from fusestep.data import RandomBatches, SequentialBatches, read_text, split_text
    from fusestep.models import GPT, GPTConfig
    from fusestep.training import StepMetrics, TrainConfig, Trainer

    torch.set_num_threads(1)
    settings = Settings(steps=steps, seed=seed)
    dtype, options, precision = VARIANTS[variant]
    torch.manual_seed(seed)
    model = GPT(GPTConfig(context=settings.context, dropout=settings.dropout)).to(getattr(torch, dtype))
    if options.get("rounding") == "stochastic":
        options = {**options, "seed": seed}
    optimizer = make_optimizer(settings, model, **options)
    train_text, val_text = split_text(read_text(()))
    batches = RandomBatches(train_text, settings.batch_size, settings.context, torch.Generator().manual_seed(seed))
    config = TrainConfig(
        max_steps=steps,
        precision=precision,
        max_grad_norm=MAX_GRAD_NORM,
        clip_start=settings.warmup_steps,
        eval_every=max(1, steps // 12),
        eval_batches=EVAL_BATCHES,
        progress=False,
    )
    evaluations: list[tuple[int, float]] = []

    def note(metrics: StepMetrics) -> None:
        if metrics.val_loss is not None:
            evaluations.append((metrics.step, metrics.val_loss))

    trainer = Trainer(model, optimizer, make_schedule(settings), config, callbacks=[note])
    trainer.fit(batches, SequentialBatches(val_text, settings.batch_size, settings.context))
    return evaluations


def table(runs: list[dict[str, Any]]) -> str:
    """The mean over the seeds of the last validation loss, in Markdown."""
    last: dict[str, list[float]] = {}
    for run in runs:
        last.setdefault(run["variant"], []).append(run["evaluations"][-1][1])
    baseline = statistics.mean(last[BASELINE]) if BASELINE in last else None
    lines = [
        "| training | validation loss, mean of the seeds | lowest to highest | against fp32 |",
        "|---|---|---|---|",
    ]
    for variant in (name for name in VARIANTS if name in last):
        losses = last[variant]
        mean = statistics.mean(losses)
        against = "" if baseline is None else f"{100 * (mean / baseline - 1):+.2f}%"
        seeds = f"{min(losses):.4f} to {max(losses):.4f}, {len(losses)} seeds"
        lines.append(f"| {variant} | {mean:.4f} | {seeds} | {against} |")
    return "\n".join(lines) + "\n"


def plot(runs: list[dict[str, Any]], file: Path) -> None:
    """A curve for each seed, a colour for each way to train; the second half, where they part."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for colour, variant in zip(colours, VARIANTS, strict=False):
        for number, run in enumerate(run for run in runs if run["variant"] == variant):
            steps, losses = zip(*run["evaluations"][len(run["evaluations"]) // 2 :], strict=True)
            label = None if number else variant
            axes.plot(steps, losses, color=colour, linewidth=1.4, alpha=0.85, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats a byte")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(file, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fusestep.bench.precision", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where precision.json, precision.md and precision.png go")
    parser.add_argument("--steps", type=int, default=600, help="updates of a run (default: %(default)s)")
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 1 2 3")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / "precision.json"
    document = {"schema": SCHEMA, "steps": arguments.steps, "machine": _machine.describe(), "runs": []}
    if file.exists():
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["steps"] != arguments.steps:
            parser.error(f"folder: '{file}' is of {document['steps']} steps a run: choose another folder")
    runs: list[dict[str, Any]] = document["runs"]
    made = {(run["variant"], run["seed"]) for run in runs}
    missing = [(v, seed) for seed in arguments.seeds for v in arguments.variants if (v, seed) not in made]
    with ProcessPoolExecutor(arguments.processes) as pool:
        pending = {pool.submit(train, *run, arguments.steps): run for run in missing}
        for done in as_completed(pending):
            variant, seed = pending[done]
            runs.append({"variant": variant, "seed": seed, "evaluations": done.result()})
            runs.sort(key=lambda run: (list(VARIANTS).index(run["variant"]), run["seed"]))
            file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(f"{variant}, seed {seed}: {done.result()[-1][1]:.4f}", flush=True)
    (arguments.folder / "precision.md").write_text(table(runs), encoding="utf-8")
    plot(runs, arguments.folder / "precision.png")
    print(table(runs), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
