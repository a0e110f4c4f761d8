"""The encode-once cache: each distinct prompt goes through the text encoders once, then rests on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.condition_checks import check_finite
from flowfactory.data.media import file_digest
from flowfactory.discovery.installed_version import installed_version
from flowfactory.types import Conditions, Prompt

CHECKSUM = "checksum"
PICTURES_READ, VIDEOS_READ = 2, 2
"""How often the way from a file to its pixels has changed: what was encoded before that is encoded again."""
Entry = Mapping[str, Tensor]
Encode = Callable[[Sequence[Prompt], Canvas], Iterable[Entry]]


class EncodeCache:
    """Conditions of prompts: from memory, else from ``folder``, else from the model.

    ``encoding`` is everything beside the prompt that changes the tensors; the canvas does where ``canvas_matters``. They are
    held in host memory, once per distinct prompt, and come on ``device``. An entry that is missing, or whose bytes are not
    those that were written, is made again.
    """

    def __init__(
        self,
        encode: Encode,
        encoding: str,
        folder: CacheFolder,
        device: torch.device | str = "cpu",
        canvas_matters: bool = False,
    ) -> None:
        self._encode, self._encoding = encode, encoding
        self._folder = folder
        self._device = torch.device(device)
        self._canvas_matters = canvas_matters
        self._memory: dict[str, Entry] = {}

    def prepare(self, prompts: Iterable[Prompt], canvas: Canvas) -> int:
        """Have the entries of all ``prompts`` in memory; returns how many had to be encoded. RunError: one is not finite."""
        missing: dict[str, Prompt] = {}
        held = len(self._memory)
        for prompt in prompts:
            key = self._key(prompt, canvas)
            if key in self._memory or key in missing:
                continue
            entry = _unpack(self._folder.read(key))
            if entry is None:
                missing[key] = prompt
            else:
                self._memory[key] = entry
        if missing:  # in one call, for which the encoders are loaded once
            self._folder.remove_leftovers()
            entries = self._encode(list(missing.values()), canvas)
            for (key, prompt), entry in zip(missing.items(), entries, strict=True):
                check_finite(prompt, entry)
                self._memory[key] = {name: tensor.cpu().contiguous() for name, tensor in entry.items()}
                self._folder.write(key, _pack(self._memory[key]))
        if len(self._memory) > held:
            self._note_use()
        if missing:
            self._folder.evict()
        return len(missing)

    def _note_use(self) -> None:
        """Have everything on the disk, just used: other ranks are about to read what took this one hours to encode."""
        for key, entry in self._memory.items():
            if not self._folder.note_use(key):  # another run made room meanwhile
                self._folder.write(key, _pack(entry))

    def entries(self, prompts: Sequence[Prompt], canvas: Canvas) -> list[Entry]:
        """The entry of each prompt, in host memory."""
        self.prepare(prompts, canvas)
        return [self._memory[self._key(prompt, canvas)] for prompt in prompts]

    def conditions(self, prompts: Sequence[Prompt], canvas: Canvas, negative: Sequence[Prompt] | None = None) -> Conditions:
        """The conditions of ``prompts``, one entry each, and of the ``negative`` prompt of each."""
        self.prepare([*prompts, *(negative or ())], canvas)
        arrived: dict[str, Entry] = {}

        def entries(wanted: Sequence[Prompt]) -> tuple[Entry, ...]:
            keys = [self._key(prompt, canvas) for prompt in wanted]
            for key in keys:
                if key not in arrived:
                    arrived[key] = self._to_device(self._memory[key])
            return tuple(arrived[key] for key in keys)

        return Conditions(entries(prompts), None if negative is None else Conditions(entries(negative)))

    def _to_device(self, entry: Entry) -> Entry:
        if self._device.type == "cpu":
            return entry
        return {name: tensor.to(self._device) for name, tensor in entry.items()}

    def _key(self, prompt: Prompt, canvas: Canvas) -> str:
        parts = [
            installed_version("flowfactory"),
            self._encoding,
            prompt.text,
            json.dumps(prompt.metadata, sort_keys=True, default=str),
            prompt.images and [PICTURES_READ, *(file_digest(path) for path in prompt.images)],
            prompt.video and [VIDEOS_READ, installed_version("av"), prompt.video_fps, file_digest(prompt.video)],
            prompt.audio and file_digest(prompt.audio),
            canvas if self._canvas_matters else None,
            prompt.is_negative,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _pack(entry: Entry) -> bytes:
    content: bytes = save(dict(entry), {CHECKSUM: _checksum(entry)})
    return content


def _unpack(content: bytes | None) -> Entry | None:
    """The entry that was packed; None where there is none, or where it is not as it was."""
    if content is None:
        return None
    try:
        entry = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, KeyError, ValueError):  # a key error: of a dtype that this torch has not
        return None
    return entry if header.get("__metadata__", {}).get(CHECKSUM) == _checksum(entry) else None


def _checksum(entry: Entry) -> str:
    """Of names, shapes, dtypes and bytes: safetensors itself notices a file cut short, not one with other bytes."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(entry):
        tensor = entry[name].contiguous()
        found.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
