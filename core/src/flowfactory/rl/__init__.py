"""Reinforcement learning in pure functions: advantages, losses, and divergences."""

from flowfactory.rl.advantages import advantages, normalize, reward_contributions
from flowfactory.rl.divergences import mean_kl, velocity_kl
from flowfactory.rl.groups import center, group_max, group_std, group_sum
from flowfactory.rl.losses import clipped_surrogate, is_clipped, optimality, squared_error

__all__ = [
    "advantages",
    "center",
    "clipped_surrogate",
    "group_max",
    "group_std",
    "group_sum",
    "is_clipped",
    "mean_kl",
    "normalize",
    "optimality",
    "reward_contributions",
    "squared_error",
    "velocity_kl",
]
