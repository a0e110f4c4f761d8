"""A config to the typed hooks of one run; fails before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from flowfactory.config.schema import RunConfig
from flowfactory.hooks.building import build
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import EXACTLY_ONE, make_manager, require_hook
from flowfactory.rewards.scoring import Rewards
from flowfactory.types import Dynamics


class Assembly:
    """All components of a config, built and joined: hooks, dynamics, training and evaluation rewards."""

    def __init__(self, config: RunConfig, observers: Iterable[object] = (), trackers: bool = True) -> None:
        components: dict[str, object] = {
            "model": build(config.model, "model"),
            "algorithm": build(config.algorithm, "algorithm"),
        }
        if trackers:
            components |= {f"tracker {i}": build(t, f"tracker {i}") for i, t in enumerate(config.output.trackers)}
        components |= {f"observer {i}": observer for i, observer in enumerate(observers)}
        manager = make_manager(components)
        for hook, owner in EXACTLY_ONE.items():
            require_hook(manager, owner, hook)
        if config.learned_records:
            require_hook(manager, "model", "encode_media")
        self.hooks = Hooks(manager)
        dynamics: Any = build(config.sampling.dynamics, "dynamics")
        other = config.evaluation.dynamics
        evaluation_dynamics: Any = _ode() if other is None else build(other, "evaluation.dynamics")
        self.dynamics: Dynamics = dynamics
        self.evaluation_dynamics: Dynamics = evaluation_dynamics
        self.rewards = Rewards(config.rewards, config.plugins)
        others = config.evaluation.rewards
        self.evaluation_rewards = Rewards(others, config.plugins) if others else self.rewards

    def prepare_rewards(self, device: torch.device, weights: bool = True) -> None:
        """Have all rewards, or without ``weights`` those that hold none, read and reach what they need. UserError, RunError."""
        for rewards in (self.rewards, self.evaluation_rewards):
            rewards.prepare(device, weights)


def _ode() -> Dynamics:
    from flowfactory.flow.dynamics import ODE

    return ODE()
