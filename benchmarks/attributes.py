"""A one-file plugin for benchmarks: rewards for plain attributes of a picture, of a scale that one chooses."""

from typing import Literal

from pydantic import Field

from flowfactory import ComponentConfig, hookimpl


class AttributeConfig(ComponentConfig):
    """``scale`` times the mean of all pixels, red less blue, or green less the mean of both."""

    what: Literal["bright", "warm", "green"] = Field(description="the attribute")
    scale: float = Field(1.0, description="what it is multiplied by")

    def build(self, label):
        return Attribute(label, self.what, self.scale)


class Attribute:
    def __init__(self, label, what, scale):
        self.label, self.what, self.scale = label, what, scale

    @hookimpl
    def compute_reward(self, samples):
        media = samples.media
        value = {
            "bright": lambda: media.flatten(1).mean(1),
            "warm": lambda: (media[:, 0] - media[:, 2]).flatten(1).mean(1),
            "green": lambda: (media[:, 1] - (media[:, 0] + media[:, 2]) / 2).flatten(1).mean(1),
        }[self.what]()
        return {self.label: self.scale * value}


@hookimpl
def register_components(register):
    register("reward", "attribute", AttributeConfig)
