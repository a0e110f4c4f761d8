"""``flowfactory cache``: what the cache of encoded prompts holds, and clearing it."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.cli.output import say, warn
from flowfactory.control_characters import one_line
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from flowfactory.data.cache_folder import CachedFile, CacheFolder

SECONDS = {"d": 86400, "h": 3600}


def show_unless_told(context: typer.Context) -> None:
    """Show what is in the cache of encoded prompts, unless a command follows."""
    if context.invoked_subcommand is None:
        show()


def show() -> None:
    """Show where the cache is, what it holds and what it may hold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flowfactory.data.cache_folder import CacheFolder, format_size

    folder = CacheFolder.from_environment(warn)
    files = _entries(folder)
    size, limit = sum(file.size for file in files), folder.limit
    over = ", more than the limit: the next run that encodes prompts makes room" if size > limit else ""
    table = Table(title="encoded prompts", show_header=False)
    rows = {
        "folder": str(folder.path),
        "entries": f"{len(files):,}",
        "size": format_size(size) + over,
        "limit": format_size(limit),
        "first to go, last used": _date(min((file.used for file in files), default=None)),
        "last to go, last used": _date(max((file.used for file in files), default=None)),
        "runs under way that need entries": str(len(folder.needs())),
        "unfinished files": str(len(folder.leftovers())),
    }
    for name, value in rows.items():
        table.add_row(name, Text(one_line(value), overflow="fold"))
    Console().print(table)


def clear(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was not used for that long, such as 30d or 12h.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the cached entries; prompts are then encoded again."""
    from flowfactory.data.cache_folder import CacheFolder, format_size

    before = time.time() - _parse_age(older_than) if older_than is not None else None
    folder = CacheFolder.from_environment(warn)
    files = [file for file in _entries(folder) if before is None or file.used < before]
    told = f"{len(files):,} entries ({format_size(sum(file.size for file in files))}) in {folder.path}"
    if files and not yes:
        if not sys.stdin.isatty():
            raise UserError(f"cache clear: nobody is there to be asked about {told}; add --yes")
        if not _confirm(f"Delete {told}?"):
            say("nothing was deleted")
            return
    kept = [file for file in files if not folder.delete(file)]
    folder.remove_leftovers()
    if kept:
        raise UserError(f"{len(kept):,} of {told} cannot be deleted; they are for their owner to delete")
    say(f"deleted {told}")


def _entries(folder: CacheFolder) -> list[CachedFile]:
    try:
        return folder.entries()
    except OSError as error:
        raise UserError(f"{folder.path} cannot be read: {error.strerror}; choose another with FLOWFACTORY_CACHE") from error


def _confirm(question: str) -> bool:
    try:
        return typer.confirm(one_line(question))
    except typer.Abort:
        return False


def _date(used: float | None) -> str:
    if used is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(min(max(used, 0.0), time.time())))  # some clocks are ahead


def _parse_age(text: str) -> float:
    """Seconds. UserError: it is no age."""
    found = re.fullmatch(r"(\d{1,6})([dh])", text.strip())
    if found is None:
        raise UserError(f"--older-than {text}: write a number of days or hours, such as 30d or 12h")
    return float(found[1]) * SECONDS[found[2]]
