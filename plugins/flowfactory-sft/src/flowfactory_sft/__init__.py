"""Supervised fine-tuning on pictures and videos that are there."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithm ``sft``."""
    register("algorithm", "sft", "flowfactory_sft.sft:SFTConfig")
