"""On which canvas each iteration draws, where sources of prompts have sizes of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from flowfactory.canvas import Canvas

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

T = TypeVar("T")


class Drawn(NamedTuple):
    """What an iteration draws from: the sources of one ``canvas``, each with its weight, all others with 0.

    It is the iteration ``turn`` of that canvas, counted from 0. ``weights`` are empty where sources have no names.
    """

    canvas: Canvas
    weights: Mapping[str, int]
    turn: int


def drawn_from(config: RunConfig, iteration: int) -> Drawn:
    """What an ``iteration`` draws from: canvases take turns, each as often as its sources weigh, exact over their sum."""
    known, weights, shares = source_canvases(config), config.prompts.weights, _shares(config)
    if len(shares) == 1:
        return Drawn(next(iter(shares)), weights, iteration)
    total = shares.total()
    canvas, turn = deal(tuple(shares.items()))[iteration % total]
    own = {name: weight if known[name] == canvas else 0 for name, weight in weights.items()}
    return Drawn(canvas, own, turn + iteration // total * shares[canvas])


def drawn_within(config: RunConfig, iterations: int) -> set[Canvas]:
    """The canvases that have a turn in so many iterations."""
    return {canvas for canvas, _ in deal(tuple(_shares(config).items()))[:iterations]}


def source_canvases(config: RunConfig) -> dict[str, Canvas]:
    """What the prompts of each source are drawn on, by its name, "" where there is one file without."""
    drawn, named = config.sampling.canvas, config.prompts.named
    return {name: Canvas(*(source.size or config.sampling.size), drawn.frames) for name, source in named.items()} or {"": drawn}


def main_canvas(config: RunConfig) -> Canvas:
    """That of most iterations, the first of equals: what is compared from one to another is looked at on it alone."""
    shares = _shares(config)
    return max(shares, key=lambda canvas: shares[canvas])


def _shares(config: RunConfig) -> Counter[Canvas]:
    """How often each canvas has its turn."""
    shares = Counter[Canvas]()
    for name, canvas in source_canvases(config).items():
        shares[canvas] += config.prompts.weights.get(name, 1)
    return shares


def largest_canvas(config: RunConfig) -> Canvas:
    """That of the most pixels."""
    return max(source_canvases(config).values(), key=lambda canvas: canvas.height * canvas.width)


@lru_cache(8)
def deal(weights: tuple[tuple[T, int], ...]) -> list[tuple[T, int]]:
    """Whose each of a sum of ``weights`` turns is, the one's that lacks most, and how many of its came before."""
    total, counts = sum(weight for _, weight in weights), Counter[T]()
    dealt = []
    for done in range(1, total + 1):
        name, _ = max(weights, key=lambda source: source[1] * done - counts[source[0]] * total)
        dealt.append((name, counts[name]))
        counts[name] += 1
    return dealt
