"""What a run directory may do here: what its user has trained with on this machine, and no more unless it is told by hand.

A run that trains remembers what acts in its config: the plugins that it executes, the servers that it asks, the model that it
reads. One file a mark is kept in a folder that nobody else can write to; a mark is a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from flowfactory.config.component import ComponentConfig
from flowfactory.config.schema import RunConfig
from flowfactory.errors import UserError
from flowfactory.types import Say

ENVIRONMENT = "FLOWFACTORY_STATE"
KEPT = 1000
"""So many marks are kept; those that were trained with last."""
Keys = tuple[str, ...]


class Reach(NamedTuple):
    """An option of a config that reaches beyond this machine: its keys, what it does, and its value."""

    keys: Keys
    does: str
    value: Any

    @property
    def key(self) -> str:
        """As ``--set`` takes it."""
        return ".".join(self.keys)

    @property
    def mark(self) -> str:
        """The same wherever the option stands."""
        return checksum("reach", self.keys[-1], json.dumps(self.value))


def state_folder() -> Path:
    """$FLOWFACTORY_STATE, or ``flowfactory`` in the user's folder of states. RuntimeError: there is no home."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(os.path.expanduser(chosen)).absolute()
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".local/state") / "flowfactory"


def checksum(*parts: str | bytes) -> str:
    """SHA-256 of ``parts``, none of which can pass for two."""
    found = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        found.update(b"%d:" % len(content) + content)
    return found.hexdigest()


def plugin_mark(path: Path, content: bytes) -> str:
    """Of a plugin at one place: elsewhere, the same bytes may import what lies there beside them."""
    return checksum("plugin", str(path), content)


def model_mark(path: object) -> str:
    """Of the folder, or the hub id, that a model is read from."""
    return checksum("model", str(path))


def remember(config: RunConfig, say: Say) -> None:
    """Have what acts in ``config`` known here from now on; ``say`` hears where it cannot be kept, which stops no run."""
    marks = {reach.mark for reach in reaches(config)}
    if path := getattr(config.model, "path", None):
        marks.add(model_mark(path))
    try:
        marks |= {plugin_mark(file, file.read_bytes()) for file in config.plugins}
        folder = _marks_folder()
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for private in (folder.parent, folder):
            private.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(folder):
            raise PermissionError(None, "others can write to it", str(folder))
        for mark in marks:
            (folder / mark).touch(mode=0o600)
        _forget_oldest(folder)
    except (OSError, RuntimeError) as error:
        if config.plugins or any(reaches(config)):
            told = getattr(error, "strerror", None) or error
            say(f"warning: what this run trains with cannot be noted ({told}), so sample, eval and export will need --trust")


def is_known(mark: str) -> bool:
    """Whether this user has trained with it on this machine."""
    try:
        folder = _marks_folder()
        return _is_private(folder) and (folder / mark).is_file()
    except (OSError, RuntimeError):
        return False


def _marks_folder() -> Path:
    return state_folder() / "trained"


def _is_private(folder: Path) -> bool:
    facts = folder.stat()
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _forget_oldest(folder: Path) -> None:
    found: list[tuple[float, str]] = []
    for mark in os.scandir(folder):
        with suppress(FileNotFoundError):  # another run was quicker
            found.append((mark.stat().st_mtime, mark.path))
    for _, path in sorted(found)[:-KEPT]:
        with suppress(FileNotFoundError):
            os.unlink(path)


def check_plugin(file: Path, content: bytes) -> None:
    """UserError: this plugin of a run directory was never trained with here."""
    if not is_known(plugin_mark(file, content)):
        raise UserError(
            "the run directory names it, and you have not trained with it, as it is now, on this machine; "
            f"look at what is in it, then give it with --plugin {file}, or add --trust"
        )


def replace_plugins(listed: Any, given: Sequence[Path]) -> Any:
    """The plugins that a run directory lists, without those in whose place one of the same name is ``given`` by hand."""
    names = {file.name for file in given}
    if not isinstance(listed, list):
        return listed
    return [file for file in listed if not (isinstance(file, str) and Path(file).name in names)]


def reaches(config: RunConfig, scores: bool = True) -> Iterator[Reach]:
    """What reaches beyond this machine in ``config``; without ``scores``, not what only those who score do."""
    sections = ("model", "algorithm", "sampling", *(("rewards", "evaluation") if scores else ()))
    for section in sections:
        yield from _reaches(getattr(config, section), (section,))


def _reaches(value: Any, keys: Keys) -> Iterator[Reach]:
    if isinstance(value, BaseModel):
        named = value.sends_to if isinstance(value, ComponentConfig) else {}
        for key, item in value:
            if key in named and item not in (None, ()):
                yield Reach((*keys, key), named[key], item)
            elif key not in named:
                yield from _reaches(item, (*keys, key))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _reaches(item, (*keys, str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _reaches(item, keys)
    elif isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]*://", value, re.IGNORECASE):
        yield Reach(keys, "may ask", value)


def check_config(config: RunConfig, raw: Mapping[str, Any], overrides: Sequence[str], scores: bool) -> None:
    """Look through the ``config`` of a run directory: what its file holds, ``raw``, with ``overrides`` on top.

    UserError, a line each: it reaches beyond this machine where this user never has, or reads environment variables.
    """
    given = [tuple(assignment.partition("=")[0].strip().split(".")) for assignment in overrides]

    def is_given(keys: Keys) -> bool:
        return any(keys[: len(some)] == some for some in given)

    told = [
        f"config.yaml: {reach.key}: it {reach.does} {_told(reach.value)}, with which you have not trained on this machine; "
        f"give your own with --set {reach.key}=…, or add --trust"
        for reach in reaches(config, scores)
        if not is_given(reach.keys) and not is_known(reach.mark)
    ]
    told += [
        f"config.yaml: {'.'.join(keys)}: {text!r} has an environment variable in it, as no config of a run directory has; "
        "write out what it stands for, or add --trust"
        for keys, text in _variables(raw, config.model_dump(mode="json"))
        if not is_given(keys)
    ]
    if told:
        raise UserError("\n".join(told))


def _told(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _variables(written: Any, resolved: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """The texts with a variable in them, which was read: a run writes its config with all of them replaced."""
    if isinstance(written, Mapping):
        for key, item in written.items():
            yield from _variables(item, resolved.get(key) if isinstance(resolved, Mapping) else None, (*keys, str(key)))
    elif isinstance(written, list | tuple):
        others = resolved if isinstance(resolved, list | tuple) and len(resolved) == len(written) else [None] * len(written)
        for place, (item, other) in enumerate(zip(written, others, strict=True)):
            yield from _variables(item, other, (*keys, str(place)))
    elif isinstance(written, str) and written != resolved and re.search(r"\$[A-Za-z_{]", written.replace("$$", "")):
        yield keys, written
