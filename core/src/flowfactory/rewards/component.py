"""One reward: its component behind the hooks, and errors under its label."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flowfactory.config.schema import ComponentConfig
from flowfactory.errors import RunError, UserError
from flowfactory.hooks.manager import make_manager, require_hook
from flowfactory.types import Answer, Samples


class RewardComponent:
    """A reward under its label, computed where it is asked.

    ``pointwise``, ``concurrent``: what its component says of itself.
    """

    def __init__(self, label: str, config: ComponentConfig) -> None:
        component = config.build(label)
        self._manager = make_manager({label: component})
        require_hook(self._manager, label, "compute_reward")
        self.pointwise = bool(getattr(component, "pointwise", False))
        self.concurrent = bool(getattr(component, "concurrent", False))

    def prepare(self, device: torch.device) -> None:
        """See RunSpecs.prepare_reward."""
        self._manager.hook.prepare_reward(device=device)

    @torch.no_grad()
    def compute(self, samples: Samples) -> Answer:
        """See RunSpecs.compute_reward."""
        answers: list[Answer] = self._manager.hook.compute_reward(samples=samples)
        return answers[0]


@contextmanager
def name_errors(label: str) -> Iterator[None]:
    """Whatever is raised within becomes an error of the reward ``label``, with the line of a plugin that raised it."""
    try:
        yield
    except (RunError, UserError) as error:
        raise type(error)(f"reward {label!r}: {error}") from error
    except Exception as error:
        told = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise RunError(f"reward {label!r}: {told} ({_line(error)})") from error


def _line(error: Exception) -> str:
    """Where in the plugin it was raised: the first line below the call of its hook."""
    frames = traceback.extract_tb(error.__traceback__)
    below = max((i + 1 for i, frame in enumerate(frames) if Path(frame.filename).parent.name == "pluggy"), default=0)
    where = frames[min(below, len(frames) - 1)]
    return f"{Path(where.filename).name} line {where.lineno}"
