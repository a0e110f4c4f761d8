"""The shards of a checkpoint: what each rank wrote, as a safetensors file whose header says which rows of which tensors it has.

A header is JSON, and the rest are the bytes of numbers: nothing in a shard can be executed. What a header says is checked
against the size of its file before anything is made of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.planner import WriteItem

from flowfactory.distributed.sharding import local_shard
from flowfactory.runs.checkpoints.files import Damaged, Stored, new_digest
from flowfactory.untrusted_files import Refused, open_regular, parse_json

LONGEST_HEADER = 64 * 2**20
"""In bytes; that of a shard with ten thousand tensors has two million."""
LONGEST_NAME, MOST_DIMENSIONS = 1000, 16
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
OWN, ROWS = "__metadata__", "rows"


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


def shard_name(rank: int) -> str:
    """The file of what ``rank`` wrote; diffusers passes over files called so when it looks for adapters."""
    return f"checkpoint-{rank}.safetensors"


def rows_of(item: WriteItem, tensor: Tensor) -> Rows:
    """The ``tensor`` that a plan of torch.distributed.checkpoint has this rank write, as rows."""
    assert item.tensor_data is not None
    offsets, size = item.tensor_data.chunk.offsets, item.tensor_data.size
    assert not any(offsets[1:]), "weights are divided along their first dimension alone"
    return Rows(item.index.fqn, tensor, offsets[0] if offsets else 0, size[0] if size else 1)


def own_rows(state: Mapping[str, Tensor]) -> list[Rows]:
    """This rank's rows of the tensors in ``state``, sharing their memory."""
    plan = create_default_local_save_plan(dict(state), True)
    return [rows_of(item, local_shard(state[item.index.fqn].detach())) for item in plan.items]


def write_shard(file: Path, parts: Iterable[Rows]) -> Stored:
    """Write tensors to a new ``file``, onto the disk; no copy of them all is made. OSError: it cannot be.

    Not by safetensors itself, of which older releases copy all of them, and none tells the checksum.
    """
    ordered = sorted(parts, key=lambda part: (-part.tensor.itemsize, part.name))  # so each begins at a multiple of its itemsize
    divided = {part.name: [part.first, part.whole] for part in ordered if len(_flat_rows(part.tensor)) != part.whole}
    header: dict[str, Any] = {OWN: {ROWS: json.dumps(divided)}}
    end = 0
    for part in ordered:
        start, end = end, end + part.tensor.nbytes
        place = {"shape": [*part.tensor.shape], "data_offsets": [start, end]}
        header[part.name] = {"dtype": NAMES[part.tensor.dtype], **place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    digest = new_digest()
    with file.open("xb") as opened:
        for piece in chain(head, (_bytes_of(part.tensor) for part in ordered)):
            digest.update(piece)
            opened.write(piece)
        opened.flush()
        os.fsync(opened.fileno())
        return Stored(opened.tell(), digest.hexdigest())


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
    read = torch.empty(target.shape, dtype=stored.dtype)
    opened.seek(part.offset + (start - part.first) * stored.row_bytes)
    if opened.readinto(_bytes_of(read)) != read.nbytes:
        raise Damaged(f"{part.file.name} is cut off")
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
        own = header.pop(OWN) if isinstance(header, dict) else None
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


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
