"""The encode-once cache: each distinct prompt goes through the text encoders once, then rests on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowfactory.types import Conditions, Prompt

ENVIRONMENT = "FLOWFACTORY_CACHE"
Entry = Mapping[str, Tensor]
Encode = Callable[[Sequence[Prompt]], Sequence[Entry]]


def default_folder() -> Path:
    """$FLOWFACTORY_CACHE, or ``flowfactory`` in the user's cache folder."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowfactory"


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


class ConditionCache:
    """Conditions of prompts: from memory, else from disk, else from the model.

    ``encoding`` is everything beside the prompt that changes the tensors. An entry that is missing or cannot be read is
    made again; an entry is written to a temporary name and renamed, so that it is whole or not there.
    """

    def __init__(self, encode: Encode, encoding: str, folder: Path, device: torch.device | str = "cpu") -> None:
        self._encode, self._encoding = encode, encoding
        self._folder = folder / "conditions"
        self._device = device
        self._memory: dict[str, Entry] = {}

    def prepare(self, prompts: Iterable[Prompt]) -> int:
        """Have the entries of all ``prompts`` in memory; returns how many had to be encoded."""
        missing: dict[str, Prompt] = {}
        for prompt in prompts:
            key = self._key(prompt)
            if key in self._memory or key in missing:
                continue
            entry = self._read(key)
            if entry is None:
                missing[key] = prompt
            else:
                self._memory[key] = entry
        waiting = list(missing.items())
        if waiting:  # in one call, for which the encoders are loaded once
            entries = self._encode([prompt for _, prompt in waiting])
            for (key, _), entry in zip(waiting, entries, strict=True):
                self._write(key, entry)
                self._memory[key] = {name: tensor.to(self._device) for name, tensor in entry.items()}
        return len(waiting)

    def conditions(self, prompts: Sequence[Prompt], negative: Prompt | None = None) -> Conditions:
        """The conditions of ``prompts``, one entry each, and of ``negative`` for every one of them."""
        self.prepare([*prompts, *([negative] if negative else [])])
        opposite = Conditions((self._memory[self._key(negative)],) * len(prompts)) if negative else None
        return Conditions(tuple(self._memory[self._key(prompt)] for prompt in prompts), opposite)

    def _key(self, prompt: Prompt) -> str:
        version = metadata.version("flowfactory")
        parts = [version, self._encoding, prompt.text, json.dumps(prompt.metadata, sort_keys=True, default=str)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]

    def _read(self, key: str) -> Entry | None:
        path = self._folder / f"{key}.safetensors"
        try:
            entry: Entry = load_file(path, device=str(self._device))
        except (SafetensorError, OSError):
            return None
        return entry

    def _write(self, key: str, entry: Entry) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{key}.")
        os.close(handle)
        save_file({name: tensor.cpu().contiguous() for name, tensor in entry.items()}, temporary)
        os.replace(temporary, self._folder / f"{key}.safetensors")
