"""Whatever a reward raises becomes an error under its label."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowfactory.errors import RunError, UserError


@contextmanager
def name_errors(label: str) -> Iterator[None]:
    """Whatever is raised within becomes an error of the reward ``label``, with the line of a plugin that raised it."""
    try:
        yield
    except (RunError, UserError) as error:
        raise type(error)(f"reward {label!r}: {error}") from error
    except Exception as error:
        told = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise RunError(f"reward {label!r}: {told} ({_line(error)})") from error


def _line(error: Exception) -> str:
    """Where in the plugin it was raised: the first line below the call of its hook."""
    frames = traceback.extract_tb(error.__traceback__)
    below = max((i + 1 for i, frame in enumerate(frames) if Path(frame.filename).parent.name == "pluggy"), default=0)
    where = frames[min(below, len(frames) - 1)]
    return f"{Path(where.filename).name} line {where.lineno}"
