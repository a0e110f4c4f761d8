"""Any pointwise reward as its rank within the group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, InnerReward, RunConfig, Samples, hookimpl
from flowfactory.rewards import Rewards
from flowfactory.rl import group_std


class GroupRankConfig(ComponentConfig):
    """The share of the other pictures of the prompt that a picture scores above under the reward ``of``; in [0, 1].

    The best of a group scores 1, the worst 0, and ties share the mean of their places. What is left of ``of`` is its order,
    so that neither its scale nor its outliers matter.
    """

    starter_options: ClassVar[Mapping[str, Any]] = {"of": "jpeg-size"}

    of: InnerReward = Field(description="the reward whose order counts: its name, or a mapping with 'name' and its options")

    def check(self, run: RunConfig) -> None:
        """What ``of`` checks."""
        self.of.check(run)

    def lacking(self) -> str | None:
        return self.of.lacking()

    def ignores_prompts(self) -> bool:
        return self.of.ignores_prompts()

    def weight_bytes(self) -> Mapping[str, int] | None:
        return self.of.weight_bytes()

    def build(self, label: str) -> GroupRank:
        return GroupRank(label, Rewards({label: self.of}))


class GroupRank:
    """Looks at whole groups."""

    def __init__(self, label: str, rewards: Rewards) -> None:
        self.label, self._rewards = label, rewards
        self.concurrent = rewards.concurrent

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Prepare the reward whose order counts."""
        self._rewards.prepare(device)

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: ranks [B]}``."""
        return {self.label: rank_in_groups(self._rewards(samples)[self.label], samples.groups.cpu())}


def rank_in_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """float64 [B] in [0, 1]: the share of the others in its group that a score [B] is above, half for a tie; 1/2 when alone."""
    scores = torch.where(group_std(scores, groups) > 0, scores, 0.0)  # roundings are no order
    together = groups[:, None] == groups
    above = together * ((scores[:, None] > scores).double() + (scores[:, None] == scores).double() / 2)
    others = together.sum(1) - 1
    return torch.where(others > 0, (above.sum(1) - 0.5) / others.clamp(min=1), 0.5)
