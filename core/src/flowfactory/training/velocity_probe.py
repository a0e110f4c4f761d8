"""How large the velocity is at a few places that stay the same from the first iteration to the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowfactory.device_copies import send
from flowfactory.experience import Experience
from flowfactory.flow.noise import generator
from flowfactory.policy.policy import Policy
from flowfactory.rl.norm_guard import root_mean_square
from flowfactory.training.sampler import Sampler
from flowfactory.types import Conditions, Prompt, Step

SIGMAS = (1.0, 0.75, 0.5, 0.25)
"""Of the places, at each of which another prompt is asked for."""


def probed_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of ``prompts`` that a VelocityProbe asks for, one at each of SIGMAS."""
    return [prompts[place % len(prompts)] for place in range(len(SIGMAS))]


class VelocityProbe:
    """The velocity of the present weights for a few of ``prompts``, at noise times one of SIGMAS: latents of zero, noised.

    Nothing but the weights decides it, so that it tells how far these have moved: neither the iteration, nor how many ranks
    there are, each of which computes the same. A forward has at most ``batch_size`` rows.
    """

    def __init__(self, policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], seed: int, batch_size: int) -> None:
        self._policy, self._sampler, self._batch_size = policy, sampler, batch_size
        self._prompts = probed_prompts(prompts)
        self._seed = seed
        self._conditions: Conditions | None = None

    def measure(self, experience: Experience) -> float:
        """The mean root mean square, under the guidance that ``experience`` is learned from with. A joint work of the ranks."""
        plan = experience.plan
        guidance = plan.guidance if plan.training_guidance is None else plan.training_guidance
        if self._conditions is None:  # held, since what is not asked for again has to be read again
            self._conditions = self._sampler.conditions(self._prompts, guidance, plan.canvas)
        latents, sigma = self._places(experience.latents)
        whole, count = Step(latents, sigma, self._conditions, guidance, plan.dynamics), len(sigma)
        pieces = [range(start, min(start + self._batch_size, count)) for start in range(0, count, self._batch_size)]
        with torch.no_grad(), self._policy.velocity_sizes.measured():
            found = [root_mean_square(self._policy.evaluate(whole.rows(piece)).velocity) for piece in pieces]
        return float(torch.cat(found).mean())

    def _places(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [k, ...] of the shape and dtype of those of a sample of ``like``, and their sigma [k]."""
        sources = [generator("velocity probe", self._seed, place) for place in range(len(SIGMAS))]
        noise = [sigma * torch.randn(like.shape[1:], generator=source) for sigma, source in zip(SIGMAS, sources, strict=True)]
        device = self._policy.device
        return send(torch.stack(noise), device).to(like.dtype), send(torch.tensor(SIGMAS), device)
