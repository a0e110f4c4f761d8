"""A one-file plugin: a reward of the mean brightness, and trouble on the second rank."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, RunInfo, Samples, hookimpl


class TroubledConfig(ComponentConfig):
    """The mean of the pixels, until call ``at``."""

    free_to_change = ("seconds",)

    trouble: Literal["none", "raise", "die"] = "none"
    at: int = Field(3, ge=1, description="of the calls, counted from 1")
    seconds: float = Field(0.0, ge=0, description="how long it takes its time")

    def build(self, label: str) -> Troubled:
        return Troubled(label, self)


class Troubled:
    """Counts its calls."""

    def __init__(self, label: str, config: TroubledConfig) -> None:
        self.label, self.config, self.calls = label, config, 0

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        self.calls += 1
        time.sleep(self.config.seconds)
        if os.environ.get("RANK") == "1" and self.calls == self.config.at:
            if self.config.trouble == "raise":
                raise ValueError("the judge is out")
            if self.config.trouble == "die" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
        return {self.label: samples.media.flatten(1).mean(1)}


class WitnessConfig(ComponentConfig):
    """Leaves in the run directory by what the run failed."""

    def build(self, label: str) -> Witness:
        return Witness()


class Witness:
    """Hears of the end on the leading rank."""

    @hookimpl
    def run_failed(self, run: RunInfo, error: BaseException) -> None:
        (run.directory / "witness").write_text(type(error).__name__)


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("reward", "troubled", TroubledConfig)
    register("tracker", "witness", WitnessConfig)
