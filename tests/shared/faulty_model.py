"""A one-file plugin: the two-parameter flow with a mistake that authors make, or with numbers that are not finite."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowfactory import flow, hookimpl
from flowfactory.testing import TwoParameter, TwoParameterConfig
from flowfactory.types import Conditions, Prompt, Runtime, SamplingPlan, Trainable, Trajectory

FILE = __file__
Schedule = Callable[[int], Tensor]
SCHEDULES: dict[str, Schedule] = {
    "above-zero": lambda steps: torch.linspace(1, 0.1, steps + 1),
    "above-one": lambda steps: torch.linspace(1.1, 0, steps + 1),
    "short": lambda steps: torch.linspace(1, 0, steps),
    "rising": lambda steps: torch.linspace(1, 0, steps + 1)[[0, *range(2, steps), 1, steps]],
}
DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda latents: latents / 2,
    "bytes": lambda latents: ((latents / 4 + 0.5).clamp(0, 1) * 255).byte(),
    "large": lambda latents: (latents / 4 + 0.5).repeat(1, 1, 2, 1),
    "moving": lambda latents: (latents / 4 + 0.5)[:, None].repeat(1, 3, 1, 1, 1),
    "flat": lambda latents: (latents / 4 + 0.5)[:, 0],
    "single": lambda latents: (latents / 4 + 0.5)[:1],
}


class FaultyConfig(TwoParameterConfig):
    """The two-parameter flow, but for ``fault``."""

    fault: str | None = None
    value: str = "nan"
    after: float = 1.0
    length: int | None = None
    """The fault is there up to this sigma; and for prompts of this length alone."""
    rank: str | None = None
    guided: bool = False
    free_to_change = ("fault", "value", "after", "length")

    def build(self, label: str) -> Faulty:
        return Faulty(self)


class Faulty(TwoParameter):
    """``start``, ``velocity``, ``element`` and ``media`` are not finite; the others are of SCHEDULES, DECODERS or by name."""

    def __init__(self, config: FaultyConfig) -> None:
        super().__init__(config.p, config.q)
        self.config = config
        elsewhere = config.rank is not None and os.environ.get("RANK") != config.rank
        self.fault = None if elsewhere else config.fault

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        blocks = ("LinearBlock",) if self.fault == "blocks" else ()
        return Trainable({"transformer": self.flow}, "full", (), blocks, f"faulty {self.fault}", self.config.guided)

    @hookimpl
    def encode(self, prompts: Sequence[Prompt]) -> list[Mapping[str, Tensor]]:
        return [self._entry(prompt) for prompt in prompts]

    def _entry(self, prompt: Prompt) -> Mapping[str, Tensor]:
        length = torch.tensor(float(len(prompt.text)))
        embeds = torch.sin(torch.tensor([ord(letter) for letter in f"{prompt.text:>20}"]).float())
        if self.fault == "blind":
            length = torch.tensor(5.0)
        if self.fault in ("unread", "blind"):
            embeds = torch.sin(torch.arange(20.0))
        if self.fault == "conditions" and self.config.length in (None, len(prompt.text)):
            embeds[3] = float(self.config.value)
        return {"length": length, "embeds": embeds}

    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        sigmas = SCHEDULES.get(str(self.fault), lambda steps: torch.linspace(1, 0, steps + 1))(plan.steps)
        start = self._broken("start", flow.noise(plan, self.SHAPE), conditions)
        latents, steps = flow.rollout(self.velocity, start, sigmas, conditions, plan)
        media = DECODERS.get(str(self.fault), lambda latents: latents / 4 + 0.5)(latents)
        return Trajectory(self._broken("media", media, conditions), latents, sigmas, steps)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        velocity = super().velocity(latents, sigma, conditions, guidance)
        if self.fault == "broadcast":
            return velocity.mean(1, keepdim=True)[..., :1]
        if self.fault == "padding":  # the mean over what is padded, without its mask
            shorter = [{"row": torch.ones(int(entry["length"]))} for entry in conditions.entries]
            padded, _ = Conditions(tuple(shorter)).pad("row")
            velocity = velocity + flow.expand_sigma(padded.mean(1), latents)
        if float(sigma[0]) > self.config.after:
            return velocity
        return self._broken("element", self._broken("velocity", velocity, conditions), conditions, element=True)

    def _broken(self, fault: str, tensor: Tensor, conditions: Conditions, element: bool = False) -> Tensor:
        if self.fault != fault:
            return tensor
        told = conditions.stack("length") == self.config.length if self.config.length else torch.ones(len(tensor)).bool()
        where = told.reshape(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor).clone()
        if element:
            where[..., 1:] = False
        return tensor.masked_fill(where, float(self.config.value))


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("model", "faulty", FaultyConfig)
