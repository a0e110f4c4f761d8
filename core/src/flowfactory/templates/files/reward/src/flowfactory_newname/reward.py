"""The reward: its options, and how it scores."""

from __future__ import annotations

from flowfactory import ComponentConfig, Samples, hookimpl
from pydantic import Field
from torch import Tensor


class NewNameConfig(ComponentConfig):
    """How close the mean brightness is to ``target``."""

    # Change: an option of yours is a field with a default, bounds and a description, which `flowfactory plugins show` prints.
    target: float = Field(0.5, ge=0, le=1, description="mean brightness, from 0 (black) to 1 (white)")

    def build(self, label: str) -> NewName:
        # Weights are no business of this method: read them in a hook `prepare_reward(self, device)`.
        return NewName(label, self.target)


class NewName:
    """Scores pictures one by one."""

    # Change: delete this line if a score depends on the other pictures of a prompt.
    pointwise = True

    def __init__(self, label: str, target: float) -> None:
        self.label, self.target = label, target

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """One score a sample, the higher the better."""
        # Change: media are [B, C, H, W], or [B, F, C, H, W] of videos, in [0, 1]. The texts are in samples.prompts.
        brightness = samples.media.flatten(1).mean(1)
        return {self.label: -(brightness - self.target).abs()}
