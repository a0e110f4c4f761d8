"""Options and arguments that several commands share, and paths as they are typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

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


Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", parser=typed_path, help="A one-file plugin. May repeat.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override a key; YAML. May repeat.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", parser=typed_path, help="A run directory.")]
Trusted = Annotated[
    bool, typer.Option("--trust", help="Execute the plugins of RUN and ask its servers, though you have not trained with them.")
]
Iteration = Annotated[int | None, typer.Option("--checkpoint", metavar="N", help="The iteration; the newest when left out.")]
Nproc = Annotated[int | None, typer.Option("--nproc", metavar="N", help="Start N ranks on this node, one a GPU.")]
