"""Prompt files: read, and checked against what the model and the rewards take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowfactory.config.component import Takes
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean
from flowfactory.types import Prompt


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts: a text a line, or in a ``.jsonl`` file an object a line; empty lines are passed over.

    An object has ``prompt``, and may have ``negative_prompt``, ``image`` or ``images``, ``video`` and ``audio``, whose
    relative paths are relative to the file; everything else is metadata. UserError: no prompts, not UTF-8 text, a line that
    is none of this, or a file that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() splits at U+2028 and others too
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path}: {error}") from error
    if path.suffix == ".jsonl":
        prompts = list(_read_jsonl(path, lines))
    else:
        prompts = [Prompt(text, index) for index, text in enumerate(line.strip() for line in lines if line.strip())]
    if not prompts:
        raise UserError(f"prompts {path}: there is no prompt in it; write one a line")
    return tuple(prompts)


def _read_jsonl(path: Path, lines: Sequence[str]) -> Iterator[Prompt]:
    index = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _parse_prompt(json.loads(line), index, path.parent)
        except json.JSONDecodeError as error:
            raise UserError(f"prompts {path} line {number}: no JSON: {error.msg} at character {error.pos + 1}") from error
        except ValueError as error:
            raise UserError(f"prompts {path} line {number}: {error}") from error
        index += 1


def _parse_prompt(item: Any, index: int, folder: Path) -> Prompt:
    if not isinstance(item, dict):
        raise ValueError("expected an object with a 'prompt'")
    rest = dict(item)

    def text(key: str) -> str | None:
        value = rest.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key!r} is no text: {value!r}")
        return value

    def file(key: str) -> Path | None:
        name = text(key)
        return None if name is None else _resolve_file(name, folder)

    words = text("prompt")
    if words is None:
        raise ValueError("'prompt' is missing")
    if "image" in rest and "images" in rest:
        raise ValueError("has both 'image' and 'images'; write all of them as 'images'")
    names = rest.pop("images", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'images' is no list of paths: {names!r}")
    single, negative, video, audio = file("image"), text("negative_prompt"), file("video"), file("audio")
    images = (single,) if single else tuple(_resolve_file(name, folder) for name in names)
    return Prompt(words.strip(), index, rest, negative, images, video, audio)


def _resolve_file(name: str, folder: Path) -> Path:
    path = folder.joinpath(Path(name).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"no file {path}")
    return path


def check_media(prompts: Sequence[Prompt], takes: Takes, model: str) -> None:
    """UserError: a prompt brings fewer or more files than ``model`` takes."""
    for prompt in prompts:
        brought = {"images": len(prompt.images), "video": int(prompt.video is not None), "audio": int(prompt.audio is not None)}
        for kind, (least, most) in takes._asdict().items():
            if least <= brought[kind] <= most:
                continue
            wanted = f"{least}" if least == most else f"{least} or more" if most == float("inf") else f"{least} to {most}"
            how = f"; write them into a .jsonl file under {kind!r}" if brought[kind] < least else ""
            raise UserError(
                f"prompts: {prompt.text[:60]!r} brings {brought[kind]} {kind}, and model {model!r} takes {wanted}{how}"
            )


def check_reward_labels(prompts: Sequence[Prompt], labels: Sequence[str]) -> None:
    """UserError: the metadata of a prompt says that other ``rewards`` than those of ``labels`` apply to it, or none."""
    for prompt in prompts:
        told = prompt.metadata.get("rewards", [*labels])
        where = f"prompts: {prompt.text[:60]!r}: 'rewards'"
        if not isinstance(told, list) or not told:
            raise UserError(f"{where} is {told!r}; write a list of the labels that apply, or leave it out for all")
        for label in told:
            if label not in labels:
                raise UserError(f"{where} names {label!r}, which is no label of the config{did_you_mean(str(label), labels)}")
