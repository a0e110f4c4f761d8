"""Diffusion-DPO, arXiv:2311.12908, on flow matching: pairs of a chosen and a rejected record that prompts bring."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from flowfactory.flow import Timesteps, Uniform
from flowfactory_dpo.dpo import DPOConfig


class OfflineDPOConfig(DPOConfig):
    """Diffusion-DPO, arXiv:2311.12908: the chosen record of each prompt is preferred to the rejected one."""

    known_as: ClassVar[tuple[str, ...]] = ("diffusion-dpo", "flow-dpo", "dpo-offline", "preference-pairs")

    learns_from: ClassVar[Literal["samples", "targets", "pairs"]] = "pairs"
    rewarded: ClassVar[bool] = False

    beta: float = Field(2000.0, gt=0, description="how sharply a difference of errors, a mean over elements, is preferred")
    timesteps: Timesteps = Field(Uniform(count=1), description="training timesteps, the same ones for both of a pair")
