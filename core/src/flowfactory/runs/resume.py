"""What a resumed run may not change: all of the config but a few keys, and the prompts by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowfactory.checkpoint_names import MANIFEST
from flowfactory.config.component import ComponentConfig
from flowfactory.config.schema import RunConfig
from flowfactory.config.teachers import TeachersConfig
from flowfactory.config.warm_start import find_adapters, is_base, started_from, whole_weights
from flowfactory.data import prompts
from flowfactory.errors import UserError

FREE_TO_CHANGE = (
    *("evaluation", "output", "plugins", "device", "training.iterations"),
    *("training.patience_flat", "training.early_stop"),
    # about memory and speed, and no number but for rounding
    *("distributed", "sampling.keep_on", "sampling.batch_size", "prompts.encode_ahead"),
    *("training.batch_size", "training.timesteps_per_forward", "training.kept_on"),
    *("training.activation_checkpointing", "training.compile", "training.matmul", "training.keep_graphs"),
)
PROMPTS, START, TEACHERS = ("prompts.train", "prompts.heldout"), "model.train.lora.from", "algorithm.teachers"


def fixed_config(config: RunConfig) -> dict[str, Any]:
    """Every key of ``config`` that is not free to change and its value in JSON; of files the checksum of their content.

    UserError: one of them cannot be read.
    """
    free = (*FREE_TO_CHANGE, *_components_free(config))
    values = {key: value for key, value in _flat(config.model_dump(mode="json")).items() if not _is_below(key, free)}
    start = {} if START not in values else {START: _adapter_checksum(START, Path(values[START]))}
    start |= {key: _teacher_checksum(key, path) for key, path in _teachers(config).items()}
    return values | start | {key: path and _prompt_checksum(path) for key, path in _prompt_files(config).items()}


def config_changes(before: Mapping[str, Any], config: RunConfig) -> list[str]:
    """What ``config`` has changed since :func:`fixed_config` gave ``before``, each key with its value then and now.

    A key that ``before`` does not have, as where an older version wrote it, is no change while it has its default.
    """
    now, added = fixed_config(config), tuple(_added(config, before))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) and not _is_below(key, added)]
    return [_describe(key, before.get(key), now.get(key)) for key in changed]


def checksum(value: object) -> str:
    """BLAKE2b of a JSON value, the same whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _is_below(key: str, places: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{place}.") for place in places)


def _added(model: BaseModel, before: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """The keys below ``place`` that ``before`` does not have, nor any part of, and that have their defaults in ``model``."""
    for name, field in type(model).model_fields.items():
        key, value = f"{place}{name}", getattr(model, name)
        if key in before:
            continue  # whatever it is now was another thing then
        if not any(other.startswith(f"{key}.") for other in before):
            if value == field.get_default(call_default_factory=True):
                yield key
            continue
        parts = {f"{key}.": value} if not isinstance(value, Mapping) else {f"{key}.{each}.": value[each] for each in value}
        for inner, part in parts.items():
            if isinstance(part, BaseModel) and any(other.startswith(inner) for other in before):
                yield from _added(part, before, inner)


def _components_free(value: object, place: str = "") -> Iterator[str]:
    """The keys that the components of a config say are free to change."""
    if isinstance(value, ComponentConfig):
        yield from (f"{place}{key}" for key in value.free_to_change)
    if isinstance(value, BaseModel):
        inner: Iterable[tuple[str, object]] = value
    else:
        inner = value.items() if isinstance(value, Mapping) else ()
    for key, item in inner:
        yield from _components_free(item, f"{place}{key}.")


def _describe(key: str, before: Any, now: Any) -> str:
    of_a_source = key.startswith("prompts.train.") and key.endswith((".file", ".heldout"))
    if key in (*PROMPTS, START) or of_a_source or key.startswith(f"{TEACHERS}."):
        return f"{key}: its content has changed since" if before and now else f"{key} is {'set' if now else 'not set'} now"
    return f"{key} ({before} then, {now} now)"


def check_base(before: Mapping[str, Any], config: RunConfig) -> None:
    """UserError: adapters that are a part of the frozen weights are others than when :func:`fixed_config` gave ``before``."""
    train = config.model.train
    path = None if train == "full" or not is_base(train.lora) else started_from(train.lora)
    if path is not None and START in before and _adapter_checksum(START, path) != before[START]:
        raise UserError(f"{START}: the content of {path} has changed since, and the run's weights go on what it was")


def _adapter_checksum(key: str, path: Path) -> str:
    try:
        return checksum({name: _file_checksum(file) for name, file in find_adapters(path).items()})
    except (ValueError, OSError) as error:
        raise UserError(f"{key}: {error}") from error


def _teachers(config: RunConfig) -> dict[str, Path]:
    """Where teachers lie, by their keys."""
    algorithm = config.algorithm
    return {f"{TEACHERS}.{n}": path for n, path in algorithm.teachers.items()} if isinstance(algorithm, TeachersConfig) else {}


def _teacher_checksum(key: str, path: Path) -> str:
    """Of its adapters; or of what a checkpoint says of all its files."""
    whole = whole_weights(path)
    return _file_checksum(whole / MANIFEST) if whole else _adapter_checksum(key, path)


def _prompt_files(config: RunConfig) -> dict[str, Path | None]:
    """The files of prompts by their keys; None where there is none."""
    chosen = config.prompts
    train: dict[str, Path | None] = {"prompts.train": chosen.train} if isinstance(chosen.train, Path) else {}
    for name, source in chosen.named.items():
        train |= {f"prompts.train.{name}.file": source.file, f"prompts.train.{name}.heldout": source.heldout}
    return {**train, "prompts.heldout": chosen.heldout}


def _prompt_checksum(path: Path) -> str:
    """The checksum of the prompts in a file and of the files they bring, wherever those lie."""
    found = hashlib.blake2b(digest_size=16)
    for prompt in prompts.read_prompts(path):
        kinds = [len(prompt.images), prompt.video is not None, prompt.audio is not None]
        whole: list[Any] = [prompt.text, prompt.negative, dict(prompt.metadata), kinds]
        whole.append([_file_checksum(file) for file in prompt.media])
        if prompt.records:  # without them as it always was
            whole.append([path and _file_checksum(path) for path in (prompt.target, prompt.chosen, prompt.rejected)])
        found.update(checksum(whole).encode())
    return found.hexdigest()


def _file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: value}
