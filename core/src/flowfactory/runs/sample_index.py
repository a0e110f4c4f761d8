"""``index.json`` beside samples: the prompt and the scores of each, which a stranger may have written. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flowfactory.atomic_files import write_json_atomically
from flowfactory.untrusted_files import Refused, read_json

INDEX, LARGEST = "index.json", 8 * 2**20
"""In bytes: the entry of a picture has hundreds."""
TRAINING = Path("samples/training")
"""Of a run directory: the best and the worst samples of its last iteration."""


def folder_of(iteration: int) -> Path:
    """Where in a run directory the samples of the evaluation after ``iteration`` lie."""
    return Path("samples") / f"{iteration:06d}"


def read(run: Path, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """``prompt``, ``scores`` and ``path`` of each sample in ``folder`` of the directory ``run``; ``say`` hears of others."""
    path = run / folder / INDEX
    try:
        index = read_json(path, LARGEST, within=run)
    except FileNotFoundError:
        return []
    except (Refused, OSError) as error:
        say(f"warning: {path} {error if isinstance(error, Refused) else error.strerror}; left out")
        return []
    items = [_sample(item, run / folder) for item in index] if isinstance(index, list) else [None]
    if None in items:
        say(f"warning: {path}: what is no sample with the name of a file in that folder is left out")
    return [item for item in items if item is not None]


def append(folder: Path, drawn: Iterable[tuple[str, str]]) -> None:
    """Add to ``index.json`` in ``folder`` the name and the prompt of each file ``drawn``. OSError: it cannot be written."""
    try:
        known = read_json(folder / INDEX, LARGEST, within=folder)
    except (FileNotFoundError, Refused):
        known = []
    added = [{"file": name, "prompt": prompt, "scores": {}} for name, prompt in drawn]
    names = {item["file"] for item in added}
    items = known if isinstance(known, list) else []
    kept = [item for item in items if isinstance(item, dict) and item.get("file") not in names]
    write_json_atomically(folder / INDEX, [*kept, *added])


def _sample(item: Any, folder: Path) -> dict[str, Any] | None:
    """An item of index.json; None where it is not as it is written."""
    match item:
        case {"file": str(file), "prompt": str(prompt), "scores": dict(scores)} if re.fullmatch(r"[0-9]+\.(png|mp4)", file):
            told = {label: float(score) for label, score in scores.items() if isinstance(score, float)}
            return {"prompt": prompt, "scores": told, "path": folder / file} | _of_training(item)
        case _:
            return None


def _of_training(item: Any) -> dict[str, Any]:
    """What only :data:`TRAINING` has: after which ``iteration``, and ``which`` it is of them."""
    match item:
        case {"iteration": int(iteration), "which": "best" | "worst" as which}:
            return {"iteration": iteration, "which": which}
        case _:
            return {}
