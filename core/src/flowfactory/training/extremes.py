"""The best and the worst samples of an iteration, small, for people to look at: what it learns towards, and away from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowfactory.data.media import to_uint8
from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.partition import Rows
from flowfactory.distributed.ranks import Ranks

EACH = 6
"""The best of an iteration, and as many of the worst."""
BYTES = 2**26
"""Of the small copies of all samples of an iteration, until the next one: which are the best is known at its end."""
SIDES = (32, 256)
"""Pixels of a copy's longer side, at least and at most: fewer where there are many samples."""
AT_ONCE = 16
"""Samples that are shrunk at once, which takes memory too."""


class Extreme(NamedTuple):
    """One of the best or the worst, its picture [C, H, W] of uint8; of a video its middle frame."""

    which: str
    prompt: str
    scores: dict[str, float]
    picture: Tensor


class Extremes:
    """Of the last iteration, on whichever rank its samples were drawn."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._copies: dict[int, Tensor] = {}
        self._count = 0
        self._chosen: list[tuple[int, str, str, dict[str, float]]] = []

    def begin(self, count: int) -> None:
        """Forget the iteration before; ``count`` samples are to come."""
        self._count, self._copies, self._chosen = count, {}, []

    def add(self, media: Tensor, held: Rows, rows: Sequence[int]) -> None:
        """Take in what was drawn of the samples ``rows``, of which each rank has those that ``held`` says."""
        if not self._ranks.speaks:
            return
        own = Holders([[rows[i] for i in mine] for mine in held]).own(self._ranks.workers.rank)
        for part in (own[i : i + AT_ONCE] for i in range(0, len(own), AT_ONCE)):
            with torch.no_grad():  # not a decorator, for which PyTorch would be imported with this file
                small = shrink(media[[place for _, place in part]], side_of(self._count))
            self._copies |= {row: copy.clone() for (row, _), copy in zip(part, small, strict=True)}

    def judge(self, advantages: Tensor, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> None:
        """Choose by ``advantages`` [B]; ``scores`` {label: [B]} are told beside them. Keeps no other copies."""
        order = sorted(range(len(advantages)), key=advantages.tolist().__getitem__)
        each = min(EACH, len(order) // 2)
        named = [(row, "best") for row in reversed(order[len(order) - each :])] + [(row, "worst") for row in order[:each]]
        for row, which in named:
            known = {label: float(score[row]) for label, score in scores.items() if score[row].isfinite()}
            self._chosen.append((row, which, prompts[row], known))
        wanted = {row for row, *_ in self._chosen}
        self._copies = {row: copy for row, copy in self._copies.items() if row in wanted}

    def gather(self) -> list[Extreme]:
        """The best, then the worst, each the farthest first. A joint work of the ranks."""
        copies = {row: copy for told in self._ranks.gather(self._copies) for row, copy in told.items()}
        return [Extreme(which, prompt, scores, copies[row]) for row, which, prompt, scores in self._chosen if row in copies]


def side_of(count: int) -> int:
    """Pixels of the longer side of each of ``count`` copies that take BYTES together."""
    return min(SIDES[1], max(SIDES[0], int((BYTES / (3 * max(1, count))) ** 0.5)))


def shrink(media: Tensor, side: int) -> Tensor:
    """uint8 [n, C, h, w] on the host of ``media`` [n, C, H, W] or [n, F, C, H, W] in [0, 1], no side above ``side`` pixels."""
    pictures = media if media.dim() == 4 else media[:, media.shape[1] // 2]
    height, width = pictures.shape[-2:]
    scale = side / max(height, width)
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pictures = interpolate(pictures.float(), size, mode="area")
    return to_uint8(pictures).cpu()
