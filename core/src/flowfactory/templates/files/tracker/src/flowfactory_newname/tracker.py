"""The tracker: its options, and what it makes of what it hears of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowfactory import ComponentConfig, RunInfo, hookimpl
from pydantic import Field


class NewNameConfig(ComponentConfig):
    """A line of text for each iteration, in ``newname.txt`` of the run directory."""

    # Change: an option of yours is a field with a default, bounds and a description, which `flowfactory plugins show` prints.
    every: int = Field(1, ge=1, description="iterations between two lines")

    def build(self, label: str) -> NewName:
        return NewName(self.every)


class NewName:
    """Hears of a run on its leading rank alone."""

    def __init__(self, every: int) -> None:
        self.every = every

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        """Begin, or go on where a run is resumed."""
        # Change: open a file or a connection here. run.config is the whole config, with its defaults.
        self._write(run.directory, f"{run.iterations} iterations")
        self.directory = run.directory

    @hookimpl
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """A line of the rewards; iteration 0 is the evaluation before training."""
        # Change: metrics.jsonl of a run shows all names that there are.
        if iteration % self.every == 0:
            rewards = (f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("/mean"))
            self._write(self.directory, f"{iteration}: {', '.join(sorted(rewards))}")

    @hookimpl
    def run_finished(self, run: RunInfo) -> None:
        """The last line."""
        self._write(run.directory, "finished")

    @hookimpl
    def run_failed(self, run: RunInfo, error: BaseException) -> None:
        """The last line of a run that could not go on, or was asked to stop."""
        # Change: close here what run_started opened. A run that is killed says nothing.
        self._write(run.directory, f"stopped by {type(error).__name__}")

    def _write(self, directory: Path, line: str) -> None:
        with open(directory / "newname.txt", "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
