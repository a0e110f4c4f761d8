"""``flowfactory report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import RunFolder, typed_path
from flowfactory.cli.output import say, warn
from flowfactory.errors import UserError


def report(
    directory: RunFolder,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=typed_path, help="The page; RUN/report.html when left out.")
    ] = None,
) -> None:
    """Write RUN/report.html anew from what is on disk."""
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.runs.report import write_report

    where = RunDirectory(directory)
    where.require_run()  # the config itself may be of plugins and prompts that are not on this machine
    try:
        say(str(write_report(where, warn, out)))
    except OSError as error:
        told = f"{out or where.report} cannot be written: {error.strerror}"
        raise UserError(f"{told}; {'choose another --out' if out else 'write the page elsewhere with --out FILE'}") from error
