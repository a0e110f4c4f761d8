"""A one-file plugin for the runs of these tests: the two-parameter flow, one that minds guidance, and a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowfactory import ComponentConfig, Conditions, Runtime, Samples, Trainable, flow, hookimpl
from flowfactory.testing import TwoParameter, TwoParameterConfig


class GuidedConfig(TwoParameterConfig):
    """velocity = p x + q sigma l, where guidance takes l from the negative prompt's length towards and past the prompt's."""

    def build(self, label: str) -> Guided:
        return Guided(self.p, self.q)


class Guided(TwoParameter):
    """One forward under any guidance, since the velocity is linear in the length."""

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        return Trainable({"transformer": self.flow}, "full", (), (), "guided", guided=True)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        length = conditions.stack("length")
        if conditions.negative is not None:
            opposite = conditions.negative.stack("length")
            length = opposite + guidance * (length - opposite)
        velocity: Tensor = self.flow(latents, flow.like(sigma * length, latents))
        return velocity


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
    register("model", "guided", GuidedConfig)
    register("reward", "bright", BrightConfig)
