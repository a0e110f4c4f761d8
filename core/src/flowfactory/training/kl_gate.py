"""Which of an iteration's samples a gated KL is for, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flowfactory.config.schema import RunConfig, reward_weights
from flowfactory.experience import Experience
from flowfactory.rl.kl_gate import most_uncertain, uncertainty


def gate_kl(rewards: Mapping[str, Tensor], config: RunConfig, device: torch.device) -> Tensor | None:
    """[B], bool, on ``device``, of all samples on all ranks; None where the KL has no gate."""
    gate = config.algorithm.kl_term.gate if config.algorithm.kl_term else None
    if gate is None:
        return None
    return most_uncertain(_uncertainty(rewards, config), gate.share).to(device)


def gate_metrics(experience: Experience, config: RunConfig) -> dict[str, float]:
    """The share of the samples that the KL is for, their mean uncertainty, and the mean of its absolute value over all."""
    if experience.kl_gate is None:
        return {}
    found, chosen = _uncertainty(experience.rewards, config), experience.kl_gate.cpu()
    figures = {"uncertainty": found[chosen], "disagreement": found[found.isfinite()].abs()}
    means = {f"kl_gate/{name}": float(own.mean()) for name, own in figures.items() if len(own)}
    return {"kl_gate/share": float(chosen.double().mean()), **means}


def _uncertainty(rewards: Mapping[str, Tensor], config: RunConfig) -> Tensor:
    return uncertainty(rewards, reward_weights(config), config.advantages.aggregate)
