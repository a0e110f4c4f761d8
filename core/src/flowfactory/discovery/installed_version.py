"""Which version of a distribution is installed."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata


@cache  # it is looked for on the disk
def installed_version(distribution: str) -> str | None:
    """The version of ``distribution``; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> Iterator[tuple[str, str]]:
    """Name and version of what an answer to a question begins with; torch is not imported."""
    for name in ("flowfactory", "torch", "diffusers"):
        yield name, installed_version(name) or "not installed"
    yield "Python", platform.python_version()
