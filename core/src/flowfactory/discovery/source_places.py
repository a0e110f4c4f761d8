"""Where in the source something stands, as a message names it."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

from flowfactory.errors import RunError, UserError


def place_of(thing: Any) -> str:
    """``Glow.compute_reward (glow.py line 12)`` of a class or a function; its name alone where the source is not known."""
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    name = getattr(thing, "__qualname__", repr(thing)).rpartition("<locals>.")[2]
    try:
        file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        return name
    return f"{name} ({Path(file or '').name} line {line})"


def raising_line(error: BaseException) -> str:
    """``glow.py line 12``: where a plugin raised ``error``, the first line of its own; "" where no line is known.

    Below the innermost call of a hook, where there is one.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):  # which says itself where it is
        return ""
    hook = max((i + 1 for i, frame in enumerate(frames) if Path(frame.filename).parent.name == "pluggy"), default=1)
    outside = [frame for frame in frames[hook:] if not _is_machinery(Path(frame.filename))]
    return f"{Path(outside[0].filename).name} line {outside[0].lineno}" if outside else ""


def describe_exception(error: BaseException) -> str:
    """``KeyError: 'x' (glow.py line 12)``, in one line; of this project's own errors the sentence alone."""
    if isinstance(error, UserError | RunError):
        return str(error)
    told = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    line = raising_line(error)
    return f"{told} ({line})" if line else told


def _is_machinery(file: Path) -> bool:
    """Whether a file is what imports, checks and asks plugins, and none of theirs."""
    own = file.parent in [Path(__file__).parents[1] / room for room in ("config", "discovery", "hooks")]
    return own or not {"importlib", "pydantic"}.isdisjoint(file.parts) or str(file)[0] == "<"
