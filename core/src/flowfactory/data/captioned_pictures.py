"""A folder of pictures with a caption each, as rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flowfactory.config.paths import PICTURES
from flowfactory.config.text_files import read_pieces
from flowfactory.config.wording import written
from flowfactory.data.prompt_rows import LONGEST, TOO_LONG, Mistake, Row
from flowfactory.errors import UserError

CAPTION = ".txt"


def read_captioned_pictures(folder: Path) -> Iterator[Row]:
    """For each picture, in the order of their names, its caption as ``prompt`` and itself as ``target``.

    Hidden files are passed over. UserError, Mistake: a picture has no caption, or a caption no picture; two pictures share one;
    or something else is there.
    """
    for picture, caption in _pair(folder):
        yield Row(caption, {"prompt": _read_caption(folder, caption), "target": picture})


def _pair(folder: Path) -> list[tuple[str, str]]:
    """The names of each picture and its caption."""
    pictures: dict[str, str] = {}
    captions: dict[str, str] = {}
    for name in _list(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() == CAPTION:
            if stem in captions:
                both = f"{written(captions[stem])} and {written(name)}"
                raise UserError(f"prompts {folder}: {both} would be captions of one picture; delete one")
            captions[stem] = name
        elif suffix.lower() not in PICTURES:
            kinds = f"{', '.join(PICTURES)}, nor a caption, {CAPTION}"
            raise UserError(f"prompts {folder}: {written(name)} is no picture, {kinds}; move it elsewhere")
        elif stem in pictures:
            both = f"{written(pictures[stem])} and {written(name)}"
            raise UserError(f"prompts {folder}: {both} would share a caption; rename one")
        else:
            pictures[stem] = name
    for stem in sorted(pictures.keys() ^ captions.keys()):
        there, lacking = (pictures[stem], "caption") if stem in pictures else (captions[stem], "picture")
        remedy = f"write {written(stem + CAPTION)}" if stem in pictures else "delete it, or put its picture beside it"
        raise UserError(f"prompts {folder}: {written(there)} has no {lacking}; {remedy}")
    if not pictures:
        raise UserError(f"prompts {folder}: this is a folder without pictures; name a file in it, or put some there")
    return sorted((name, captions[stem]) for stem, name in pictures.items())


def _list(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"prompts {folder}: cannot be read: {error.strerror}") from error


def _read_caption(folder: Path, name: str) -> str:
    text = ""
    for piece in read_pieces(folder / name, f"prompts {folder}: {name}"):
        text += piece
        if len(text) > LONGEST:
            raise Mistake(name, TOO_LONG)
    return text
