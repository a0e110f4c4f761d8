"""``flowfactory report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import typed_path
from flowfactory.cli.output import say, warn
from flowfactory.errors import UserError


def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=typed_path, help="A run directory; several to compare them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=typed_path, help="The page; RUN/report.html, or comparison.html here, when left out."
        ),
    ] = None,
) -> None:
    """Write RUN/report.html anew from what is on disk; of several runs, one page that compares them."""
    from flowfactory.runs.report.comparison import NAME, write_comparison
    from flowfactory.runs.report.page import NAME as REPORT
    from flowfactory.runs.report.page import write_report
    from flowfactory.runs.report.run_files import require_run

    for directory in directories:
        require_run(directory)  # the config itself may be of plugins and prompts that are not on this machine
    alone = directories[0] if len(directories) == 1 else None
    try:
        say(str(write_report(alone, warn, out) if alone else write_comparison(directories, warn, out)))
    except OSError as error:
        told = f"{out or (alone / REPORT if alone else NAME)} cannot be written: {error.strerror}"
        raise UserError(f"{told}; {'choose another --out' if out else 'write the page elsewhere with --out FILE'}") from error
