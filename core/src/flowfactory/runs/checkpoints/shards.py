"""The shards of a checkpoint: what a rank wrote, as a safetensors file whose header says which rows of which tensors it has.

A header is JSON, and the rest are the bytes of numbers: nothing in a shard can be executed. What a header says is checked
against the size of its file before anything is made of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from flowfactory.distributed.sharding import local_shard
from flowfactory.runs.checkpoints.files import Damaged, Stored
from flowfactory.runs.checkpoints.tensor_file import DTYPES, METADATA, Entry, bytes_of, in_order, write_tensors
from flowfactory.untrusted_files import Refused, open_regular, parse_json

LONGEST_HEADER = 64 * 2**20
"""In bytes; that of a shard with ten thousand tensors has two million."""
LONGEST_NAME, MOST_DIMENSIONS = 1000, 16
ROWS = "rows"


class Rows(NamedTuple):
    """Rows of a tensor from the ``first`` on, of ``whole`` that it has in all; one without dimensions is a row."""

    name: str
    tensor: Tensor
    first: int
    whole: int


class Part(NamedTuple):
    """Where ``rows`` of a tensor are, from the ``first`` on: from byte ``offset`` of ``file`` on."""

    first: int
    rows: int
    file: Path
    offset: int


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint; its ``parts`` are in order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Part, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def own_rows(state: Mapping[str, Tensor]) -> list[Rows]:
    """This rank's rows of the tensors in ``state``, sharing their memory."""
    return [_own_rows(name, tensor.detach()) for name, tensor in state.items()]


def _own_rows(name: str, tensor: Tensor) -> Rows:
    whole = tensor.shape[0] if tensor.dim() else 1
    if not isinstance(tensor, DTensor):
        return Rows(name, tensor, 0, whole)
    return Rows(name, local_shard(tensor), _first_row(tuple(tensor.shape), tensor.device_mesh, tensor.placements), whole)


@lru_cache(maxsize=4096)
def _first_row(shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Placement, ...]) -> int:
    _, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    assert not any(offsets[1:]), "weights are divided along their first dimension alone"
    return offsets[0] if offsets else 0


def entry_of(rows: Rows) -> Entry:
    """What a shard says of ``rows``, but for which of the whole they are."""
    return Entry(rows.name, tuple(rows.tensor.shape), rows.tensor.dtype)


def which_rows(parts: Iterable[Rows]) -> dict[str, str]:
    """The metadata of a shard: the first row and the rows of the whole, where it has not all of them."""
    divided = {part.name: [part.first, part.whole] for part in parts if len(_flat_rows(part.tensor)) != part.whole}
    return {ROWS: json.dumps(divided)}


def write_shard(file: Path, parts: Sequence[Rows]) -> Stored:
    """Write tensors to a new ``file``, onto the disk; no copy of them all is made. OSError: it cannot be."""
    tensors = {part.name: part.tensor for part in parts}
    entries = in_order(map(entry_of, parts))
    return write_tensors(file, entries, (tensors[entry.name] for entry in entries), which_rows(parts))


