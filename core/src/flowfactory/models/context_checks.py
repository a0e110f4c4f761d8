"""Whether ranks can share a forward: what heads, tokens of text and sizes of what is drawn go with ``distributed.context``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

from flowfactory.canvas import Canvas
from flowfactory.config.canvases import source_canvases
from flowfactory.models.resolution import Grid
from flowfactory.suggestions import join_or

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

FARTHEST = 64
"""Tokens along a side by which a size may differ from what was asked for, to be named instead."""


def check_heads(context: int, heads: Mapping[str, int]) -> None:
    """ValueError: ``context`` does not divide the heads of each transformer; says what does."""
    for name, count in heads.items():
        if count % context:
            fitting = [str(n) for n in range(1, count + 1) if count % n == 0]
            raise ValueError(
                f"distributed.context {context} does not divide the {count} heads of {name}; choose {join_or(fitting)}"
            )


def check_text(context: int, option: str, tokens: int) -> None:
    """ValueError: ``context`` does not divide the tokens of text that ``option`` says; says the nearest that it does."""
    if tokens % context:
        nearest = max(1, tokens // context) * context
        raise ValueError(f"model.{option} {tokens}: distributed.context {context} must divide it; the nearest is {nearest}")


def check_canvases(run: RunConfig, grid: Grid) -> None:
    """ValueError: the context does not divide the tokens of what is drawn; says the nearest size of which it does."""
    context, drawn = run.distributed.context, run.sampling.canvas
    sources = {f"prompts.train.{name}": canvas for name, canvas in source_canvases(run).items()}
    others = sources | {"evaluation": run.evaluation.canvas(run.sampling)}
    for section, canvas in {"sampling": drawn, **{name: canvas for name, canvas in others.items() if canvas != drawn}}.items():
        tokens = grid.tokens(canvas)
        if tokens % context == 0:
            continue
        frames = "" if grid.stride is None else f" of {canvas.frames} frames"
        near = nearest_divided(grid, canvas, context)
        remedy = f"the nearest is {[near.height, near.width]}" if near else "set distributed.context lower"
        raise ValueError(
            f"{section}.size {[canvas.height, canvas.width]}: distributed.context {context} does not divide its {tokens} "
            f"tokens{frames}; {remedy}"
        )


def nearest_divided(grid: Grid, canvas: Canvas, parts: int) -> Canvas | None:
    """The nearest canvas of as many frames whose tokens come in ``parts`` that are equal; None where none is near."""

    def sides(side: int) -> list[int]:
        most = min(parts, FARTHEST)
        whole = range(-most, most + 1)
        return [near for n in whole if 0 < (near := side + n * grid.multiple) <= grid.longest]

    found = [
        Canvas(height, width, canvas.frames)
        for height, width in product(sides(canvas.height), sides(canvas.width))
        if grid.tokens(Canvas(height, width, canvas.frames)) % parts == 0
    ]
    return min(found, key=lambda near: (abs(near.height - canvas.height) + abs(near.width - canvas.width), near), default=None)
