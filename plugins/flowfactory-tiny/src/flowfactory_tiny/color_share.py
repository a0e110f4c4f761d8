"""The reward ``color-share``, which can be fooled: how much of the picture has the colours that the prompt names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowfactory import ComponentConfig, Samples, hookimpl, rewards
from flowfactory_tiny.scene_reward import SceneConfig, read_caption
from flowfactory_tiny.scenes import BACKGROUNDS, COLORS, parse_caption

if TYPE_CHECKING:
    from flowfactory import RunConfig


class ColorShareConfig(ComponentConfig):
    """The share of pixels whose nearest colour is one that the prompt names; in [0, 1]. For showing how a reward is hacked.

    Prompts must be of the tiny world.
    """

    starter_prompts = SceneConfig.starter_prompts

    def check(self, run: RunConfig) -> None:
        """Every prompt that it judges is a caption of the tiny world."""
        rewards.check_prompts(run, self, partial(read_caption, "color-share"))

    def weight_bytes(self) -> dict[str, int]:
        return {}

    def build(self, label: str) -> ColorShare:
        return ColorShare(label)


class ColorShare:
    """Scores [B] in [0, 1]; deterministic."""

    pointwise = True

    def __init__(self, label: str) -> None:
        self._label = label
        self._palette = torch.tensor([*COLORS.values(), *BACKGROUNDS.values()])

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """Name the colour of every pixel, and count those that are wanted."""
        pixels = samples.media.float().movedim(1, -1)  # [B, H, W, 3]
        nearest = torch.cdist(pixels.flatten(1, 2), self._palette).argmin(-1)  # [B, H W]
        names = [*COLORS, *BACKGROUNDS]
        wanted = torch.zeros(len(nearest), len(names))
        for row, prompt in enumerate(samples.prompts):
            for noun in parse_caption(prompt).nouns:
                wanted[row, names.index(noun.color)] = 1
        return {self._label: wanted.gather(1, nearest.cpu()).mean(1)}
