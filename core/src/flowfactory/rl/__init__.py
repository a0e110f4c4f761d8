"""Reinforcement learning in pure functions: advantages, losses, and divergences."""

from flowfactory.config.clip_range import ClipRange
from flowfactory.config.kl import KL, AdaptiveKL, KLTerm
from flowfactory.rl.advantages import advantages, normalize, reward_contributions
from flowfactory.rl.divergences import mean_kl, velocity_kl
from flowfactory.rl.groups import center, group_max, group_std, group_sum
from flowfactory.rl.kl_term import add_kl
from flowfactory.rl.losses import clip_ratio, clipped_surrogate, is_clipped, optimality, squared_error
from flowfactory.rl.norm_guard import NORM_GUARD, NormGuardConfig, guard_norm, norm_excess, root_mean_square

__all__ = [
    "KL",
    "NORM_GUARD",
    "AdaptiveKL",
    "ClipRange",
    "KLTerm",
    "NormGuardConfig",
    "add_kl",
    "advantages",
    "center",
    "clip_ratio",
    "clipped_surrogate",
    "group_max",
    "group_std",
    "group_sum",
    "guard_norm",
    "is_clipped",
    "mean_kl",
    "norm_excess",
    "normalize",
    "optimality",
    "reward_contributions",
    "root_mean_square",
    "squared_error",
    "velocity_kl",
]
