"""Which sizes and numbers of frames a model can draw."""

from __future__ import annotations

import math
from typing import NamedTuple

from flowfactory.canvas import Canvas


class Grid(NamedTuple):
    """The canvases a model can draw on.

    Sides are multiples of ``multiple`` up to ``longest``. A video has 1 + n ``stride`` frames; a model without a stride draws
    pictures.
    """

    multiple: int
    longest: float = math.inf
    stride: int | None = None

    def side(self, pixels: int) -> int:
        """The nearest side."""
        return int(min(max(self.multiple, round(pixels / self.multiple) * self.multiple), self.longest))

    def frames(self, count: int) -> int:
        """The nearest number of frames."""
        return 1 if self.stride is None else 1 + round((count - 1) / self.stride) * self.stride

    def tokens(self, canvas: Canvas) -> int:
        """How many tokens a transformer sees of a canvas, where one covers what ``multiple`` does."""
        frames = 1 if self.stride is None else 1 + (canvas.frames - 1) // self.stride
        return (canvas.height // self.multiple) * (canvas.width // self.multiple) * frames

    def check(self, section: str, size: tuple[int, int] | None, frames: int | None) -> None:
        """ValueError: one sentence about a size or a number of frames that cannot be drawn, with the nearest that can."""
        if size is not None and (near := [self.side(pixels) for pixels in size]) != list(size):
            known = f" up to {self.longest:.0f}" if self.longest < math.inf else ""
            raise ValueError(
                f"{section}.size {list(size)}: this model draws multiples of {self.multiple}{known}; the nearest is {near}"
            )
        if frames is None:
            return
        if self.stride is None:
            raise ValueError(f"{section}.frames: this model draws pictures; leave it out")
        if (nearest := self.frames(frames)) != frames:
            raise ValueError(
                f"{section}.frames {frames}: this model draws 1 + a multiple of {self.stride} frames; the nearest is {nearest}"
            )
