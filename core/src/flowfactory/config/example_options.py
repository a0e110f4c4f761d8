"""An example of a component, as YAML to copy: what it must be given, and a few of its options as they are by default."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import BASES, config_class, slot_type
from flowfactory.config.text_files import read_text
from flowfactory.config.wording import allowed
from flowfactory.config.yaml import dump_values, parse_yaml
from flowfactory.discovery.catalogue import Catalogue, Component
from flowfactory.errors import UserError

SHOWN = 3
"""Options beside those that must be given."""


def example(catalogue: Catalogue, component: Component) -> str:
    """The lines of a config that name ``component``; those to fill in are comments, where nothing tells what they may be."""
    name = next(name for name, each in catalogue.components[component.kind].items() if each == component)
    given, lacking = starter_values(catalogue, component), []
    options = {"name": name, **given}
    config = slot_type(catalogue, component.kind, [name])
    shared = BASES.get(component.kind, ComponentConfig).model_fields
    options |= _some_defaults(config, {*options, *shared, "workers", "device"})
    try:
        TypeAdapter(config).validate_python(options, context={"catalogue": catalogue, "anywhere": True, "folder": None})
    except ValidationError as error:
        wrong = dict.fromkeys(str(told["loc"][0]) for told in error.errors() if told["loc"])
        options = {key: value for key, value in options.items() if key not in wrong}
        lacking = [f"# {key}: {allowed(config.model_fields[key])}" for key in wrong if key in config.model_fields]
    label = component.name
    places: Mapping[str, dict[str, Any]] = {
        "reward": {"rewards": {label: options}},
        "dynamics": {"sampling": {"dynamics": options}},
        "tracker": {"output": {"trackers": [options]}},
    }
    placed = places.get(component.kind, {component.kind: options})
    return "\n".join([dump_values(placed).rstrip("\n"), *lacking])


def starter_values(catalogue: Catalogue, component: Component) -> dict[str, Any]:
    """The options that examples of ``component`` are written with: its own, else those of a model's bundled example."""
    found = dict(config_class(component).starter_options)
    if not found and component.kind == "model" and (bundled := bundled_example(catalogue, component)):
        values = bundled["model"]
        found = {key: value for key, value in values.items() if key != "name"} if isinstance(values, Mapping) else {}
    return found


def bundled_example(catalogue: Catalogue, component: Component) -> dict[str, Any] | None:
    """The first of :func:`bundled_examples`."""
    return next(bundled_examples(catalogue, component), None)


def bundled_examples(catalogue: Catalogue, component: Component) -> Iterator[dict[str, Any]]:
    """The example configs that name ``component``, those of its own distribution first, with absolute paths of prompts."""
    named = [each for each in catalogue.found if each.kind == "example"]
    # its own package's first, and of those the one that is called like it
    named.sort(key=lambda each: (each.distribution != component.distribution, each.name != component.name))
    for each in named:
        raw = _read_example(Path(each.spec))
        if isinstance(raw, dict) and _names(raw.get(component.kind), component):
            prompts = raw.get("prompts")
            if isinstance(prompts, dict):
                files = {key: str(_absolute(prompts[key], each.spec)) for key in ("train", "heldout") if key in prompts}
                raw["prompts"] = {**prompts, **files}
            yield raw


def _read_example(path: Path) -> Any:
    return copy.deepcopy(_read_once(path))


@cache
def _read_once(path: Path) -> Any:
    """What is in an example; None where it cannot be read, which whoever uses it will be told."""
    try:
        return parse_yaml(read_text(path, path.name), path.name)
    except UserError:
        return None


def _absolute(path: object, config: object) -> Path:
    return (Path(str(config)).parent / str(path)).resolve()


def _names(value: object, component: Component) -> bool:
    name = value.get("name") if isinstance(value, Mapping) else value
    return name in (component.name, component.full_name)


def _some_defaults(config: type[ComponentConfig], but: set[str]) -> dict[str, Any]:
    """The first of its options whose defaults are numbers, words or truth values, ``but`` not those."""
    found: dict[str, Any] = {}
    for key, field in config.model_fields.items():
        if len(found) < SHOWN and key not in but and _is_plain(field):
            found[key] = field.default
    return found


def _is_plain(field: FieldInfo) -> bool:
    text = isinstance(field.default, str) and "/" not in field.default
    return not field.is_required() and (text or isinstance(field.default, bool | int | float))
