"""``flowfactory report``."""

from __future__ import annotations

from flowfactory.cli.options import RunFolder
from flowfactory.cli.output import say, warn


def report(directory: RunFolder) -> None:
    """Write RUN/report.html anew from what is on disk."""
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.runs.report import write_report

    where = RunDirectory(directory)
    where.require_run()  # the config itself may be of plugins and prompts that are not on this machine
    say(str(write_report(where, warn)))
