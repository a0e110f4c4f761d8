"""The sizes that a model's config may name: what is made of them is made before its weights are looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowfactory.errors import UserError

FILES = ("config.json", "scheduler_config.json")
MOST_ITEMS = 1000
"""Of a list, where each item is a layer or a block."""
LARGEST: Mapping[str, int] = {
    r"num_train_timesteps": 100_000,
    r"pos_embed_max_size": 512,
    r"(.*_)?(layers?|depths?|blocks?|experts|stages)(_per_(block|stage))?|n_layer": 1000,
    r"(.*_)?vocab(ulary)?_size|(.*_)?num_embeds(_ada_norm)?": 2**20,
    r"(.*_)?(hidden|intermediate|embed|embedding|ffn|mlp|feedforward|head|patch|sample|image)_(size|dim)": 2**17,
    r"(.*_)?(dims?|channels|heads|features|width|height|buckets|axes_lens)|d_(model|ff|kv)|n_(embd|inner|head)": 2**17,
    r"(.*_)?max_(seq_len|sequence_length|text_len)|(.*_)?max_position_embeddings|n_positions|n_ctx": 2**24,
}
"""By the whole name of a key: several times what the largest released models have, some of 10 million positions."""
LISTS = r".*(types|layers|depths?|blocks?|channels|dims?|heads)"


def check_sizes(file: Path, settings: Mapping[str, Any]) -> None:
    """UserError: a key of the config in ``file``, or of one within it, would have far more made than any released model."""
    if file.name not in FILES:
        return
    for key, value in _named(settings):
        if isinstance(value, list) and len(value) > MOST_ITEMS and re.fullmatch(LISTS, key):
            raise UserError(
                f"{file}: {key} has {len(value)} items, more than the {MOST_ITEMS} that are read; get it again, whole"
            )
        if isinstance(value, int | float) and value > (largest := _largest(key)):
            raise UserError(f"{file}: {key} is {_told(value)}, more than the {largest} that is read; get it again, whole")


def _largest(key: str) -> float:
    return next((largest for pattern, largest in LARGEST.items() if re.fullmatch(pattern, key)), float("inf"))


def _named(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value within ``value``, with the key that it, or the list that it is in, stands under."""
    yield key, value
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _named(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, key)


def _told(number: float) -> str:
    return str(number) if number < 1e15 else f"{float(min(number, 10**300)):.0e}"
