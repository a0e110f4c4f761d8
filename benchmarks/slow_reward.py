"""A one-file plugin for benchmarks: a reward that takes its time, as a large model on another machine does."""

import time

import torch
from pydantic import Field

from flowfactory import ComponentConfig, hookimpl


class SlowConfig(ComponentConfig):
    """The brightness of a picture, which takes ``seconds`` to tell."""

    seconds: float = Field(0.2, ge=0, description="that a picture takes")

    def build(self, label):
        return Slow(label, self.seconds)


class Slow:
    pointwise = True

    def __init__(self, label, seconds):
        self.label, self.seconds = label, seconds

    @hookimpl
    def compute_reward(self, samples):
        time.sleep(self.seconds * len(samples.prompts))
        return {self.label: torch.as_tensor(samples.media).flatten(1).mean(1)}


@hookimpl
def register_components(register):
    register("reward", "slow", SlowConfig)
