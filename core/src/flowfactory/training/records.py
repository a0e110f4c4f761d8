"""Records that are learned from: the latents of pictures and videos that prompts bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.data.records import read_record
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.hooks.calls import Hooks
from flowfactory.training.prompts import record_keys
from flowfactory.types import Prompt

Kind = Literal["targets", "pairs"]


def record_shape(canvas: Canvas, frame_rate: float | None) -> tuple[int, ...]:
    """That of a record as ``encode_media`` takes it: what draws at a ``frame_rate`` has frames, if only one."""
    frames = () if canvas.frames == 1 and frame_rate is None else (canvas.frames,)
    return (*frames, 3, canvas.height, canvas.width)


class Records:
    """Clean latents of records: encoded once, then on disk until an iteration learns from them.

    The prompts of each source are drawn on one of ``canvases``, videos at ``frame_rate``. What prepares and what gives
    latents is a joint work of the ``ranks``.
    """

    def __init__(
        self,
        hooks: Hooks,
        encoding: str,
        folder: CacheFolder,
        device: torch.device,
        canvases: Mapping[str, Canvas],
        frame_rate: float | None = None,
        ranks: Ranks = ALONE,
        tell: Callable[[int, int], None] = lambda done, total: None,
        on_host: bool = False,
    ) -> None:
        self._hooks, self._canvases, self._frame_rate = hooks, canvases, frame_rate
        self._videos = any(canvas.frames > 1 for canvas in canvases.values())
        self._rests_on = torch.device("cpu") if on_host else device
        self._cache = EncodeCache(
            self._encode,
            f"records {encoding}",
            folder,
            "cpu",
            True,
            ranks,
            tell,
            option="model.decoder_on",
            what=f"{'videos' if self._videos else 'pictures'} to learn from",
        )

    def as_prompt(self, prompt: Prompt, key: str) -> Prompt:
        """The record under ``key`` of a prompt, as a prompt that brings it alone: what the cache of prompts holds it as."""
        path: Path = getattr(prompt, key)
        if not self._videos:
            return Prompt("", images=(path,))
        return Prompt("", video=path, video_fps=prompt.video_fps)

    def prepare(self, prompts: Sequence[Prompt], kinds: Sequence[Kind], in_training: bool = False) -> int:
        """Have the records of those kinds of all ``prompts`` encoded; returns how many had to be."""
        keys = record_keys(kinds)
        found: dict[Canvas, list[Prompt]] = {}
        for prompt in prompts:
            records = [self.as_prompt(prompt, key) for key in keys if getattr(prompt, key) is not None]
            found.setdefault(self._canvases[prompt.source], []).extend(records)
        return self._cache.prepare_all([(records, canvas) for canvas, records in found.items()], in_training)

    def latents(self, records: Sequence[Prompt], mine: Sequence[int], canvas: Canvas) -> Tensor:
        """The latents [len(mine), ...] of those of ``records``, all on one ``canvas``, that this rank learns from."""
        entries = self._cache.entries(records, canvas)
        return torch.stack([entries[row]["latents"] for row in mine]).to(self._rests_on)

    def _encode(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        for prompt in prompts:
            rate = self._frame_rate if prompt.video_fps == "model" else None
            media = read_record(prompt.media[0], canvas, rate).reshape(record_shape(canvas, self._frame_rate))
            yield {"latents": self._hooks.encode_media(media[None])[0].cpu()}
