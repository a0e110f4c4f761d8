"""Entries of the cache that somebody else wrote: never unpickled, and made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import payload
import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.types import Prompt


def encode(prompts: Sequence[Prompt], canvas: Canvas) -> list[Mapping[str, Tensor]]:
    return [{"embeds": torch.full((2,), float(len(prompt.text)))} for prompt in prompts]


def test_an_entry_that_is_a_program_is_encoded_again(tmp_path: Path) -> None:
    mark, prompts = tmp_path / "ran", [Prompt("abc", 0)]
    EncodeCache(encode, "model", CacheFolder(tmp_path)).prepare(prompts, Canvas(8, 8))
    (file,) = (tmp_path / "conditions").glob("*/*")
    written = file.read_bytes()
    for content in (payload.pickled(mark), payload.saved_by_torch(mark), payload.program(), b"", b"\xff" * 8 + b"{}"):
        file.write_bytes(content)
        cache = EncodeCache(encode, "model", CacheFolder(tmp_path))
        assert cache.entries(prompts, Canvas(8, 8))[0]["embeds"].tolist() == [3.0, 3.0]
        assert file.read_bytes() == written
    assert not mark.exists()
