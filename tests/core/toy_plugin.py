"""A one-file plugin for the tests: three models, an algorithm of ten lines, and a reward."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowfactory import AlgorithmConfig, ComponentConfig, Experience, Loss, ModelConfig, Policy, UserError, flow, hookimpl
from flowfactory.rl.divergences import velocity_kl
from flowfactory.rl.losses import clipped_surrogate, is_clipped
from flowfactory.testing import TwoParameterConfig
from flowfactory.types import Conditions, Evaluation, Prompt, Runtime, Samples, SamplingPlan, Step, Trainable, Trajectory

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


class NetConfig(ModelConfig):
    """A velocity of two linear layers, which adapters go on."""

    detaches_negatives: ClassVar[bool] = True

    guided: bool = False

    def build(self, label: str) -> Net:
        return Net(self)


class Net:
    """16 numbers a picture; the prompt's length shifts the velocity."""

    def __init__(self, config: NetConfig) -> None:
        self.config = config
        generator = flow.generator("net")
        self.net = nn.Sequential(nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 16))
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        self.net.to(runtime.dtype)
        return Trainable({"transformer": self.net}, self.config.train, ("0", "2"), (), "net", self.config.guided)

    @hookimpl
    def encode(self, prompts: Sequence[Prompt]) -> list[Mapping[str, Tensor]]:
        return [{"length": torch.tensor(len(prompt.text) / 10)} for prompt in prompts]

    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        sigmas = torch.linspace(1, 0, plan.steps + 1)
        latents, steps = flow.rollout(self.velocity, flow.noise(plan, (1, 4, 4)), sigmas, conditions, plan)
        return Trajectory(latents / 4 + 0.5, latents, sigmas, steps)

    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        return flow.evaluate(self.velocity(step.latents, step.sigma, step.conditions, step.guidance), step)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        if conditions.negative is None:
            return self._forward(latents, sigma, conditions)
        with flow.negative_branch(conditions.negative):
            opposite = self._forward(latents, sigma, conditions.negative)
        return opposite + guidance * (self._forward(latents, sigma, conditions) - opposite)

    def _forward(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        inputs = torch.cat([latents.flatten(1), sigma[:, None], conditions.stack("length")[:, None]], 1)
        velocity: Tensor = self.net(inputs)
        return velocity.reshape(latents.shape)


class ExpertsConfig(NetConfig):
    """The net twice: the first for sigmas from a half up, the second below."""

    only: str | None = Field(None, description="which of them trains")

    def build(self, label: str) -> Experts:
        return Experts(self)


class Experts(Net):
    def __init__(self, config: ExpertsConfig) -> None:
        super().__init__(config)
        self.experts = {"transformer": self.net, "transformer_2": copy.deepcopy(self.net)}

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        only = self.config.only
        trained = {name: net for name, net in self.experts.items() if only in (None, name)}
        frozen = {name: net for name, net in self.experts.items() if name not in trained}
        return Trainable(trained, self.config.train, ("0", "2"), (), "experts", guided=False, frozen=frozen)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        inputs = torch.cat([latents.flatten(1), sigma[:, None], conditions.stack("length")[:, None]], 1)
        sides = ["transformer" if s >= 0.5 else "transformer_2" for s in sigma.tolist()]
        found = flow.forward_by_kind(sides, lambda rows, side: self.experts[side](inputs[torch.tensor(list(rows))]))
        return found.reshape(latents.shape)


class ScoreConfig(AlgorithmConfig):
    """The clipped policy gradient on recorded steps, pulled towards a slow average of the weights."""

    pull: float = Field(0.0, ge=0, description="weight of the divergence from the slow weights")
    clip_range: float = Field(0.1, gt=0)

    def check(self, run: RunConfig) -> None:
        if not run.sampling.dynamics.stochastic:
            raise ValueError("algorithm score needs stochastic dynamics")

    def build(self, label: str) -> Score:
        return Score(self)


class Score:
    """Its one state, the slow weights, is the policy's."""

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        policy.track_ema("slow", lambda iteration: 0.5)

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        return replace(plan, recorded=plan.stochastic)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        clip = self.config.clip_range
        for batch in experience.micro_batches():
            for step in batch.steps:
                with torch.no_grad(), policy.using("slow"):
                    slow = policy.evaluate(step).velocity
                new = policy.evaluate(step)
                assert new.log_prob is not None
                assert step.log_prob is not None
                ratio = torch.exp(new.log_prob - step.log_prob)
                pull = velocity_kl(new.velocity, slow)
                yield Loss(
                    clipped_surrogate(ratio, batch.advantages, clip) + self.config.pull * pull,
                    metrics={"ratio/mean": ratio},
                    extremes={"ratio/max_deviation": (ratio - 1).abs()},
                    cuts={"clip_fraction": is_clipped(ratio, batch.advantages, clip)},
                    terms={"pull": pull} if self.config.pull else {},
                    ratios=ratio,
                )


class BrightConfig(ComponentConfig):
    """The mean of the pixels."""

    free_to_change = ("seconds",)

    scale: float = Field(1.0, description="what the score is multiplied by")
    seconds: float = Field(0.0, ge=0, description="how long it takes its time")
    nan_from: int | None = Field(None, description="the call, counted from 1, from which on it gives NaN")
    flat_while: str | None = Field(None, description="a file: while it is there, all pictures score alike")
    refuses: str | None = Field(None, description="what it says in place of being prepared")
    raises: str | None = Field(None, description="what it says in place of an answer")
    tells: Literal["pid"] | None = Field(None, description="the score is the number of its process")
    dies: bool = Field(False, description="whether its process is killed when it is asked")

    weighs: int | None = Field(None, description="bytes that it says it holds, under one name for all")

    def weight_bytes(self) -> dict[str, int] | None:
        return None if self.weighs is None else {"bright": self.weighs}

    def build(self, label: str) -> Bright:
        return Bright(label, self)


class Bright:
    """Counts its calls."""

    def __init__(self, label: str, config: BrightConfig) -> None:
        self.label, self.config, self.calls = label, config, 0

    @hookimpl
    def prepare_reward(self) -> None:
        if self.config.refuses is not None:
            raise UserError(self.config.refuses)

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        self.calls += 1
        if self.config.raises is not None:
            raise ValueError(self.config.raises)
        if self.config.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.tells == "pid":
            return {self.label: torch.full((len(samples.prompts),), float(os.getpid()))}
        time.sleep(self.config.seconds)
        if self.config.nan_from is not None and self.calls >= self.config.nan_from:
            return {self.label: torch.full((len(samples.prompts),), torch.nan)}
        if self.config.flat_while is not None and os.path.exists(self.config.flat_while):
            return {self.label: torch.full((len(samples.prompts),), 0.8125)}
        return {self.label: self.config.scale * samples.media.flatten(1).mean(1)}


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("model", "toy", TwoParameterConfig)
    register("model", "net", NetConfig)
    register("model", "experts", ExpertsConfig)
    register("algorithm", "score", ScoreConfig)
    register("reward", "bright", BrightConfig)
