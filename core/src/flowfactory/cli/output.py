"""What commands print beside their result."""

import typer


def warn(sentence: str) -> None:
    """Print one line to standard error."""
    typer.echo(sentence, err=True)


def say(sentence: str) -> None:
    """Print one line to standard output, at once: whoever reads a pipe waits for it."""
    print(sentence, flush=True)
