"""What commands print beside their result, and whose line it is where several ranks print."""

import os

import typer

from flowfactory.distributed.environment import read_environment
from flowfactory.errors import UserError


def warn(sentence: str) -> None:
    """Print one line to standard error."""
    typer.echo(sentence, err=True)


def say(sentence: str) -> None:
    """Print one line to standard output, at once: whoever reads a pipe waits for it."""
    print(sentence, flush=True)


def rank_prefix() -> str:
    """Which rank it is, where several processes write on one terminal."""
    try:
        found = read_environment(os.environ)
    except UserError:
        return ""
    return f"rank {found.rank}: " if found and found.world_size > 1 else ""
