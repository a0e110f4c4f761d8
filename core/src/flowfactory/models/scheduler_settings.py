"""Schedulers whose saved settings make the schedule of a flow: diffusers makes do with defaults for all that is not there."""

from __future__ import annotations

from pathlib import Path

from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import AGAIN, read_settings

FILE = "scheduler_config.json"
FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
"""Schedulers of flows alone, which save how far they are shifted; those of Heun's method take two forwards a step."""


def check_scheduler(folder: Path, kind: str, source: str) -> None:
    """UserError, which may begin with ``source``: a scheduler of the class ``kind`` in ``folder`` has no schedule of a flow.

    Of other classes, such as the UniPC that Wan has, any will do that is set to the sigmas of flows.
    """
    file = folder / FILE
    settings = read_settings(file)
    if kind in FLOW_MATCHING:
        if "shift" not in settings:
            raise UserError(f"{file} has no shift, which a {kind} needs; {AGAIN}")
    elif not settings.get("use_flow_sigmas"):
        raise UserError(
            f"{source} is a {kind}, whose schedule is none of a flow in steps of one forward; get the checkpoint's own"
        )
