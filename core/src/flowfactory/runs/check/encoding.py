"""What a run's prompts will take in the cache of encoded prompts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowfactory.data.cache_folder import default_folder
from flowfactory.training.prompts import find_records
from flowfactory.types import Prompt

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

BYTES = {"float32": 4, "bf16": 2}


@dataclass(frozen=True)
class Encoding:
    """How many prompts are encoded, in about how many bytes at most, where, and how many bytes are free there.

    What is in the cache from before is not encoded again. ``size`` is None where the model, or files that are not here,
    do not tell; pictures and videos of prompts, whose number is ``media``, are not in it, nor are ``records``, those that are
    learned from. Of many training prompts about ``at_once`` are encoded at a time, where it is not None, and those that no
    iteration draws never are.
    """

    prompts: int
    size: int | None
    media: int
    folder: Path
    free: int
    at_once: int | None = None
    records: int = 0


def count_encoding(config: RunConfig, train: Sequence[Prompt], heldout: Sequence[Prompt], precision: str) -> Encoding:
    """Of a run with these prompts, whose transformer computes in ``precision``."""
    texts: set[tuple[object, ...]] = set()
    both = [*train, *heldout]
    for prompt in both:
        texts.add((prompt.text, str(prompt.metadata), prompt.images, prompt.video, prompt.audio, False))
        if config.model.takes_negatives():
            texts.add((config.prompts.negative if prompt.negative is None else prompt.negative, True))
    each = config.model.encoded_bytes(BYTES[precision]) if precision in BYTES else None
    folder = default_folder() / "conditions"
    media = len({path for prompt in both for path in (*prompt.images, prompt.video, prompt.audio) if path})
    size, groups = None if each is None else each * len(texts), config.sampling.groups
    iterations = config.prompts.iterations_at_once(len(train), groups)
    records = len(find_records(config, train))
    return Encoding(len(texts), size, media, folder, _free(folder), iterations and iterations * groups, records)


def _free(folder: Path) -> int:
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 0
