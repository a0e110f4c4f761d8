"""Small copies of an evaluation's pictures, in ``small`` beside them: a page of many has no time to decode large ones."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, features

from flowfactory.atomic_files import replacing
from flowfactory.runs.report.embedded_media import QUALITY, shrink

SIDE = 176
"""Pixels of the longer side."""


def path_of(picture: Path) -> Path:
    """Where the small copy of ``picture`` is, if there is one."""
    return picture.parent / "small" / f"{picture.stem}.webp"


def write(picture: Path) -> None:
    """Write the small copy of the PNG ``picture``; none of one that is small, or where Pillow writes no WebP."""
    copy = path_of(picture)
    copy.unlink(missing_ok=True)  # of what was drawn in its place before
    with Image.open(picture) as whole:
        if max(whole.size) <= SIDE or not features.check("webp"):
            return
        copy.parent.mkdir(exist_ok=True)
        with replacing(copy) as temporary:
            shrink(whole.convert("RGB"), SIDE).save(temporary, format="WEBP", quality=QUALITY)
