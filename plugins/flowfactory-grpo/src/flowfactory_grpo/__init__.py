"""GRPO for flow matching: Flow-GRPO, arXiv:2505.05470."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``algorithm: {name: grpo}``."""
    register("algorithm", "grpo", "flowfactory_grpo.grpo:GRPOConfig")
