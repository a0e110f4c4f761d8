"""Flow matching in pure functions: noise, one step, the rollout, dynamics, and training timesteps."""

from flowfactory.flow.noise import INITIAL, generator, noise
from flowfactory.flow.rollout import euler, evaluate, expand_sigma, forward_by_kind, log_normal, rollout

__all__ = ["INITIAL", "euler", "evaluate", "expand_sigma", "forward_by_kind", "generator", "log_normal", "noise", "rollout"]
