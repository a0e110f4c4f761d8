"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A one-file plugin. May repeat.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override a key; YAML. May repeat.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Iteration = Annotated[int | None, typer.Option("--checkpoint", metavar="N", help="The iteration; the newest when left out.")]
