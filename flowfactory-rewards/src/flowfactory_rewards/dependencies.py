"""What a reward needs beside this package, named before anything is lost."""

from __future__ import annotations

from importlib.util import find_spec

from flowfactory import UserError


def require_modules(reward: str, *modules: str) -> None:
    """UserError, with the command that installs it, where one of ``modules`` is missing; imports nothing."""
    for module in modules:
        if find_spec(module) is None:
            raise UserError(f"reward {reward!r} needs {module}: pip install 'flowfactory-rewards[{reward}]'")
