"""Advantage-weighted matching, arXiv:2509.25050."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithm ``awm``."""
    register("algorithm", "awm", "flowfactory_awm.awm:AWMConfig")
