"""Where in the source something stands, as a message names it."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

from flowfactory.discovery.specs import PROJECT
from flowfactory.errors import RunError, UserError

CORE_FOLDER = Path(__file__).parents[1]
LIBRARY_FOLDERS = tuple(map(Path, {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}))
INSTALLED = ("site-packages", "dist-packages")
"""The folders of what pip installs, which may be below those of Python's own library."""


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
    """``glow.py line 12``: where a plugin raised ``error``, the innermost line of its own; "" where no line is known.

    Where none is of a plugin, the first below the innermost call of a hook that is not what asks them.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):  # which says itself where it is
        return ""
    if own := [frame for frame in frames[1:] if _is_plugins(Path(frame.filename))]:
        return _name(own[-1])
    hook = max((i + 1 for i, frame in enumerate(frames) if Path(frame.filename).parent.name == "pluggy"), default=1)
    outside = [frame for frame in frames[hook:] if not _is_machinery(Path(frame.filename))]
    return _name(outside[0]) if outside else ""


def _name(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name} line {frame.lineno}"


def describe_exception(error: BaseException) -> str:
    """``KeyError: 'x' (glow.py line 12)``, in one line; of this project's own errors the sentence alone."""
    if isinstance(error, UserError | RunError):
        return str(error)
    told = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    line = raising_line(error)
    return f"{told} ({line})" if line else told


def _is_plugins(file: Path) -> bool:
    """Whether a file is neither core's nor a library's: one that is installed is a plugin's where it has an entry point."""
    if str(file)[0] == "<" or file.is_relative_to(CORE_FOLDER):
        return False
    installed = [i for i, part in enumerate(file.parts[:-1]) if part in INSTALLED]
    if installed:
        return Path(file.parts[installed[-1] + 1]).stem in _plugin_modules()
    return not any(file.is_relative_to(folder) for folder in LIBRARY_FOLDERS)


def _plugin_modules() -> set[str]:
    """The modules, without what is in them, that installed packages bring plugins by."""
    return {entry.module.partition(".")[0] for entry in metadata.entry_points(group=PROJECT)}


def _is_machinery(file: Path) -> bool:
    """Whether a file is what imports, checks and asks plugins, and none of theirs."""
    own = file.parent in [CORE_FOLDER / room for room in ("config", "discovery", "hooks")]
    return own or not {"importlib", "pydantic"}.isdisjoint(file.parts) or str(file)[0] == "<"
