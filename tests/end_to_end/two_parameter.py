"""The two-parameter flow of flowfactory.testing, and a reward for light pictures, as a one-file plugin."""

from flowfactory import ComponentConfig, hookimpl
from flowfactory.testing import TwoParameterConfig


class LightConfig(ComponentConfig):
    def build(self, label):
        return Light(label)


class Light:
    def __init__(self, label):
        self.label = label

    @hookimpl
    def compute_reward(self, samples):
        return {self.label: samples.media.flatten(1).mean(1)}


@hookimpl
def register_components(register):
    register("model", "two-parameter", TwoParameterConfig)
    register("reward", "light", LightConfig)
