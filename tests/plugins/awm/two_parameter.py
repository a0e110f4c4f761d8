"""A one-file plugin for the runs of these tests: the two-parameter flow, and a reward for bright pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowfactory import ComponentConfig, Samples, hookimpl
from flowfactory.testing import TwoParameterConfig


class BrightConfig(ComponentConfig):
    """The mean brightness."""

    def build(self, label: str) -> Bright:
        return Bright(label)


class Bright:
    def __init__(self, label: str) -> None:
        self.label = label

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        return {self.label: samples.media.flatten(1).mean(1)}


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("model", "two-parameter", TwoParameterConfig)
    register("reward", "bright", BrightConfig)
