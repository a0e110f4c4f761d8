"""Which of an iteration's samples a gated KL is for, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flowfactory.config.schema import RunConfig, reward_weights
from flowfactory.rl.kl_gate import most_uncertain, uncertainty


def gate_kl(rewards: Mapping[str, Tensor], config: RunConfig) -> tuple[Tensor | None, dict[str, float]]:
    """[B], bool, of all samples on all ranks, and its metrics; None where the KL has no gate.

    The metrics are the share of the samples that the KL is for, their mean uncertainty, and the mean of its absolute value over
    all of which it is known.
    """
    gate = config.algorithm.kl_term.gate if config.algorithm.kl_term else None
    if gate is None:
        return None, {}
    found = uncertainty(rewards, reward_weights(config), config.advantages.aggregate)
    chosen = most_uncertain(found, gate.share)
    figures = {"uncertainty": found[chosen], "disagreement": found[found.isfinite()].abs()}
    means = {f"kl_gate/{name}": float(own.mean()) for name, own in figures.items() if len(own)}
    return chosen, {"kl_gate/share": float(chosen.double().mean()), **means}
