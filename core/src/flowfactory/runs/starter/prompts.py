"""The prompts that a starter config begins with: the model's bundled ones, or those that the rewards can judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactory.config.component_slots import config_class
from flowfactory.data.prompt_files import read_rows
from flowfactory.discovery.catalogue import Component
from flowfactory.errors import UserError

Row = Mapping[str, Any]
MEDIA = ("image", "images", "video", "audio")
TEXTS: tuple[Row, ...] = (
    {"prompt": "a lighthouse on a cliff in a storm, oil painting"},
    {"prompt": "two foxes asleep in a hollow tree"},
    {"prompt": 'a neon sign that says "OPEN LATE" above a noodle shop'},
    {"prompt": "three hot-air balloons over a desert at sunrise"},
    {"prompt": "a wooden boat on a lake between mountains"},
    {"prompt": "four green bottles on a shelf"},
)
HELD_OUT = 3
"""Of the rows of which no file is held out: every so many-th."""
MOST = 64


def starter_rows(example: Mapping[str, Any] | None, rewards: Sequence[Component]) -> tuple[list[Row], list[Row]]:
    """(to train on, held out): rows of a .jsonl file, with absolute paths of pictures and the like.

    UserError: two rewards judge prompts of their own alone.
    """
    bundled = (example or {}).get("prompts")
    files = bundled if isinstance(bundled, Mapping) else {}
    train, heldout = (_read(files.get(key)) for key in ("train", "heldout"))
    if wanted := _wanted_rows(rewards):
        own = [{**_media_of(train, number), **row} for number, row in enumerate(wanted)]
        return _divide(own)
    return (train, heldout) if train and heldout else _divide(train or list(TEXTS))


def write_rows(rows: Sequence[Row]) -> tuple[str, str]:
    """(the ending of the file's name, its text): plain lines where all are texts alone."""
    if all(set(row) == {"prompt"} and "\n" not in row["prompt"] and row["prompt"][:1] not in ("{", "#") for row in rows):
        return ".txt", "".join(f"{row['prompt']}\n" for row in rows)
    return ".jsonl", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _wanted_rows(rewards: Sequence[Component]) -> list[Row]:
    demands: dict[str, Sequence[Row]] = {}
    for reward in rewards:
        prompts = config_class(reward).starter_prompts
        if prompts and prompts not in demands.values():
            demands[reward.name] = prompts
    if len(demands) > 1:
        told = " and ".join(demands)
        raise UserError(f"rewards {told} each judge prompts of their own; choose one of them, or give your own with --prompts")
    return [dict(row) for rows in demands.values() for row in rows]


def _read(path: object) -> list[Row]:
    if not isinstance(path, str):
        return []
    folder, rows = Path(path).parent, list[Row]()
    for _, item in read_rows(Path(path)):
        row = {"prompt": item} if isinstance(item, str) else dict(item)
        rows.append({key: _absolute(value, folder) if key in MEDIA else value for key, value in row.items()})
    return rows[:MOST]


def _absolute(value: Any, folder: Path) -> Any:
    return [_absolute(item, folder) for item in value] if isinstance(value, list) else str((folder / str(value)).resolve())


def _media_of(rows: Sequence[Row], number: int) -> dict[str, Any]:
    """The pictures and the like that a row of the model's own prompts brings."""
    return {key: value for key, value in rows[number % len(rows)].items() if key in MEDIA} if rows else {}


def _divide(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    held = [row for number, row in enumerate(rows) if number % HELD_OUT == HELD_OUT - 1]
    return [row for row in rows if row not in held], held
