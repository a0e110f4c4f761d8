"""Advantage-weighted matching, arXiv:2509.25050, and its relatives: RAM and RVM."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``awm``, ``ram`` and ``rvm``."""
    register("algorithm", "awm", "flowfactory_awm.awm:AWMConfig")
    register("algorithm", "ram", "flowfactory_awm.ram:RAMConfig")
    register("algorithm", "rvm", "flowfactory_awm.rvm:RVMConfig")
