"""Paths in a config: ``~`` and environment variables, relative to the file they stand in or to where ``--set`` was typed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    ValidationInfo,
)

from flowfactory.config.wording import written

URL = re.compile(r"data:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Of a folder that stands for a file of prompts, each of which has a caption."""
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that Linux and macOS take of a file's name, and of a path at the most."""


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

    ValueError: a variable is not set, or it is no path: empty, a URL, too long, or of the home of a user whom there is not.
    """
    start = Path.cwd() if isinstance(path, CommandLineText) else folder
    found = Path(_expand_path(path)) if isinstance(path, str) else path
    check_length(found)
    return found if start is None else start.joinpath(found).resolve()


def _expand_path(text: str) -> str:
    if not text.strip():
        raise ValueError(f"got {written(text)}; give a path")
    if len(text) > LONGEST_PATH:  # before variables are looked for, which is quadratic
        check_length(Path(text))
    if URL.match(text):
        raise ValueError(f"{written(text)} is a URL; give a path on this machine")
    if (found := expand(text)).startswith("~"):
        user = found.partition("/")[0]
        unknown = f"there is no user {user[1:]!r}; write ./{user} for what is called so"
        raise ValueError(f"{written(text)}: {unknown if user[1:] else 'the home folder is not known; set HOME'}")
    return found


def check_length(path: Path) -> None:
    """ValueError: it is longer than a path may be, as where a text stands in the place of one."""
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{written(str(path))} is too long for the name of a file; give a path")


def file_error(path: Path) -> str | None:
    """Why no file can be read at ``path``, with what to do; None where there is one."""
    try:
        if path.is_file():
            return None
        return f"{path} is a folder; give a file" if path.is_dir() else f"no file {path}"
    except OSError as error:  # of a folder on the way that may not be looked into
        return f"no file {path} that can be read: {error.strerror}"


def prompts_error(path: Path) -> str | None:
    """Why no prompts can be read at ``path``, with what to do: it is neither a file nor a folder of PICTURES."""
    try:
        with os.scandir(path) as files:
            if any(file.name.lower().endswith(PICTURES) for file in files):
                return None
        return f"{path} is a folder without pictures; give a file, or a folder of pictures with captions"
    except OSError:  # no folder, or none that may be looked into
        return file_error(path)


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
    if os.path.isdir(local):
        return str(local)
    if os.path.isfile(local):
        raise ValueError(f"{local} is a file, and a folder is read; give one that save_pretrained of its library made")
    name = expand(path)
    if (info.context or {}).get("anywhere"):  # it need not be on this machine
        return name if re.fullmatch(HUB_ID, name) else str(local)
    if not re.fullmatch(HUB_ID, name):
        unlike_an_id = "/" in name or name.startswith(("~", "."))
        or_id = "" if unlike_an_id else f", and {name!r} is no hub id (owner/name)"
        raise ValueError(f"there is no folder {local}{or_id}")
    if os.path.isdir(local.parent) and not _is_downloaded(name):
        raise ValueError(f"there is no folder {local}; if the hub id is meant, download it first: hf download {name}")
    return name


def _is_downloaded(hub_id: str) -> bool:
    from huggingface_hub import constants

    return os.path.isdir(Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}")


def missing_checkpoints(options: BaseModel) -> Iterator[tuple[str, str]]:
    """(key, hub id) of each option of one component that is a checkpoint and is not on this machine."""
    for key, field in type(options).model_fields.items():
        value = getattr(options, key)
        is_checkpoint = any(getattr(item, "func", None) is _folder_or_hub_id for item in field.metadata)
        if is_checkpoint and isinstance(value, str) and not os.path.isdir(value) and not _is_downloaded(value):
            yield key, value


CheckpointPath = Annotated[str, BeforeValidator(_folder_or_hub_id), PlainSerializer(_escape, when_used="json")]
"""A folder (read as a LocalPath is) or a hub id; a folder that exists wins."""
