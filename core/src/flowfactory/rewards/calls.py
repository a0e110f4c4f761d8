"""One reward: its component behind the hooks, and errors under its label."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from flowfactory.config.component import ComponentConfig
from flowfactory.discovery.source_places import place_of
from flowfactory.errors import RunError
from flowfactory.hooks.building import build
from flowfactory.hooks.manager import make_manager, require_hook
from flowfactory.types import Answer, Samples


class RewardComponent:
    """A reward under its label, computed where it is asked.

    ``concurrent``: what its component says of itself.
    """

    def __init__(self, label: str, config: ComponentConfig) -> None:
        component = build(config, label)
        self._component, self._label = component, label
        self._manager = make_manager({label: component})
        require_hook(self._manager, label, "compute_reward")
        self.concurrent = bool(getattr(component, "concurrent", False))

    @property
    def pointwise(self) -> bool:
        """Whether its component says, which it may once it is prepared, that it scores each sample by itself; in doubt not."""
        return getattr(self._component, "pointwise", False) is True

    def prepare(self, device: torch.device) -> None:
        """See RunSpecs.prepare_reward."""
        self._manager.hook.prepare_reward(device=device)

    def compute(self, samples: Samples) -> Answer:
        """See RunSpecs.compute_reward."""
        with torch.no_grad():
            return self._compute(samples)

    def _compute(self, samples: Samples) -> Answer:
        before = self._version(samples)
        answers: list[Answer] = self._manager.hook.compute_reward(samples=samples)
        if self._version(samples) != before:
            raise RunError(f"{self._place()} changed the pictures, which other rewards see too; work on samples.media.clone()")
        if not answers:
            raise RunError(f"{self._place()} returned nothing; return {{label: scores [B]}}")
        if isinstance(answers[0], Generator):
            raise RunError(f"{self._place()} yields; return the scores instead")
        return answers[0]

    @staticmethod
    def _version(samples: Samples) -> int:
        """Counts what was written to the pictures; tensors of inference mode do not count."""
        return 0 if samples.media.is_inference() else samples.media._version

    def _place(self) -> str:
        method: Any = getattr(type(self._manager.get_plugin(self._label)), "compute_reward", None)
        return place_of(method)
