"""Paths in a config: ``~`` and environment variables, relative to the file they stand in or to where ``--set`` was typed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    ValidationInfo,
)


class CommandLineText(str):
    """Text from the command line, where a relative path is relative to where the command was given."""


def expand(text: str) -> str:
    """``text`` with ``$NAME`` and ``${NAME}`` replaced, then ``~`` at its start; ``$$`` is a ``$``.

    ValueError: a variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name = found[1] or found[2]
        if not os.environ.get(name):  # an empty one would make an absolute path of what follows
            raise ValueError(f"{str(text)!r}: the environment variable {name!r} is not set; set it, or write $$ for a $")
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$\$|\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([^}]*)\}", value, text))


def resolve_path(path: str | Path, folder: Path | None) -> Path:
    """The path, expanded where it is text; a relative one is from ``folder``, or from where it was typed.

    ValueError: a variable is not set.
    """
    start = Path.cwd() if isinstance(path, CommandLineText) else folder
    found = Path(expand(path)) if isinstance(path, str) else path
    return found if start is None else start.joinpath(found).resolve()


def _resolve(path: Any, info: ValidationInfo) -> Any:
    return resolve_path(path, (info.context or {}).get("folder")) if isinstance(path, str | Path) else path


def _escape(path: object) -> str:
    return str(path).replace("$", "$$")


LocalPath = Annotated[Path, BeforeValidator(_resolve), PlainSerializer(_escape, when_used="json")]
"""A path, in which ``~`` and environment variables are read; a relative one is relative to the config file it stands in, or to
where ``--set`` was typed."""


def _folder_or_hub_id(path: Any, info: ValidationInfo) -> Any:
    if not isinstance(path, str):
        return path
    local = Path(_resolve(path, info))
    if local.is_dir():
        return str(local)
    if local.is_file():
        raise ValueError(f"{local} is a file, and a folder is read; give one that save_pretrained of its library made")
    name = expand(path)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        unlike_an_id = "/" in name or name.startswith(("~", "."))
        or_id = "" if unlike_an_id else f", and {name!r} is no hub id (owner/name)"
        raise ValueError(f"there is no folder {local}{or_id}")
    if local.parent.is_dir() and not _is_downloaded(name):
        raise ValueError(f"there is no folder {local}; if the hub id is meant, download it first: hf download {name}")
    return name


def _is_downloaded(hub_id: str) -> bool:
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}").is_dir()


CheckpointPath = Annotated[str, BeforeValidator(_folder_or_hub_id), PlainSerializer(_escape, when_used="json")]
"""A folder (read as a LocalPath is) or a hub id; a folder that exists wins."""
