"""A safetensors file, written piece after piece: what it will hold is said first, and no copy of it all is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowfactory.runs.checkpoints.files import Stored, new_digest

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""As safetensors calls them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
AT_ONCE = 16 * 2**20
"""Bytes that are written at a time, so that a disk which takes no more is noticed before all is gone through."""


class Entry(NamedTuple):
    """A tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` as they lie in a file: each begins at a multiple of its dtype's bytes."""
    return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))


def write_tensors(file: Path, entries: Sequence[Entry], numbers: Iterable[Tensor], metadata: Mapping[str, str]) -> Stored:
    """Write a new ``file`` onto the disk, and return its size and checksum. OSError: it cannot be.

    ``numbers`` are the tensors of ``entries``, as :func:`in_order` has them, or fewer that hold all of theirs in that order.
    Not by safetensors itself, which wants all of them at once, and does not tell the checksum.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        header[entry.name] = {"dtype": NAMES[entry.dtype], "shape": [*entry.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = new_digest()
    with file.open("xb") as opened:
        head: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
        for piece in chain(head, _pieces(numbers)):
            digest.update(piece)
            opened.write(piece)
        assert opened.tell() == 8 + len(text) + end, "other numbers than were said"
        opened.flush()
        os.fsync(opened.fileno())
        return Stored(opened.tell(), digest.hexdigest())


def _pieces(numbers: Iterable[Tensor]) -> Iterator[memoryview]:
    for tensor in numbers:
        whole = bytes_of(tensor)
        yield from (whole[start : start + AT_ONCE] for start in range(0, len(whole), AT_ONCE))


def bytes_of(tensor: Tensor) -> memoryview:
    """Its numbers, which are shared where it is in host memory and contiguous."""
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
