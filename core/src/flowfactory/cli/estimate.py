"""``flowfactory estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowfactory.cli.options import Config, Plugins, Sets
from flowfactory.cli.output import say
from flowfactory.errors import UserError


def estimate(
    config: Config,
    sets: Sets = None,
    plugin: Plugins = None,
    nproc: Annotated[int, typer.Option(metavar="N", min=1, help="How many ranks share the work.")] = 1,
    card: Annotated[float | None, typer.Option(metavar="GIB", help="Memory of a GPU; of the one here when left out.")] = None,
) -> None:
    """Print how much memory each rank of a run of CONFIG needs; reads no weights."""
    import torch
    from rich.console import Console

    from flowfactory.config import loading as configs
    from flowfactory.config.precision import with_precision
    from flowfactory.runs.estimate import estimate as estimates
    from flowfactory.runs.estimate import result, table

    if card is not None and not 0 < card < float("inf"):
        raise UserError(f"--card {card:g}: give the GiB of a GPU's memory, above 0")
    resolved = configs.load(config, sets or [], plugin or [])
    here = torch.cuda.is_available()
    if card is not None and resolved.device == "cpu":
        raise UserError("--card is about a GPU, and device is cpu; leave one of them out")
    cuda = card is not None or resolved.device.startswith("cuda") or (resolved.device == "auto" and here)
    if card is None and cuda and here:
        card = torch.cuda.get_device_properties(0).total_memory / result.GIB
    resolved = with_precision(resolved, cuda)
    found = estimates.estimate(resolved, nproc, cuda)
    Console(markup=False, emoji=False).print(table.table(found))
    if card is not None:
        say(table.verdict(found, resolved, round(card * result.GIB)))
