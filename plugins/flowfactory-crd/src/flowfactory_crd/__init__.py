"""Centred reward distillation, arXiv:2603.14128."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithm ``crd``."""
    register("algorithm", "crd", "flowfactory_crd.crd:CRDConfig")
