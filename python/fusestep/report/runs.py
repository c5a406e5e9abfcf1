"""A run as its directory shows it: also one that died, or that another version wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fusestep._refusal import refuse
from fusestep.report.health import HealthRecord, load_health
from fusestep.report.lines import parsed_lines
from fusestep.training.metrics import StepMetrics
from fusestep.training.rundir import RunDir

_FIELDS = tuple(f.name for f in fields(StepMetrics))


@dataclass(frozen=True)
class Run:
    """What a run directory holds. ``problems`` says in sentences what could not be read."""

    name: str
    steps: list[StepMetrics] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # of config.json
    machine: dict[str, Any] = field(default_factory=dict)  # of config.json, and the versions it names
    baseline_loss: float | None = None
    sample: str | None = None
    health: list[HealthRecord] = field(default_factory=list)  # of health.jsonl
    problems: list[str] = field(default_factory=list)

    @property
    def evaluations(self) -> list[StepMetrics]:
        return [step for step in self.steps if step.val_loss is not None]

    @property
    def best(self) -> StepMetrics | None:
        """The step of the least validation loss; None: never evaluated, or never finite."""
        finite = [step for step in self.evaluations if math.isfinite(step.val_loss or 0.0)]
        return min(finite, key=lambda step: step.val_loss or 0.0, default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole run, evaluations included."""
        last = self.steps[-1] if self.steps else None
        return last.tokens / last.seconds if last is not None and last.seconds > 0 else None


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Each as ``load_run``; named by their directories, by their whole paths where two directories share a name."""
    names = [Path(path).resolve().name for path in paths]
    unique = len(set(names)) == len(names)
    return [load_run(path, name if unique else str(path)) for path, name in zip(paths, names, strict=True)]


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Reads what there is. Raises ValueError where ``path`` is no directory or holds nothing of a run."""
    directory = RunDir(Path(path))
    if not directory.path.is_dir():
        refuse("report", "run", "a run directory", f"'{path}', which is none", "A run directory is what fit() writes.")
    present = [file for file in (directory.metrics, directory.config, directory.sample) if file.is_file()]
    if not present:
        expected = f"a directory with {directory.metrics.name} or {directory.config.name}"
        refuse("report", "run", expected, f"'{path}', which has neither", "A run directory is what fit() writes.")
    problems: list[str] = []
    config = _config(directory.config, problems)
    machine = config.get("machine", {}) | {key: config[key] for key in ("fusestep", "torch") if key in config}
    return Run(
        name=name or directory.path.resolve().name,
        steps=_steps(directory.metrics, problems),
        settings=config.get("settings", {}),
        machine=machine,
        baseline_loss=config.get("baseline_loss"),
        sample=directory.sample.read_text(encoding="utf-8", errors="replace") if directory.sample.is_file() else None,
        health=load_health(directory.health, problems),
        problems=problems,
    )


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        problems.append(f"There is no {path.name}: the settings of the run are not known.")
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as problem:
        problems.append(f"{path.name} cannot be read ({problem}): the settings of the run are not known.")
        return {}
    return config


def _steps(path: Path, problems: list[str]) -> list[StepMetrics]:
    """The lines that can be read, in their order; what is missing in a line is None, a loss NaN."""
    if not path.is_file():
        problems.append(f"There is no {path.name}: there are no curves to show.")
        return []
    unknown: set[str] = set()

    def parse(values: dict[str, Any]) -> StepMetrics:
        step = StepMetrics(
            step=int(values["step"]),
            loss=_number(values, "loss"),
            val_loss=values.get("val_loss"),
            lr=_number(values, "lr"),
            grad_norm=values.get("grad_norm"),
            tokens=int(values.get("tokens") or 0),
            seconds=_number(values, "seconds"),
        )
        unknown.update(set(values) - set(_FIELDS))
        return step

    steps = parsed_lines(path, parse, problems)
    if unknown:
        names = ", ".join(sorted(unknown))
        problems.append(f"{path.name} has fields of another version, which are not shown: {names}.")
    if not steps:
        problems.append(f"{path.name} has no step: there are no curves to show.")
    return steps


def _number(values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    return math.nan if value is None else float(value)
