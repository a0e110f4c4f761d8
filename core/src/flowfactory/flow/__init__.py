"""Flow matching in pure functions: noise, schedules, one step, the rollout, dynamics, and training timesteps."""

from flowfactory.flow.rollout import euler, evaluate, generator, in_parts, like, log_normal, noise, rollout

__all__ = ["euler", "evaluate", "generator", "in_parts", "like", "log_normal", "noise", "rollout"]
