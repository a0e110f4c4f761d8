"""``flowfactory plugins new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import typed_path
from flowfactory.cli.output import say


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="reward, model, algorithm, dynamics or tracker.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What configs will call it, such as my-reward.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", parser=typed_path, help="Where its folder goes; here when left out.")
    ] = None,
    family: Annotated[
        bool, typer.Option("--family", help="A model over a pipeline of diffusers, rather than one of its own.")
    ] = False,
) -> None:
    """Write the package of a new plugin into the folder flowfactory-NAME: it works, and is yours to change."""
    from flowfactory.discovery.discover import discover
    from flowfactory.templates.package import write_package

    written = write_package(kind, name, out or Path(), discover(), family)
    for path in written:
        say(str(path))
    folder = (out or Path()) / f"flowfactory-{name}"
    say(f"next: cd {folder}, pip install -e '.[test]', pytest, and look for 'Change:' in src")
