"""Supervised fine-tuning: the loss of pretraining, arXiv:2210.02747, on the targets of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from flowfactory import Experience, Loss, Policy, hookimpl
from flowfactory.flow import LogitNormal, Timesteps, TimestepsConfig
from flowfactory.policy import flow_matching


class SFTConfig(TimestepsConfig):
    """Supervised fine-tuning on the targets of prompts: nothing is drawn to train, and no reward is computed."""

    known_as = ("supervised", "fine-tuning", "finetune", "flow-matching")

    learns_from: ClassVar[Literal["samples", "targets", "pairs"]] = "targets"
    rewarded: ClassVar[bool] = False

    timesteps: Timesteps = Field(LogitNormal(count=1, shift="model"), description="training timesteps")

    def build(self, label: str) -> SFT:
        return SFT(self)


class SFT:
    """One loss a target and training time."""

    def __init__(self, config: SFTConfig) -> None:
        self._config = config

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """|v - (noise - x0)|² at each place."""
        return flow_matching(experience, policy, self._config.timesteps)
