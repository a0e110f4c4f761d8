"""Preferences within a group: online DPO, arXiv:2311.12908, and DGPO, arXiv:2510.08425."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``dpo`` and ``dgpo``."""
    register("algorithm", "dpo", "flowfactory_dpo.dpo:DPOConfig")
    register("algorithm", "dgpo", "flowfactory_dpo.dgpo:DGPOConfig")
