"""The sizes that the pipelines of Qwen-Image give to pictures that a prompt brings."""

from __future__ import annotations

import math

MULTIPLE = 32
LONGEST = 200  # times as long as wide, of a picture for the text encoder


def resize_to_area(area: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of about ``area`` pixels, in the proportions of the picture, as the pipelines round them."""
    wide, high = (round(math.sqrt(area * ratio) / MULTIPLE) * MULTIPLE for ratio in (width / height, height / width))
    return wide, high


def thin_error(area: int, width: int, height: int) -> str | None:
    """One sentence about a picture that is too thin to be read at about ``area`` pixels; None for others."""
    short, long = sorted(resize_to_area(area, width, height))
    if short and long <= LONGEST * short:
        return None
    return f"{width} x {height} pixels are too thin for an area of {area} pixels; crop it"
