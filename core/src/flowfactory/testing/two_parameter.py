"""The smallest flow there is, with two weights, a reward for bright pictures, and a config of a run with both.

This file is a one-file plugin too: ``plugins: [flowfactory.testing.two_parameter.FILE]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowfactory import flow
from flowfactory.config.component import ComponentConfig, ModelConfig
from flowfactory.discovery.specs import hookimpl
from flowfactory.types import Conditions, Evaluation, Prompt, Runtime, Samples, SamplingPlan, Step, Trainable, Trajectory

FILE = str(Path(__file__).resolve())


class TwoParameterConfig(ModelConfig):
    """The smallest flow: velocity = p x + q sigma, drawn as 4x4 pictures; gradients can be worked out by hand."""

    p: float = 0.1
    q: float = 0.0
    train: Any = "full"

    def build(self, label: str) -> TwoParameter:
        return TwoParameter(self.p, self.q)


class TwoParameter:
    """A model with all hooks and two weights."""

    SHAPE = (1, 4, 4)

    def __init__(self, p: float, q: float) -> None:
        self.flow = LinearFlow(p, q)

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        """The two weights."""
        return Trainable({"transformer": self.flow}, "full", (), (), "two-parameter", guided=False)

    @hookimpl
    def encode(self, prompts: Sequence[Prompt]) -> list[Mapping[str, Tensor]]:
        """The length of the text; the velocity does not look at it."""
        return [{"length": torch.tensor(float(len(prompt.text)))} for prompt in prompts]

    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        """Grey pictures [B, 1, 4, 4]."""
        sigmas = torch.linspace(1, 0, plan.steps + 1)
        latents, steps = flow.rollout(self.velocity, flow.noise(plan, self.SHAPE), sigmas, conditions, plan)
        return Trajectory(latents / 4 + 0.5, latents, sigmas, steps)

    @hookimpl
    def encode_media(self, media: Tensor) -> Tensor:
        """Latents [B, 1, 4, 4] of pictures [B, C, 4, 4], grey."""
        return (media.mean(1, keepdim=True) - 0.5) * 4

    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        """One forward."""
        return flow.evaluate(self.velocity(step.latents, step.sigma, step.conditions, step.guidance), step)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        """p x + q sigma."""
        velocity: Tensor = self.flow(latents, flow.expand_sigma(sigma, latents))
        return velocity


class LinearFlow(nn.Module):
    """p x + q sigma."""

    def __init__(self, p: float, q: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.q = nn.Parameter(torch.tensor(q))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """[B, ...]."""
        return self.p * x + self.q * sigma


class GuidedConfig(TwoParameterConfig):
    """velocity = p x + q sigma l, where guidance takes l from the negative prompt's length towards and past the prompt's."""

    detaches_negatives: ClassVar[bool] = True

    def build(self, label: str) -> Guided:
        return Guided(self.p, self.q)


class Guided(TwoParameter):
    """One forward under any guidance, since the velocity is linear in the length; two where one is to have no gradient."""

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        """The two weights, and that guidance wants a negative prompt."""
        return Trainable({"transformer": self.flow}, "full", (), (), "guided", guided=True)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        """p x + q sigma l."""
        length, negative = conditions.stack("length"), conditions.negative
        if negative is None:
            return self._at(latents, sigma, length)
        opposite = negative.stack("length")
        if not negative.detached:
            return self._at(latents, sigma, opposite + guidance * (length - opposite))
        with flow.negative_branch(negative):
            without = self._at(latents, sigma, opposite)
        return without + guidance * (self._at(latents, sigma, length) - without)

    def _at(self, latents: Tensor, sigma: Tensor, length: Tensor) -> Tensor:
        velocity: Tensor = self.flow(latents, flow.expand_sigma(sigma * length, latents))
        return velocity


class BrightConfig(ComponentConfig):
    """The mean brightness."""

    def build(self, label: str) -> Bright:
        return Bright(label)


class Bright:
    """One score a picture, in [0, 1]."""

    def __init__(self, label: str) -> None:
        self.label = label

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: mean of the picture}``."""
        return {self.label: samples.media.flatten(1).mean(1)}


def settings(
    folder: Path, algorithm: str | Mapping[str, Any], plugins: Sequence[str | Path] = (), **sections: Mapping[str, Any]
) -> dict[str, Any]:
    """A config of three iterations of ``algorithm`` on this flow, as the mapping that a file would hold.

    ``plugins`` are more one-file plugins, and ``sections`` are set on top, key by key. The prompts and the run lie in
    ``folder``.
    """
    (folder / "train.txt").write_text("a\nbb\nccc\n")
    raw: dict[str, Any] = {
        "model": {"name": "two-parameter"},
        "algorithm": algorithm if isinstance(algorithm, str) else dict(algorithm),
        "rewards": {"light": "bright"},
        "prompts": {"train": str(folder / "train.txt")},
        "sampling": {"groups": 2, "group_size": 4, "size": [4, 4], "steps": 6, "batch_size": 8, "dynamics": "ode"},
        "training": {"iterations": 3, "batch_size": 4, "optimizer": {"lr": 0.02}},
        "output": {"dir": str(folder / "run")},
        "plugins": [FILE, *map(str, plugins)],
        "device": "cpu",
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return raw


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the models ``two-parameter`` and ``guided``, the reward ``bright`` and the algorithm ``policy-gradient``."""
    # by name: as a plugin this file is a module of its own
    register("model", "two-parameter", "flowfactory.testing.two_parameter:TwoParameterConfig")
    register("model", "guided", "flowfactory.testing.two_parameter:GuidedConfig")
    register("reward", "bright", "flowfactory.testing.two_parameter:BrightConfig")
    register("algorithm", "policy-gradient", "flowfactory.testing.policy_gradient:PolicyGradientConfig")
