"""The model: its options, its network, and its hooks.

Where diffusers has a pipeline for yours, begin with ``flowfactory plugins new model NAME --family`` instead. Core then has the
hooks, and what you write is a record of functions: flowfactory's page on models shows them.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence

import torch
from flowfactory import (
    Conditions,
    Evaluation,
    ModelConfig,
    Prompt,
    RunConfig,
    Runtime,
    SamplingPlan,
    Step,
    Trainable,
    Trajectory,
    flow,
    hookimpl,
)
from pydantic import Field
from torch import Tensor, nn

SHAPE = (3, 8, 8)
"""Of the latents of one sample, which here are its pixels."""


class NewNameConfig(ModelConfig):
    """Pictures of 8x8 pixels by a small network that starts untrained."""

    # Change: a model with weights has `path: flowfactory.CheckpointPath`, a folder or a hub id.
    width: int = Field(64, ge=1, description="of the hidden layer")

    def check(self, run: RunConfig) -> None:
        """The size is the one that it draws."""
        # Change: refuse what your model cannot draw, in one sentence.
        if tuple(run.sampling.size) != SHAPE[1:]:
            raise ValueError(f"sampling.size {list(run.sampling.size)}: this model draws [8, 8]")

    def build(self, label: str) -> NewName:
        return NewName(self)


class Network(nn.Module):
    """Velocity [B, 3, 8, 8] from latents, a time in 0..1000 and the letters of the prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(3 * 8 * 8 + 1 + 26, width)
        self.down = nn.Linear(width, 3 * 8 * 8)

    def forward(self, latents: Tensor, time: Tensor, letters: Tensor) -> Tensor:
        """[B, 3, 8, 8]."""
        known = torch.cat([latents.flatten(1), time[:, None] / 1000, letters], 1)
        velocity: Tensor = self.down(nn.functional.silu(self.up(known)))
        return velocity.view_as(latents)


class NewName:
    """The hooks of a model."""

    def __init__(self, config: NewNameConfig) -> None:
        self.config = config

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        """The network, in host memory."""
        # Change: read your weights here, by flowfactory.models.load_module, which refuses files with gaps.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = Network(self.config.width).to(runtime.dtype)
        self.device = runtime.device
        return Trainable(
            modules={"transformer": self.network},
            training=self.config.train,
            lora_targets=("up", "down"),  # Change: endings of the names of the layers that get adapters
            blocks=(),  # Change: class names of the repeated blocks, which sharding and checkpointing wrap
            encoding="letters, version 1",  # Change: all that decides what encode returns, such as the checkpoint
            guided=False,  # Change: True if guidance above 1 takes a negative prompt
        )

    @hookimpl
    def encode(self, prompts: Sequence[Prompt]) -> Iterator[Mapping[str, Tensor]]:
        """How often each letter occurs in each prompt."""
        # Change: load your text encoder here, yield its tensors prompt by prompt, and let it go.
        for prompt in prompts:
            yield {"letters": torch.tensor([float(prompt.text.count(letter)) for letter in string.ascii_lowercase])}

    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        """Pictures [B, 3, 8, 8]."""
        noise = flow.noise(plan, SHAPE, device=self.device)
        sigmas = torch.linspace(1, 0, plan.steps + 1)  # Change: the schedule of your model, from 1 to 0
        latents, steps = flow.rollout(self.velocity, noise, sigmas, conditions, plan)
        return Trajectory(latents / 4 + 0.5, latents, sigmas, steps)  # Change: decode the latents to [0, 1]

    @hookimpl
    def encode_media(self, media: Tensor) -> Tensor:
        """Clean latents [B, 3, 8, 8] of pictures in [0, 1]: the other way round of what decodes them."""
        return 4 * media.to(self.device) - 2  # Change: by your VAE; leave it out where nothing is learned from records

    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        """One forward, by the function that draws."""
        return flow.evaluate(self.velocity(step.latents, step.sigma, step.conditions, step.guidance), step)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        """Noise less clean latents [B, ...]; sigma [B] is 1 for noise and 0 for clean."""
        # Change: one forward of your transformer; a model that counts time otherwise converts sigma here.
        velocity: Tensor = self.network(latents, 1000 * sigma, conditions.stack("letters"))
        return velocity
