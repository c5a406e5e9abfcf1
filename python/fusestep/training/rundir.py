"""The directory of a run: what its files are called, and that no run overwrites another by accident."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fusestep._refusal import refuse
from fusestep.training.checkpoint import previous_path


@dataclass(frozen=True)
class RunDir:
    """``config.json``, ``metrics.jsonl``, ``curves.png``, ``checkpoint.pt`` and ``sample.txt`` under ``path``."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    def claim(self, *, overwrite: bool) -> None:
        """Makes the directory, ready for a new run.

        Deletes the files of an older run, and only those, when ``overwrite``; else refuses with a ValueError that
        says how to go on.
        """
        files = (self.metrics, self.curves, self.checkpoint, previous_path(self.checkpoint), self.sample)
        present = [file for file in files if file.exists()]
        if present and not overwrite:
            refuse(
                "run directory",
                f"'{self.path}'",
                "a new or empty one",
                f"one with {present[0].name} of another run",
                "Pass --resume or --overwrite (resume_from, overwrite in Python), or take another directory.",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for file in present:
            file.unlink()
