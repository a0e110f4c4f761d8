"""A one-file plugin: noisy steps that do not say whether their mean is linear in the velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowfactory import DynamicsConfig, hookimpl
from flowfactory.flow.dynamics import FlowSDE, FlowSDEConfig


class UnstatedConfig(DynamicsConfig):
    """Flow-SDE, unstated."""

    def build(self, label: str) -> FlowSDE:
        return FlowSDEConfig().build(label)


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("dynamics", "unstated", UnstatedConfig)
