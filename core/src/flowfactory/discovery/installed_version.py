"""Which version of a distribution is installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache  # it is looked for on the disk
def installed_version(distribution: str) -> str | None:
    """The version of ``distribution``; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
