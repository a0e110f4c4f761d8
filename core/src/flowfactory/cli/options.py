"""Options and arguments that several commands share, and paths as they are typed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.completion import complete_config, complete_run
from flowfactory.errors import UserError


def typed_path(text: str) -> Path:
    """The path; ``~`` is read where a shell leaves it, as in ``--out=~/runs``. Variables are the shell's own.

    UserError: a text that is no path.
    """
    from flowfactory.config.paths import check_length

    path = Path(os.path.expanduser(text))
    try:
        check_length(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    return path


def typed_checkpoint(text: str | None) -> int | str | None:
    """The iteration, or ``best``, which may be followed by a colon and a score. UserError: it is something else."""
    if text is None or re.fullmatch("best(:.+)?", text):
        return text
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"--checkpoint {text}: write the number of an iteration, or best")
    return int(text)


Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a bundled example.", autocompletion=complete_config),
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", parser=typed_path, help="A one-file plugin. May repeat.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override a key; YAML. May repeat.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", parser=typed_path, help="A run directory.", autocompletion=complete_run)
]
Trusted = Annotated[
    bool, typer.Option("--trust", help="Execute the plugins of RUN and ask its servers, though you have not trained with them.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="N|best",
        help="The iteration, or that with the best held-out score; the newest when left out.",
    ),
]
Nproc = Annotated[int | None, typer.Option("--nproc", metavar="N", help="Start N ranks on this node, one a GPU.")]
