"""The marker of all hooks, and what an installed plugin answers before any run exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

PROJECT = "flowfactory"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a component as its answer to the hook of that name; what is not marked is never called."""


class DiscoverySpecs:
    """What an installed plugin answers before any run exists."""

    @hookspec
    def register_components(self, register: Callable[[str, str, Any], None]) -> None:
        """Call ``register(kind, name, spec)`` once per component.

        ``kind`` is one of ``model``, ``algorithm``, ``reward``, ``dynamics``, ``tracker`` (then ``spec`` is a
        :class:`~flowfactory.config.component.ComponentConfig` class or a lazy ``"package.module:Class"``) or ``example`` (then
        ``spec`` is the path of a YAML file). Must not import torch.
        """
