"""Prompt files: read, and checked against what the model and the rewards take."""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from flowfactory.config.component import ModelConfig, Takes
from flowfactory.config.paths import URL, resolve_path
from flowfactory.config.sources import Source
from flowfactory.config.wording import LONGEST, written
from flowfactory.data.file_kinds import sort_of
from flowfactory.data.pictures import check_picture
from flowfactory.data.prompt_files import read_rows
from flowfactory.data.videos import check_video
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean, nearest
from flowfactory.types import Prompt


def read_prompts(path: Path, video_fps: Literal["model", "keep"] = "model") -> tuple[Prompt, ...]:
    """The prompts of a file, or of a folder of pictures with captions: a text or an object each, as the suffix says.

    An object has ``prompt``, and may have ``negative_prompt``, ``image`` or ``images``, ``video``, ``audio``, ``target``,
    ``chosen`` and ``rejected``, whose relative paths are relative to the file; everything else is metadata, and null says
    nothing. UserError: one line with the file and the place in it: no prompts, another kind of file, a prompt that is none, or
    a file that is not there.
    """
    prompts: list[Prompt] = []
    folder = (path if os.path.isdir(path) else path.parent).resolve()
    for place, item in read_rows(path):
        try:
            prompts.append(_parse_prompt(item, len(prompts), folder, video_fps))
        except ValueError as error:
            raise UserError(f"prompts {path} {place}: {error}") from error
    if not prompts:
        raise UserError(f"prompts {path}: there is no prompt in it; write one a line")
    return tuple(prompts)


def read_source(source: Source, video_fps: Literal["model", "keep"] = "model") -> tuple[Prompt, ...]:
    """The prompts of ``source``, to which its rewards apply where they do not say so themselves. UserError: as read_prompts."""
    found = read_prompts(source.file, video_fps)
    if source.rewards is not None:
        told = {"rewards": [*source.rewards]}
        found = tuple(replace(prompt, metadata={**told, **prompt.metadata}) for prompt in found)
    return tuple(replace(prompt, source=source.name) for prompt in found) if source.name else found


def read_sources(sources: Sequence[Source], video_fps: Literal["model", "keep"] = "model") -> tuple[Prompt, ...]:
    """The prompts of all ``sources``, one behind the other, and numbered so."""
    found = [read_source(source, video_fps) for source in sources]
    if len(found) < 2:
        return found[0] if found else ()
    return tuple(replace(prompt, index=index) for index, prompt in enumerate(chain.from_iterable(found)))


