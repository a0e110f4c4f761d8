"""The drift panel: a few of the samples of an iteration or an evaluation, and the figures of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.partition import Rows
from flowfactory.distributed.ranks import Ranks
from flowfactory.drift import picture_statistics as statistics
from flowfactory.rl.groups import rows_by_group

SAMPLES = 32
"""That are looked at, whatever is drawn."""
SMALL, SHOWN, TINY = 64, 512, 16
"""Pixels a side: of what is shrunk, of the part that is seen as it is, and of what is compared within a group."""
WINDOWS = 4
"""Of a video that are looked at, three frames each."""
AT_ONCE = 2**24
"""Numbers of media, at the most, but for one sample that has more: what is computed of them takes memory too."""


class Sight(NamedTuple):
    """A sample as the panel saw it: its figures by name, and the small picture that is compared with others of its group."""

    figures: dict[str, float]
    picture: Tensor


class Panel:
    """Figures of those samples of a batch, of ``groups`` [B], that :func:`choose` names; on all ranks together."""

    def __init__(self, groups: Tensor, ranks: Ranks) -> None:
        self._ranks = ranks
        self._groups = choose(groups)
        self._wanted = {row for rows in self._groups for row in rows}
        self._seen: dict[int, Sight] = {}

    def add(self, media: Tensor, latents: Tensor, held: Rows, rows: Sequence[int]) -> None:
        """Look at what was drawn of the samples ``rows``, of which each rank has those that ``held`` says."""
        if not self._ranks.speaks:
            return
        own = Holders([[rows[i] for i in mine] for mine in held]).own(self._ranks.workers.rank)
        chosen = [(row, place) for row, place in own if row in self._wanted]
        together = max(1, AT_ONCE // max(1, media[:1].numel()))
        for part in (chosen[i : i + together] for i in range(0, len(chosen), together)):
            seen = look(media[[place for _, place in part]], grid_period(media, latents))
            self._seen |= dict(zip((row for row, _ in part), seen, strict=True))

    def metrics(self, prefix: str = "drift/") -> dict[str, float]:
        """``<prefix><figure>`` and ``<prefix><figure>/std``, its mean and standard deviation over the samples looked at.

        Of ``diversity`` over their groups; ``<prefix>groups`` is how many these are. A joint work of the ranks.
        """
        seen = {row: sight for told in self._ranks.gather(self._seen) for row, sight in told.items()}
        found: dict[str, list[float]] = {}
        for row in sorted(seen):
            for name, value in seen[row].figures.items():
                found.setdefault(name, []).append(value)
        several = [rows for rows in self._groups if len(rows) > 1]
        pictures = (torch.stack([seen[row].picture for row in rows]) for rows in several)
        if several:
            found["diversity"] = [float(statistics.pairwise_distance(same)) for same in pictures]
        return {**summary(found, prefix), f"{prefix}groups": len(self._groups)}


def summary(found: Mapping[str, Sequence[float]], prefix: str) -> dict[str, float]:
    """The mean and the standard deviation of the figures ``found``, by name."""
    metrics: dict[str, float] = {}
    for name, values in found.items():
        numbers = torch.tensor(values, dtype=torch.float64)
        metrics |= {f"{prefix}{name}": float(numbers.mean()), f"{prefix}{name}/std": float(numbers.std(correction=0))}
    return metrics


def choose(groups: Tensor, most: int = SAMPLES) -> list[list[int]]:
    """The samples to look at, by group: evenly spread groups, the first members of each, two where there are.

    Nothing but ``groups`` [B] decides it. At most ``most``; of few groups more members.
    """
    whole = rows_by_group(range(len(groups)), groups)
    pair = 2 if max(map(len, whole), default=0) > 1 else 1
    count = min(len(whole), max(1, most // pair))
    members = max(pair, most // max(1, count))
    return [whole[i * len(whole) // count][:members] for i in range(count)]


def grid_period(media: Tensor, latents: Tensor) -> int | None:
    """Pixels each way that one place of the latents is decoded to; None where it is not the same number each way."""
    if latents.dim() < 4:
        return None
    (height, width), (rows, columns) = media.shape[-2:], latents.shape[-2:]
    period = height // rows
    return period if period > 1 and (rows * period, columns * period) == (height, width) else None


@torch.no_grad()
def look(media: Tensor, period: int | None) -> list[Sight]:
    """What the panel tells of each of ``media`` [n, C, H, W] or [n, F, C, H, W] in [0, 1]."""
    if media.dim() == 4:
        figures, pictures = _look_at_pictures(media, period)
    else:
        figures, pictures = _look_at_videos(media, period)
    columns = {name: column.tolist() for name, column in figures.items()}
    return [Sight({name: column[i] for name, column in columns.items()}, picture) for i, picture in enumerate(pictures.cpu())]


def _look_at_pictures(pictures: Tensor, period: int | None) -> tuple[dict[str, Tensor], Tensor]:
    colours = statistics.as_colours(pictures)
    small, shown = statistics.shrink(colours, SMALL), statistics.crop(colours, SHOWN)
    grey = statistics.luma(shown)
    figures = {
        "luma": statistics.mean_luma(small),
        "saturation": statistics.saturation(small),
        "edge_density": statistics.edge_density(grey),
        "colour_entropy": statistics.colour_entropy(small),
        "jpeg_bytes": torch.tensor(statistics.jpeg_bytes(shown)),
    }
    if period is not None and statistics.has_grid(grey, period):
        figures["grid_energy"] = statistics.grid_energy(grey, period)
    return figures, statistics.shrink(small, TINY)


def _look_at_videos(videos: Tensor, period: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """The figures of the middle of each window as of a picture, their mean; and those of how its frames differ."""
    windows = statistics.frame_windows(videos.shape[1], WINDOWS)
    runs = videos[:, [frame for window in windows for frame in window]]
    runs = runs.view(len(videos), len(windows), -1, *videos.shape[2:])
    middle = runs[:, :, runs.shape[2] // 2]
    figures, pictures = _look_at_pictures(middle.flatten(0, 1), period)
    figures = {name: column.view(len(videos), -1).mean(1) for name, column in figures.items()}
    frames = statistics.shrink(statistics.as_colours(runs.flatten(0, 2)), SMALL)
    moving = frames.view(len(videos), *runs.shape[1:3], *frames.shape[1:]).transpose(1, 2)
    if moving.shape[1] > 1:
        figures["frame_difference"] = statistics.frame_difference(moving)
    if moving.shape[1] > 2:
        figures["flicker"] = statistics.flicker(moving)
    return figures, pictures.view(len(videos), -1, *pictures.shape[1:])
