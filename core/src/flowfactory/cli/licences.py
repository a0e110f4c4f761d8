"""``flowfactory licences``: under which licences one uses what is installed, and the weights that are used by default."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.cli.options import Plugins
from flowfactory.cli.output import say, show_json, warn

if TYPE_CHECKING:
    from flowfactory.config.checkpoint_licences import Checkpoint
    from flowfactory.discovery.package_licences import Package


def licences(
    plugin: Plugins = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the licences of all installed packages that are used here, and of every checkpoint that is used by default.

    A package's licence is what its own metadata says. A checkpoint's is what its authors say of the weights; see its page
    where none could be confirmed. Both may change with a version.
    """
    from flowfactory.config.checkpoint_licences import find_checkpoints
    from flowfactory.discovery.discover import discover
    from flowfactory.discovery.package_licences import find_packages

    catalogue = discover(plugin or [])
    checkpoints, failed = find_checkpoints(catalogue)
    for sentence in [*(f"plugin {remark.plugin!r}: {remark.sentence}" for remark in catalogue.broken), *failed]:
        warn(f"warning: {sentence}")
    packages = find_packages()
    if json:
        show_json(
            {
                "packages": [asdict(package) for package in packages],
                "checkpoints": [{**asdict(checkpoint), "page": checkpoint.page} for checkpoint in checkpoints],
            }
        )
        return
    for line in (*_package_lines(packages), "", *_checkpoint_lines(checkpoints)):
        say(line)


def _package_lines(packages: list[Package]) -> list[str]:
    """A line for each, with names and versions below one another."""
    wide, middle = (max((len(getattr(each, part)) for each in packages), default=0) for part in ("name", "version"))
    return ["packages", *(f"  {each.name:<{wide}}  {each.version:<{middle}}  {each.licence}" for each in packages)]


def _checkpoint_lines(checkpoints: list[Checkpoint]) -> list[str]:
    """A line for each, with what uses it first."""
    users = [f"{each.kind} {each.component}" for each in checkpoints]
    wide, middle = max(map(len, users), default=0), max((len(each.name) for each in checkpoints), default=0)
    lines = [
        f"  {user:<{wide}}  {each.name:<{middle}}  {each.licence}" + (f"  {each.page}" if each.page else "")
        for user, each in zip(users, checkpoints, strict=True)
    ]
    return ["checkpoints, and what uses them", *lines]
