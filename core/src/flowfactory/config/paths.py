"""Paths in a config: relative to the file they stand in, or to where ``--set`` was typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ValidationInfo,
)


class CommandLineText(str):
    """Text from the command line, where a relative path is relative to where the command was given."""


def _resolve(path: Any, info: ValidationInfo) -> Any:
    folder = Path.cwd() if isinstance(path, CommandLineText) else (info.context or {}).get("folder")
    if folder is None or not isinstance(path, str | Path):
        return path
    return Path(folder).joinpath(Path(path).expanduser()).resolve()


LocalPath = Annotated[Path, BeforeValidator(_resolve)]
"""A path; a relative one is relative to the config file it stands in, or to where ``--set`` was typed."""


def _folder_or_hub_id(path: Any, info: ValidationInfo) -> Any:
    if not isinstance(path, str):
        return path
    local = Path(_resolve(path, info))
    if local.is_dir():
        return str(local)
    if local.is_file():
        raise ValueError(f"{local} is a file, and a folder is read; give one that save_pretrained of its library made")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path):
        unlike_an_id = "/" in path or path.startswith(("~", "."))
        or_id = "" if unlike_an_id else f", and {str(path)!r} is no hub id (owner/name)"
        raise ValueError(f"there is no folder {local}{or_id}")
    if local.parent.is_dir() and not _is_downloaded(path):
        raise ValueError(f"there is no folder {local}; if the hub id is meant, download it first: hf download {path}")
    return str(path)


def _is_downloaded(hub_id: str) -> bool:
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}").is_dir()


CheckpointPath = Annotated[str, BeforeValidator(_folder_or_hub_id)]
"""A folder (relative as a LocalPath is) or a hub id; a folder that exists wins."""
