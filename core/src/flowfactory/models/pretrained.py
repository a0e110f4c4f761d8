"""A pretrained pipeline as diffusers saves it: its parts, opened a few at a time."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flowfactory.errors import UserError


class Pretrained:
    """A folder or a hub id that ``pipelines[0]`` opens, a class of diffusers; ``pipelines`` are what it may call itself."""

    def __init__(self, path: str, pipelines: tuple[str, ...]) -> None:
        self.path, self._pipelines = path, pipelines

    @cached_property
    def _index(self) -> tuple[dict[str, Any], str | None]:
        import diffusers

        try:
            index, commit = getattr(diffusers, self._pipelines[0]).load_config(self.path, return_commit_hash=True)
        except OSError as error:
            raise UserError(f"model.path {self.path}: {' '.join(str(error).split())}") from error
        named = index.get("_class_name")
        if named not in self._pipelines:
            wanted = " or ".join(self._pipelines)
            raise UserError(f"model.path {self.path} holds a {named}; this model reads {wanted}")
        return index, commit

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline's own config says."""
        return self._index[0]

    @property
    def parts(self) -> dict[str, bool]:
        """The names of its parts that the class knows, and whether it has each."""
        import diffusers

        known = inspect.signature(getattr(diffusers, self._pipelines[0])).parameters
        return {name: part != [None, None] for name, part in self.settings.items() if isinstance(part, list) and name in known}

    def open(self, names: Collection[str], dtypes: Mapping[str, torch.dtype], **given: Any) -> Any:
        """The pipeline with the parts ``names`` in host memory, ``given`` in their place, and None for all others.

        ``dtypes`` are by part, with one for "default". UserError: a file of a part, or a library that it needs, is not there.
        """
        import diffusers
        from diffusers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        absent = {name: None for name, there in self.parts.items() if name not in names or not there}
        try:
            return getattr(diffusers, self._pipelines[0]).from_pretrained(self.path, dtype=dict(dtypes), **(absent | given))
        except (OSError, ImportError) as error:
            raise UserError(f"model.path {self.path}: {' '.join(str(error).split())}") from error

    def identity(self, names: Collection[str]) -> list[str | None]:
        """What changes when the files of the parts ``names`` do."""
        return [checkpoint_identity(self.path, sorted(names)), self._index[1]]

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, or with "" of the pipeline; empty where it is not on this machine. Never downloads."""
        name = {"": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(part, f"{part}/config.json")
        file: Any = Path(self.path) / name
        if not Path(self.path).is_dir():
            from huggingface_hub import try_to_load_from_cache

            file = try_to_load_from_cache(self.path, name)
        try:
            found: dict[str, Any] = json.loads(Path(file).read_text()) if isinstance(file, str | Path) else {}
        except FileNotFoundError:
            return {}
        return found


def checkpoint_identity(path: str, parts: Sequence[str] = ()) -> str:
    """What changes when the checkpoint does: name, size and time of the files below ``parts`` of a folder, else the hub id.

    A copy of a folder counts as another checkpoint, which costs one encoding and never a wrong one.
    """
    root = Path(path)
    if not root.is_dir():
        return path
    folders = [root / part for part in parts] or [root]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    facts = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(root.resolve()), facts]).encode()).hexdigest()
