"""Tokenizers that have their files and a vocabulary that fits the encoder: transformers makes one of any folder at all."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import (
    LARGEST_VOCABULARY,
    check_settings,
    is_local,
    one_line,
    read_settings,
    reading,
)
from flowfactory.untrusted_files import read_bytes

MERGED = ("vocab.json", "merges.txt")
FILES = (
    *(("tokenizer.json",), ("tokenizer.model",), ("tekken.json",), ("tiktoken.model",)),
    *(MERGED, ("spiece.model",), ("vocab.txt",)),
)
"""Any of these is a vocabulary; which of them depends on the class."""
OF_BYTES = "ByT5Tokenizer"
"""The class whose vocabulary is the bytes themselves, in no file."""
WORDS = ("cat", "red")
"""Two words of one length, which any vocabulary of a language tells apart."""
LEAST_SHARE = 0.9
"""Of an encoder's embeddings that its tokenizer uses; the released ones have from 0.997 on, the rest is padding.

Of a vocabulary that its merges make, too: all but a few special tokens in the released ones.
"""
END_OF_WORD = "</w>"


def load_tokenizer(kind: Any, path: Path | str, source: str, **options: Any) -> Any:
    """The tokenizer, or the processor with one, of class ``kind`` in the folder or hub id ``path``.

    source: what messages begin with. options: of its ``from_pretrained``. See :func:`check_vocabulary` for what comes next.
    UserError: a file is damaged or not there, or the tokenizer gives different words the same ids.
    """
    if is_local(path):
        check_settings(Path(path))  # its folder may be that of a model whose weights are not read
        named = getattr(kind, "vocab_files_names", {}).values()
        if kind.__name__ != OF_BYTES:
            check_vocabulary_files(Path(path), source, [name for name in named if name != FILES[0][0]])
    with reading(source):
        tokenizer = kind.from_pretrained(path, trust_remote_code=False, **options)
        ids = [tuple(_text_side(tokenizer)(word)["input_ids"]) for word in WORDS]
    if len(set(ids)) == 1:
        # without the hub transformers makes a tokenizer of an id too
        again = "get its files again" if is_local(path) else f"download them first: hf download {path}"
        raise UserError(f"{source} gives different words the same ids: its vocabulary is not there; {again}")
    return tokenizer


def check_vocabulary(tokenizer: Any, embeddings: int, source: str) -> None:
    """UserError: the ids of ``tokenizer``, or of a processor's, do not go with an encoder that has ``embeddings`` of them."""
    tokenizer = _text_side(tokenizer)
    highest = max([*tokenizer.get_vocab().values(), *tokenizer.all_special_ids])
    if highest >= embeddings or highest + 1 < LEAST_SHARE * embeddings:
        raise UserError(
            f"{source} has ids up to {highest}, and its encoder has {embeddings} embeddings; get the tokenizer of this encoder"
        )


def limit_length(tokenizer: Any, encoder: Any) -> None:
    """``tokenizer``, or a processor's, cuts off at as many tokens as ``encoder`` has places for, where that says how many."""
    tokenizer, places = _text_side(tokenizer), getattr(encoder.config, "max_position_embeddings", None)
    if places is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, places)


@contextmanager
def using_template(source: str) -> Iterator[None]:
    """Within it what a tokenizer's chat template fails with is a UserError that begins with ``source``.

    A template is a program, which transformers runs without access to anything but the messages.
    """
    try:
        yield
    except Exception as error:
        places = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if type(error).__module__.split(".")[0] != "jinja2" and not places & {"<template>", "<unknown>"}:
            raise
        raise UserError(f"{source} has a chat template that fails: {one_line(error)}; get it again, whole") from error


def _text_side(tokenizer: Any) -> Any:
    return tokenizer if hasattr(tokenizer, "get_vocab") else tokenizer.tokenizer


def check_vocabulary_files(folder: Path, source: str, named: Collection[str] = ()) -> None:
    """UserError: ``folder`` has not all of ``named`` and no other vocabulary that transformers reads, or lacks merges."""
    accepted = [*FILES[:4], named] if named else FILES
    if not has_vocabulary(folder, accepted):
        lacking = next(name for name in named or FILES[0] if not (folder / name).is_file())
        raise UserError(f"{source} has no {lacking} in {folder}; get it again, whole")
    if not has_vocabulary(folder, FILES[:4]) and has_vocabulary(folder, [MERGED]):
        _check_merges(folder, source)


def has_vocabulary(folder: Path, vocabularies: Collection[Collection[str]] = FILES) -> bool:
    """Whether all files of one of ``vocabularies`` are in ``folder``."""
    return any(all((folder / name).is_file() for name in names) for names in vocabularies)


def _check_merges(folder: Path, source: str) -> None:
    """UserError: merges.txt makes too few of the tokens in vocab.json: what it lacks is spelled out byte by byte."""
    with reading(source):
        vocabulary = read_settings(folder / "vocab.json")
        lines = read_bytes(folder / "merges.txt", LARGEST_VOCABULARY).decode().split("\n")
    made = {"".join(line.split()) for line in lines}
    merged = [token for token in vocabulary if len(token.removesuffix(END_OF_WORD)) > 1 and not re.fullmatch("<.*>", token)]
    found = sum(token in made for token in merged)
    if found < LEAST_SHARE * len(merged):
        told = f"the merges.txt in {folder} makes {found} of the {len(merged)} tokens that vocab.json has beside single bytes"
        raise UserError(f"{source} is cut off: {told}; get it again, whole")
