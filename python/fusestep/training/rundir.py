"""The directory of a run: what its files are called, and that no run overwrites another by accident."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fusestep._refusal import refuse
from fusestep.training import checkpoint, checkpoint_v1


@dataclass(frozen=True)
class RunDir:
    """The files of a run under ``path``: what the trainer, its callbacks and the command line write."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def health(self) -> Path:
        """What ``callbacks.HealthCallback`` writes."""
        return self.path / "health.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Where ``fusestep train --dashboard tensorboard`` writes."""
        return self.path / "tensorboard"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint_v1(self) -> Path:
        """What fusestep 0.1 wrote, and ``fit`` can still read."""
        return self.path / "checkpoint.pt"

    @property
    def to_resume(self) -> Path:
        """What a run that is resumed goes on from, unless it is told otherwise: it may hold nothing."""
        old = self.checkpoint_v1.is_file() and not self.checkpoints.exists()
        return self.checkpoint_v1 if old else self.checkpoints

    @property
    def nonfinite(self) -> Path:
        """Updates whose loss was infinite or NaN: see ``fusestep.training.nonfinite``."""
        return self.path / "nonfinite.jsonl"

    @property
    def diagnostics(self) -> Path:
        """What ``callbacks.DiagnosticCallback`` writes."""
        return self.path / "diagnostics"

    @property
    def diagnosis(self) -> Path:
        """What ``fusestep diagnose`` found; its picture has the same name."""
        return self.path / "diagnosis.json"

    @property
    def diagnosis_picture(self) -> Path:
        return self.path / "diagnosis.png"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    def claim(self, *, overwrite: bool) -> None:
        """Makes the directory, ready for a new run.

        Deletes the files of an older run, and only those, when ``overwrite``; else refuses with a ValueError that
        says how to go on.
        """
        old = self.checkpoint_v1
        files = (
            self.metrics,
            self.health,
            *self.tensorboard.glob("events.out.tfevents.*"),
            self.curves,
            self.nonfinite,
            *self.diagnostics.glob("*-[0-9]*.json"),
            *self.diagnostics.glob("*-[0-9]*.png"),
            self.diagnosis,
            self.diagnosis_picture,
            self.sample,
            old,
            checkpoint_v1.previous_path(old),
        )
        present = [file for file in (*files, self.checkpoints) if file.exists()]
        if present and not overwrite:
            refuse(
                "run directory",
                f"'{self.path}'",
                "a new or empty one",
                f"one with {present[0].name} of another run",
                "Pass --resume or --overwrite (resume_from, overwrite in Python), or take another directory.",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_all(self.checkpoints)
        for file in files:
            file.unlink(missing_ok=True)
