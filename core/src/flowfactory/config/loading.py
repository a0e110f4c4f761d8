"""A config file to a checked RunConfig."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from flowfactory.config.component_slots import schema_type
from flowfactory.config.messages import describe_error, locate
from flowfactory.config.overrides import apply_override
from flowfactory.config.paths import resolve_path
from flowfactory.config.schema import RunConfig
from flowfactory.config.yaml import parse_yaml
from flowfactory.discovery.discover import discover
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    out: Path | None = None,
) -> RunConfig:
    """The config in the file ``source`` (or the bundled example of that name) with ``overrides`` set on top.

    UserError: one line that names the file, the key and the nearest valid name. Reads no weights.
    """
    path = find_config(source, plugins)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path.name}: expected a mapping at the top, got {type(raw).__name__}")
    for assignment in overrides:
        raw = apply_override(raw, assignment)
    listed = raw.get("plugins") or []
    if plugins and isinstance(listed, list):
        raw["plugins"] = [*listed, *(Path(plugin).resolve() for plugin in plugins)]
    # --out and the default are relative to where the command was given, a path in the file to the file
    if out is not None or "dir" not in (raw.get("output") or {}):
        output = raw.get("output") or {}
        if isinstance(output, dict):
            chosen = Path(out) if out is not None else Path("runs") / path.stem
            raw["output"] = {**output, "dir": chosen.absolute()}
    return validate(raw, source=path.name, folder=path.parent, overrides=overrides)


def find_config(source: str | Path, plugins: Sequence[Path] = ()) -> Path:
    """The config file: an existing path, or the bundled example of that name. UserError: neither."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return path
    catalogue = discover(plugins)
    examples = catalogue.components["example"]
    if any(str(source) in (example.name, example.full_name) for example in examples.values()):
        return Path(catalogue.find("example", str(source)).spec)
    raise UserError(f"no file {source}, and no example of that name{did_you_mean(str(source), examples)}")


def validate(
    raw: Mapping[str, Any], source: str = "config", folder: Path | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """The typed config of the mapping ``raw``; relative paths are relative to ``folder``. UserError: as :func:`load`."""
    catalogue = discover(_plugin_files(raw, source, folder, overrides))
    names: dict[str, set[str]] = {}
    for kind, name, place in _named_components(raw, source, catalogue.core_name("dynamics", "ode")):
        try:
            catalogue.find(kind, name)
        except UserError as error:
            raise UserError(f"{locate(place, source, overrides)}: {error}") from error
        names.setdefault(kind, set()).add(name)
    schema = schema_type(catalogue, names)
    try:
        return schema.model_validate(raw, context={"folder": folder, "catalogue": catalogue})
    except ValidationError as error:
        raise UserError(describe_error(error, schema, source, overrides)) from error


def _plugin_files(raw: Mapping[str, Any], source: str, folder: Path | None, overrides: Sequence[str]) -> list[Path]:
    files = raw.get("plugins") or []
    place = locate("plugins", source, overrides)
    if not isinstance(files, list | tuple) or not all(isinstance(file, str | Path) for file in files):
        raise UserError(f"{place}: expected a list of files")
    try:
        return [resolve_path(file, folder or Path()) for file in files]
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _named_components(raw: Mapping[str, Any], source: str, dynamics: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, place) of every component that ``raw`` names, or ``dynamics``; what is malformed is left to pydantic."""

    def section(key: str) -> Mapping[str, Any]:
        value = raw.get(key)
        return value if isinstance(value, Mapping) else {}

    def items(value: Any) -> Iterable[tuple[str, Any]]:
        return value.items() if isinstance(value, Mapping) else ()

    trackers = section("output").get("trackers")
    slots: list[tuple[str, str, Any]] = [(kind, kind, raw[kind]) for kind in ("model", "algorithm") if kind in raw]
    slots += [("dynamics", "sampling.dynamics", section("sampling").get("dynamics", dynamics))]
    slots += [("reward", f"rewards.{label}", value) for label, value in items(raw.get("rewards"))]
    slots += [("reward", f"evaluation.rewards.{label}", value) for label, value in items(section("evaluation").get("rewards"))]
    slots += [("tracker", f"output.trackers.{i}", value) for i, value in enumerate(trackers or [])]
    for kind, place, value in slots:
        if isinstance(value, str):
            yield kind, value, place
        elif isinstance(value, Mapping):
            if not isinstance(value.get("name"), str):
                raise UserError(f"{source}: {place}: say which {kind} with 'name'")
            yield kind, value["name"], place
        else:
            raise UserError(f"{source}: {place}: expected the name of a {kind} or a mapping with 'name'")
