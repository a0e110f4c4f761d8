"""The tracker that comes with core: TensorBoard event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowfactory.config.component import ComponentConfig
from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import UserError
from flowfactory.types import RunInfo


class TensorBoardConfig(ComponentConfig):
    """Every metric as a scalar in ``<run>/tensorboard``."""

    known_as = ("tb", "tensorboardx")

    def build(self, label: str) -> TensorBoard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("tracker 'tensorboard' needs: pip install 'flowfactory[tensorboard]'") from error
        return TensorBoard(SummaryWriter)


class TensorBoard:
    """Writes event files."""

    def __init__(self, writer: Any) -> None:
        self._make = writer
        self._writer: Any = None

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        """Open the event file."""
        self._writer = self._make(str(run.directory / "tensorboard"))

    @hookimpl
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """A scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    @hookimpl
    def run_finished(self) -> None:
        """Close the event file."""
        self._writer.close()

    @hookimpl
    def run_failed(self) -> None:
        """Close the event file, if there is one yet."""
        if self._writer is not None:
            self._writer.close()
