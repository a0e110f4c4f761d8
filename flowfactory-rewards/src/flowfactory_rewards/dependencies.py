"""What a reward needs beside this package, named before anything is lost."""

from __future__ import annotations

from importlib.util import find_spec

from flowfactory import ComponentConfig, UserError


def missing_module(reward: str, *modules: str) -> str | None:
    """Which of ``modules`` is not installed, with the command that installs it; None where all are. Imports nothing."""
    for module in modules:
        if find_spec(module) is None:
            return f"reward {reward!r} needs {module}: pip install 'flowfactory-rewards[{reward}]'"
    return None


def require(config: ComponentConfig) -> None:
    """UserError where something that the reward needs is missing."""
    if sentence := config.lacking():
        raise UserError(sentence)