def _parse_prompt(item: Any, index: int, folder: Path, video_fps: Literal["model", "keep"]) -> Prompt:
    if isinstance(item, str):
        return Prompt(_strip(item), index)
    if not isinstance(item, dict):
        raise ValueError("expected an object with a 'prompt'")
    rest = {key: value for key, value in item.items() if value is not None}

    def text(key: str) -> str | None:
        value = rest.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key!r} is no text: {_told(value)}")
        return value

    def file(key: str) -> Path | None:
        name = text(key)
        return None if name is None else _resolve_file(key, name, folder)

    def record(key: str) -> Path | None:
        try:
            return file(key)
        except ValueError as error:  # a likely name for what a reward wants to know
            raise ValueError(f"{error}; {key!r} is a picture or a video; for metadata, take another name") from error

    words = text("prompt")
    if words is None:
        raise ValueError(f"'prompt' is missing{_called_otherwise(rest)}")
    names = rest.pop("images", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'images' is no list of paths: {_told(names)}")
    if "image" in rest and names:
        raise ValueError("has both 'image' and 'images'; write all of them as 'images'")
    single, negative, video, audio = file("image"), text("negative_prompt"), file("video"), file("audio")
    images = (single,) if single else tuple(_resolve_file("images", name, folder) for name in names)
    target, chosen, rejected = map(record, RECORDS)
    for key in rest:
        if meant := _misspelt(key):
            raise ValueError(f"unknown key {written(key)}; did you mean {meant!r}? For metadata, take another name")
    return Prompt(_strip(words), index, rest, negative, images, video, audio, False, video_fps, target, chosen, rejected)


RECORDS = ("target", "chosen", "rejected")
"""Keys of files that were made for a prompt."""
MANY = 100
"""Keys that one that is missing is looked for among."""


def _called_otherwise(keys: Collection[str]) -> str:
    near = [key for key in keys if key.lower() == "prompt"] or difflib.get_close_matches("prompt", [*keys][:MANY], n=1)
    there = ", ".join([*keys][:MANY])[:LONGEST]
    return f"; rename {written(near[0])}, if it is meant" if near else f"; there is {there}" if keys else ""


@lru_cache(1000)  # the same few keys, prompt by prompt
def _misspelt(key: str) -> str | None:
    """Which of the keys that mean something the metadata's ``key`` is most likely meant to be: near misses alone."""
    word = key.strip().lower().replace("-", "_").replace(" ", "_")
    swapped = [known for known in _OPTIONAL if sorted(known) == sorted(word)]
    near = [] if re.search(r"\d", word) else nearest(word, _OPTIONAL, 0.9)
    return next(iter([*swapped, *near]), None)


_OPTIONAL = ("negative_prompt", "image", "images", "video", "audio", *RECORDS)


def _strip(words: str) -> str:
    stripped = words.strip()
    if all(unicodedata.category(character) in ("Cc", "Cf", "Zs") for character in stripped):  # such as U+200B, of no width
        raise ValueError("'prompt' is empty; write a text, or leave the prompt out")
    return stripped


def _told(value: object) -> str:
    """``value`` as the file has it, if it is short."""
    told = json.dumps(value, ensure_ascii=False)
    return told if len(told) <= 60 else f"{told[:60]}…"


def _resolve_file(key: str, name: str, folder: Path) -> Path:
    """The file, as it is written where there is one of that name, in which a $ is just that. ValueError: there is none."""
    if not name.strip():
        raise ValueError(f"{key!r} is empty; write a path, or leave it out")
    if URL.match(name):
        kind = "a data URL" if name[:5].lower() == "data:" else "a URL"
        raise ValueError(f"{key!r} is {kind}, {name[:30]}…; save what it holds as a file, and write its path")
    try:
        if (path := folder / name).is_file() or (path := resolve_path(name, folder)).is_file():
            return path
        if path.is_dir():
            raise ValueError(f"{key!r}: {path} is a folder; write the path of a file")
        if "\\" in name and (folder / name.replace("\\", "/")).is_file():
            raise ValueError(f"no file {path}; write / instead of \\")
    except OSError as error:  # a name of thousands of characters
        raise ValueError(f"{key!r}: no file {name[:60]}…: {error.strerror}") from error
    raise ValueError(f"no file {path}")


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


LOOKED_INTO = 1000
"""So many pictures and videos are read through when a run starts, which takes milliseconds each; of more the headers alone."""


def check_files(prompts: Sequence[Prompt], model: ModelConfig, frames: int) -> None:
    """UserError: a picture or a video of a prompt is damaged, or not what ``model`` draws ``frames`` frames from."""
    for number, picture in enumerate(dict.fromkeys(path for prompt in prompts for path in prompt.images)):
        if reason := model.picture_error(*check_picture(picture, number < LOOKED_INTO)):
            raise UserError(f"picture {picture}: {reason}")
    rate = model.video_rate
    videos = dict.fromkeys((prompt.video, prompt.video_fps) for prompt in prompts if prompt.video is not None)
    for number, (video, fps) in enumerate(videos):
        looked_into = bool(rate) and number < LOOKED_INTO
        check_video(video, frames if looked_into else 0, rate if looked_into and fps == "model" else None)


def check_brought(prompts: Sequence[Prompt], wanted: Sequence[str], all_bring: bool) -> None:
    """UserError: records under the keys ``wanted`` are learned from, and a prompt brings none; or not one prompt does.

    The latter where not ``all_bring`` some. Opens no file.
    """
    lacking = [prompt for prompt in prompts if any(getattr(prompt, key) is None for key in wanted)]
    if wanted and lacking and (all_bring or len(lacking) == len(prompts)):
        first = lacking[0]
        keys = [key for key in wanted if getattr(first, key) is None] if all_bring else wanted
        whose = f"{first.text[:60]!r} brings no" if all_bring else "none of the prompts brings a"
        told = " and no ".join(map(repr, keys)) + (", which are" if len(keys) > 1 else ", which is")
        where = "their paths" if len(keys) > 1 else "its path"
        raise UserError(
            f"prompts.train: {whose} {told} learned from; write {where} beside the prompt in a .jsonl, .csv or .tsv file"
        )


def check_pairs(prompts: Sequence[Prompt]) -> None:
    """UserError: the ``chosen`` record of a prompt is its ``rejected`` one. Opens no file."""
    for prompt in prompts:
        if prompt.chosen and prompt.rejected and (file := prompt.chosen.resolve()) == prompt.rejected.resolve():
            raise UserError(
                f"prompts.train: {prompt.text[:60]!r} brings {file} as 'chosen' and as 'rejected', so that there is nothing to "
                "prefer; write another path, or leave the prompt out"
            )


def check_records(prompts: Sequence[Prompt]) -> None:
    """UserError: a ``target``, ``chosen`` or ``rejected`` of a prompt is neither a picture nor a video, or damaged."""
    for number, path in enumerate(dict.fromkeys(path for prompt in prompts for path in prompt.records)):
        if sort_of(path) == "video":
            check_video(path)
        else:
            check_picture(path, number < LOOKED_INTO)


def check_picture_tokens(prompts: Sequence[Prompt], model: ModelConfig, context: int) -> None:
    """UserError: the tokens that the pictures of a prompt add to a forward cannot be divided over ``context`` ranks."""
    if context == 1:
        return
    paths = dict.fromkeys(path for prompt in prompts for path in prompt.images)
    known = {path: model.picture_tokens(*check_picture(path, False)) for path in paths}
    for prompt in prompts:
        if (tokens := sum(known[path] for path in prompt.images)) % context:
            raise UserError(
                f"the pictures of the prompt {prompt.text[:60]!r} are {tokens} tokens, which distributed.context {context} "
                "does not divide; crop them to another shape, or set it lower"
            )


def check_reward_labels(prompts: Sequence[Prompt], labels: Sequence[str], learned: Collection[str] | None = None) -> None:
    """UserError: the metadata of a prompt says that other ``rewards`` than those of ``labels`` apply to it, or none.

    Nor may it say so of none that is ``learned`` from, where that is given.
    """
    for prompt in (prompt for prompt in prompts if "rewards" in prompt.metadata):
        told = prompt.metadata["rewards"]
        where = f"prompts: {prompt.text[:60]!r}: 'rewards'"
        if not isinstance(told, list) or not told:
            raise UserError(f"{where} is {told!r}; write a list of the labels that apply, or leave it out for all")
        for label in told:
            if label not in labels:
                raise UserError(f"{where} names {label!r}, which is no label of the config{did_you_mean(str(label), labels)}")
        if learned is not None and not any(label in learned for label in told):
            alone = f"{where} names {', '.join(map(repr, told))} alone, which nothing is learned from"
            raise UserError(f"{alone}; add a reward that has a weight, or move the prompt to prompts.heldout")
