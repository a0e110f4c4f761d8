"""Preferences: DPO, arXiv:2311.12908, online and on pairs that are there; and DGPO, arXiv:2510.08425."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``dpo``, ``offline-dpo`` and ``dgpo``."""
    register("algorithm", "dpo", "flowfactory_dpo.dpo:DPOConfig")
    register("algorithm", "offline-dpo", "flowfactory_dpo.offline_dpo:OfflineDPOConfig")
    register("algorithm", "dgpo", "flowfactory_dpo.dgpo:DGPOConfig")