def read_index(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Which tensors the shards ``files`` hold together. Damaged: they are no shards, or do not go with one another."""
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, held in _read_header(file).items():
            known = found.get(name, held._replace(parts=()))
            if (held.shape, held.dtype) != (known.shape, known.dtype):
                raise Damaged(f"{file.name} has another {name} than the shards before it")
            found[name] = known._replace(parts=known.parts + held.parts)
    for name, tensor in found.items():
        parts = sorted(part for part in tensor.parts if part.rows)
        ends = [0, *(part.first + part.rows for part in parts)]
        if [part.first for part in parts] != ends[:-1] or ends[-1] != (tensor.shape[0] if tensor.shape else 1):
            raise Damaged(f"its shards do not have every row of {name} once")
        found[name] = tensor._replace(parts=tuple(parts))
    return found


def read_rows(index: Mapping[str, StoredTensor], wanted: Iterable[Rows]) -> None:
    """Read into the tensors of ``wanted`` their rows, one part of a tensor after the other; whoever wrote them.

    They have the shapes in ``index``. Damaged: a file is shorter than it was. OSError: it cannot be read.
    """
    by_file: dict[Path, list[tuple[Rows, StoredTensor, Part]]] = {}
    for rows in wanted:
        for part in index[rows.name].parts:
            by_file.setdefault(part.file, []).append((rows, index[rows.name], part))
    for file, pieces in by_file.items():
        with _open_shard(file) as opened:
            for rows, stored, part in pieces:
                _read_part(opened, rows, stored, part)


def _read_part(opened: BufferedReader, rows: Rows, stored: StoredTensor, part: Part) -> None:
    target = _flat_rows(rows.tensor)
    start, end = max(rows.first, part.first), min(rows.first + len(target), part.first + part.rows)
    if end <= start:
        return
    target = target[start - rows.first : end - rows.first]
    straight = target.device.type == "cpu" and target.is_contiguous() and target.dtype == stored.dtype
    read = target if straight else torch.empty(target.shape, dtype=stored.dtype)
    opened.seek(part.offset + (start - part.first) * stored.row_bytes)
    if opened.readinto(bytes_of(read)) != read.nbytes:
        raise Damaged(f"{part.file.name} is cut off")
    if not straight:
        target.copy_(read)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """What tensors a shard has parts of. Damaged: it is no shard, or its header and its size do not go together."""
    with _open_shard(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        begin = 8 + length
        if length > LONGEST_HEADER or begin > size:
            raise Damaged(f"{file.name} is no safetensors file")
        text = opened.read(length)
    try:
        header = parse_json(text)
        own = header.pop(METADATA) if isinstance(header, dict) else None
        divided = parse_json(own[ROWS]) if isinstance(own, dict) and isinstance(own.get(ROWS), str) else None
    except (Refused, KeyError) as error:
        raise Damaged(f"{file.name} has no header of a checkpoint's") from error
    if not isinstance(divided, dict) or not header.keys() >= divided.keys():
        raise Damaged(f"{file.name} does not say which rows it has")
    spans = []
    found = {}
    for name, entry in header.items():
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise Damaged(f"{file.name} has a tensor without a proper name")
        try:
            start, end, shape, dtype = _check_entry(entry)
            first, whole = _check_rows(divided.get(name), shape)
        except ValueError as error:
            raise Damaged(f"{file.name} says of {name} what cannot be") from error
        spans.append((start, end))
        part = Part(first, shape[0] if shape else 1, file, begin + start)
        found[name] = StoredTensor((whole, *shape[1:]) if shape else (), dtype, (part,))
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if [start for start, _ in spans] != ends[:-1] or begin + ends[-1] != size:
        raise Damaged(f"{file.name} has not as many bytes as its header says")
    return found


def _check_entry(entry: object) -> tuple[int, int, tuple[int, ...], torch.dtype]:
    """From which byte to which a tensor is, its shape and dtype. ValueError: they do not go together."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, end], **others} if not others:
            counts = [start, end, *shape]
            sound = kind in DTYPES and len(shape) <= MOST_DIMENSIONS and all(map(_is_count, counts))
            if sound and end - start == math.prod(shape) * DTYPES[kind].itemsize:
                return start, end, tuple(shape), DTYPES[kind]
    raise ValueError(entry)


def _check_rows(stated: object, shape: Sequence[int]) -> tuple[int, int]:
    """The first row of a part, and how many the whole has. ValueError: the part does not lie in the whole."""
    if stated is None:
        return 0, shape[0] if shape else 1
    match stated:
        case [first, whole] if shape and _is_count(first) and _is_count(whole) and first + shape[0] <= whole:
            return first, whole
    raise ValueError(stated)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _open_shard(file: Path) -> BufferedReader:
    try:
        return open_regular(file, file.parent)
    except Refused as error:
        raise Damaged(f"{file.name} {error}") from error


def _flat_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() else tensor.view(1)
