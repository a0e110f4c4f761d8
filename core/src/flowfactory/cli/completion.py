"""What a shell offers where a command takes a name: components, examples, config files and run directories.

A completion must not fail: what cannot be found is not offered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flowfactory.discovery.catalogue import Catalogue

MOST = 200
"""Entries of a folder that are looked at."""


def complete_config(incomplete: str) -> list[str]:
    """Config files, folders on the way to more, and bundled examples."""
    named = [] if os.sep in incomplete else _installed().components["example"]
    return [*_paths(incomplete, lambda path: path.suffix in (".yaml", ".yml")), *_beginning(named, incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Run directories, those in ``runs`` too, and folders on the way to more."""
    found = list(_paths(incomplete, lambda path: False))
    if not incomplete:
        found += [path.removesuffix(os.sep) for path in _paths(f"runs{os.sep}", lambda path: False)]
    return sorted(found, key=lambda path: not (Path(path) / "config.yaml").is_file())


def complete_component(incomplete: str) -> list[str]:
    """Whatever ``plugins show`` knows."""
    named = [name for components in _installed().components.values() for name in components]
    return _beginning(dict.fromkeys(named), incomplete)


def completer(kind: str) -> Callable[[str], list[str]]:
    """What offers the components of ``kind``."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(_installed().components[kind], incomplete)

    return complete


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _installed() -> Catalogue:
    from flowfactory.discovery.discover import discover
    from flowfactory.errors import UserError

    try:
        return discover()
    except UserError:  # of the environment, which the command itself will tell
        return Catalogue()


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """The folders, each with a slash, and the files that are ``wanted``, whose paths begin so."""
    folder, _, begin = incomplete.rpartition(os.sep)
    where = os.path.expanduser(folder) if folder else os.sep if incomplete.startswith(os.sep) else "."
    try:
        with os.scandir(where) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry, _ in zip(entries, range(MOST), strict=False))
    except OSError:
        return
    for name, is_folder in found:
        if name.startswith(begin) and (begin or not name.startswith(".")) and (is_folder or wanted(Path(name))):
            yield f"{incomplete.removesuffix(begin)}{name}{os.sep if is_folder else ''}"
