"""The packages that flowfactory and its plugins stand on, as far as they are installed, with the licences they state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from flowfactory.discovery.catalogue import CORE
from flowfactory.discovery.specs import PROJECT

NOT_STATED = "not stated"
LONGEST = 100
"""Characters of a licence's name; some packages write the whole text where the name belongs."""


@dataclass(frozen=True)
class Package:
    """An installed distribution: its name as it writes it, and its licence in its own words."""

    name: str
    version: str
    licence: str


def find_packages() -> list[Package]:
    """Core, every plugin package, and all that they require and that is installed, by name.

    What an extra of core or of a plugin asks for counts as required, and of the others only the extras that are asked for.
    """
    from packaging.utils import canonicalize_name

    found: dict[str, Package] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, frozenset(_extras(name))) for name in _roots()]
    while waiting:
        name, extras = waiting.pop()
        key = canonicalize_name(name)
        if (key, extras) in visited:
            continue
        visited.add((key, extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[key] = Package(distribution.name, distribution.version, licence_of(distribution.metadata))
        waiting += _requirements(distribution, extras)
    return [found[key] for key in sorted(found)]


def _roots() -> set[str]:
    """Core, and the distributions that bring plugins."""
    return {CORE, *(entry.dist.name for entry in metadata.entry_points(group=PROJECT) if entry.dist)}


def _extras(name: str) -> Iterable[str]:
    try:
        return metadata.metadata(name).get_all("Provides-Extra") or ()
    except metadata.PackageNotFoundError:  # run from a folder, as some tests do
        return ()


def _requirements(distribution: metadata.Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(name, extras) of what ``distribution`` requires here, with its ``extras``."""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in distribution.requires or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:  # of another tool's making
            continue
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield wanted.name, frozenset(wanted.extras)


def licence_of(stated: metadata.PackageMetadata) -> str:
    """The licence that a package's metadata names: its SPDX expression, else what it wrote, else its classifiers.

    "not stated" where it names none.
    """
    if expression := _first(stated, "License-Expression"):
        return expression
    written = _first(stated, "License").strip()
    if written and written != "UNKNOWN" and "\n" not in written and len(written) <= LONGEST:
        return written
    classifiers = [line.split(" :: ")[-1] for line in stated.get_all("Classifier") or () if line.startswith("License :: ")]
    return " and ".join(name for name in classifiers if name != "OSI Approved") or NOT_STATED


def _first(stated: metadata.PackageMetadata, key: str) -> str:
    return next(iter(stated.get_all(key) or ()), "")
