"""The loss that flow models are pretrained with."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.experience import Experience, Loss
from flowfactory.flow.timesteps import Discrete, LogitNormal, Uniform, noised_micro_batches
from flowfactory.policy.policy import Policy
from flowfactory.rl.losses import squared_error


def flow_matching(experience: Experience, policy: Policy, timesteps: Discrete | Uniform | LogitNormal) -> Iterator[Loss]:
    """Mean |v - (noise - x0)|² of each sample at each of its times, one forward's worth a loss. arXiv:2210.02747, eq. 23."""
    for at in noised_micro_batches(experience, timesteps):
        yield Loss(squared_error(policy.evaluate(at.step).velocity, at.target))
