"""What is drawn on: height, width and frames."""

from __future__ import annotations

from typing import NamedTuple


class Canvas(NamedTuple):
    """Height and width in pixels, and frames, 1 for a picture."""

    height: int
    width: int
    frames: int = 1
