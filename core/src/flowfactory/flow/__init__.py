"""Flow matching in pure functions: noise, one step, the rollout, dynamics, and training timesteps."""

from flowfactory.flow.noise import INITIAL, generator, noise
from flowfactory.flow.rollout import euler, evaluate, in_parts, like, log_normal, rollout

__all__ = ["INITIAL", "euler", "evaluate", "generator", "in_parts", "like", "log_normal", "noise", "rollout"]
