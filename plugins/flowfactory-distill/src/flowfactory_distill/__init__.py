"""Distillation: few-step students, and one student of several teachers."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``dmd2``, ``opd``, ``tdm`` and ``tdm-r1``."""
    register("algorithm", "dmd2", "flowfactory_distill.dmd2:DMD2Config")
    register("algorithm", "opd", "flowfactory_distill.opd:OPDConfig")
    register("algorithm", "tdm", "flowfactory_distill.tdm:TDMConfig")
    register("algorithm", "tdm-r1", "flowfactory_distill.tdm_r1:TDMR1Config")
