"""GRPO for flow matching and its relatives: Flow-GRPO, GRPO-Guard, Flow-DPPO and Flash-GRPO."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``grpo``, ``grpo-guard``, ``dppo`` and ``flash-grpo``."""
    register("algorithm", "grpo", "flowfactory_grpo.grpo:GRPOConfig")
    register("algorithm", "grpo-guard", "flowfactory_grpo.grpo_guard:GRPOGuardConfig")
    register("algorithm", "dppo", "flowfactory_grpo.dppo:DPPOConfig")
    register("algorithm", "flash-grpo", "flowfactory_grpo.flash_grpo:FlashGRPOConfig")
