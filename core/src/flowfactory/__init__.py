"""Reinforcement learning for flow-matching generators: a minimal core, everything else is a plugin.

What authors of plugins need is importable from here, and from ``flowfactory.models``, ``flowfactory.policy``,
``flowfactory.flow``, ``flowfactory.rl``, ``flowfactory.rewards`` (and its ``wire``) and ``flowfactory.testing`` (and its
``tiny_checkpoints``); everything else is private.
Importing this module imports neither torch nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import RunError, UserError

if TYPE_CHECKING:
    from flowfactory.canvas import Canvas
    from flowfactory.config.component import AlgorithmConfig, ComponentConfig, Device, DynamicsConfig, ModelConfig, Takes
    from flowfactory.config.component_slots import InnerReward
    from flowfactory.config.paths import CheckpointPath, LocalPath
    from flowfactory.config.roles import RoleConfig
    from flowfactory.config.schema import RunConfig
    from flowfactory.experience import Experience, Loss
    from flowfactory.hooks.evaluated_sample import EvaluatedSample
    from flowfactory.policy.comparing import At
    from flowfactory.policy.policy import Policy
    from flowfactory.types import (
        Conditions,
        Dynamics,
        Evaluation,
        Index,
        NoiseKey,
        Prompt,
        RunInfo,
        Runtime,
        Samples,
        SamplingPlan,
        Step,
        Trainable,
        Trajectory,
        Transition,
    )

_HOMES = {
    "canvas": ("Canvas",),
    "config.component_slots": ("InnerReward",),
    "config.paths": ("CheckpointPath", "LocalPath"),
    "config.roles": ("RoleConfig",),
    "config.component": ("AlgorithmConfig", "ComponentConfig", "Device", "DynamicsConfig", "ModelConfig", "Takes"),
    "config.schema": ("RunConfig",),
    "experience": ("Experience", "Loss"),
    "hooks.evaluated_sample": ("EvaluatedSample",),
    "policy.comparing": ("At",),
    "policy.policy": ("Policy",),
}

__all__ = [
    "AlgorithmConfig",
    "At",
    "Canvas",
    "CheckpointPath",
    "ComponentConfig",
    "Conditions",
    "Device",
    "Dynamics",
    "DynamicsConfig",
    "EvaluatedSample",
    "Evaluation",
    "Experience",
    "Index",
    "InnerReward",
    "LocalPath",
    "Loss",
    "ModelConfig",
    "NoiseKey",
    "Policy",
    "Prompt",
    "RoleConfig",
    "RunConfig",
    "RunError",
    "RunInfo",
    "Runtime",
    "Samples",
    "SamplingPlan",
    "Step",
    "Takes",
    "Trainable",
    "Trajectory",
    "Transition",
    "UserError",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "types")
    return getattr(import_module(f"flowfactory.{home}"), name)
