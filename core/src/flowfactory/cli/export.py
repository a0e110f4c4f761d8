"""``flowfactory export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import Checkpoint, Plugins, RunFolder, Trusted, typed_checkpoint, typed_path
from flowfactory.cli.output import say, warn
from flowfactory.errors import UserError


def export(
    directory: RunFolder,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", parser=typed_path, help="A folder, or FILE.safetensors, that is not there yet.")
    ],
    checkpoint: Checkpoint = None,
    weights: Annotated[str | None, typer.Option(help="Kept weights, such as 'evaluation'; else the trained ones.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="float32|bf16", help="Of a full fine-tune; the run's own when left out.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="diffusers|comfyui|peft",
            help="Of adapters; peft when left out and diffusers has no such pipeline, else diffusers.",
        ),
    ] = None,
    plugin: Plugins = None,
    trusted: Trusted = False,
) -> None:
    """Write a run's weights to OUT, as their loader reads them, with a model card."""
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.runs.export.export import export as write_export
    from flowfactory.types import DTYPES

    if precision is not None and precision not in DTYPES:
        raise UserError(f"--precision {precision}: write one of {', '.join(DTYPES)}")
    found, chosen = RunDirectory(directory), typed_checkpoint(checkpoint)
    say(str(write_export(found, out, chosen, weights, precision, form, warn, plugin or [], trusted)))
