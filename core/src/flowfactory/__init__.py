"""Reinforcement learning for flow-matching generators: a minimal core, everything else is a plugin.

What authors of plugins need is importable from here; importing this module imports neither torch nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import RunError, UserError

if TYPE_CHECKING:
    from flowfactory.canvas import Canvas
    from flowfactory.config.paths import LocalPath
    from flowfactory.config.schema import AlgorithmConfig, ComponentConfig, DynamicsConfig, ModelConfig
    from flowfactory.experience import Experience, Loss
    from flowfactory.policy.policy import At, Policy
    from flowfactory.types import (
        Conditions,
        Evaluation,
        Prompt,
        RunInfo,
        Runtime,
        Samples,
        SamplingPlan,
        Step,
        Trainable,
        Trajectory,
    )

__all__ = [
    "AlgorithmConfig",
    "At",
    "Canvas",
    "ComponentConfig",
    "Conditions",
    "DynamicsConfig",
    "Evaluation",
    "Experience",
    "LocalPath",
    "Loss",
    "ModelConfig",
    "Policy",
    "Prompt",
    "RunError",
    "RunInfo",
    "Runtime",
    "Samples",
    "SamplingPlan",
    "Step",
    "Trainable",
    "Trajectory",
    "UserError",
    "hookimpl",
]

_HOME = {
    "AlgorithmConfig": "config.schema",
    "At": "policy.policy",
    "Canvas": "canvas",
    "ComponentConfig": "config.schema",
    "DynamicsConfig": "config.schema",
    "Experience": "experience",
    "LocalPath": "config.paths",
    "Loss": "experience",
    "ModelConfig": "config.schema",
    "Policy": "policy.policy",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"flowfactory.{_HOME.get(name, 'types')}"), name)
