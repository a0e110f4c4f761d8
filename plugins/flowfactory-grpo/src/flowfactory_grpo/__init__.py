"""GRPO for flow matching and its relatives: Flow-GRPO, GRPO-Guard and Flow-DPPO."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``grpo``, ``grpo-guard`` and ``dppo``."""
    register("algorithm", "grpo", "flowfactory_grpo.grpo:GRPOConfig")
    register("algorithm", "grpo-guard", "flowfactory_grpo.grpo_guard:GRPOGuardConfig")
    register("algorithm", "dppo", "flowfactory_grpo.dppo:DPPOConfig")
