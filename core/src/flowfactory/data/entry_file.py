"""A prompt's conditions as the bytes of a file, with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

CHECKSUM = "checksum"
Entry = Mapping[str, Tensor]


def pack(key: str, entry: Entry) -> bytes:
    """The bytes of a safetensors file of the ``entry`` of ``key``, whose tensors are contiguous and in host memory."""
    content: bytes = save(dict(entry), {CHECKSUM: _checksum(key, entry)})
    return content


def unpack(key: str, content: bytes) -> Entry | None:
    """The entry that was packed; None where it is not as it was, or is that of another key."""
    try:
        entry = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, KeyError, ValueError):  # a key error: of a dtype that this torch has not
        return None
    return entry if header.get("__metadata__", {}).get(CHECKSUM) == _checksum(key, entry) else None


def _checksum(key: str, entry: Entry) -> str:
    """Of key, names, shapes, dtypes and bytes: safetensors itself notices a file cut short, not one with other bytes.

    The key is in it, and not beside it: safetensors writes two texts of a header in whichever order.
    """
    found = hashlib.blake2b(key.encode(), digest_size=16)
    for name in sorted(entry):
        tensor = entry[name].contiguous()
        found.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
