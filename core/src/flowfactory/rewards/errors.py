"""Whatever a reward raises becomes an error under its label, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowfactory.discovery.source_places import describe_exception
from flowfactory.errors import RunError, UserError


@contextmanager
def name_errors(label: str) -> Iterator[None]:
    """Whatever is raised within becomes an error of the reward ``label``, with the line of a plugin that raised it."""
    try:
        yield
    except (RunError, UserError) as error:
        raise type(error)(f"reward {label!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise RunError(f"reward {label!r}: {describe_exception(error)}") from error


@contextmanager
def unnamed_errors(label: str) -> Iterator[None]:
    """Errors that another process put under ``label`` lose it again, for those that this one puts there."""
    try:
        yield
    except (RunError, UserError) as error:
        raise type(error)(str(error).removeprefix(f"reward {label!r}: ")) from error
