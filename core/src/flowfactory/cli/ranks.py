"""The ranks of a command that draws: the same command again, once for each of them."""

from __future__ import annotations

import os
import sys

from flowfactory.cli.output import warn
from flowfactory.distributed.launch import Launch
from flowfactory.distributed.rank_process import is_supervised
from flowfactory.errors import RunError

RESUME = "; continue with --resume"


def start_ranks(nproc: int | None, device: str) -> bool:
    """Whether ``nproc`` ranks were started, each with the command that this process was given, and have done its work.

    UserError: they cannot be started. The end of what they do is raised as in one process.
    """
    if is_supervised():
        return False
    wanted = Launch(nproc, max_restarts=0)
    wanted.check(os.environ)
    if not wanted.starts_ranks:
        return False
    from flowfactory.distributed.supervisor import check_devices, start

    check_devices(wanted, device)
    try:
        # -P: the folder that this is called in is no place to import from, as it is not for the installed command
        start([sys.executable, "-P", "-m", "flowfactory", *sys.argv[1:]], wanted, warn)
    except RunError as error:
        raise RunError(str(error).removesuffix(RESUME)) from error  # there is nothing to resume
    return True
