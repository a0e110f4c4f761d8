"""The JSON schema of a config as editors need it: a component may also be given as its name alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowfactory.config.component_slots import schema_type
from flowfactory.discovery.catalogue import Catalogue


def editor_schema(catalogue: Catalogue) -> dict[str, Any]:
    """Of a config with every component that is installed and can be loaded."""
    schema = schema_type(catalogue).model_json_schema()
    definitions = schema.get("$defs", {})
    names = {f"#/$defs/{key}": name for key, value in definitions.items() if (name := _only_name(value))}
    found: dict[str, Any] = _with_names(schema, names)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _only_name(definition: Mapping[str, Any]) -> str | None:
    """The name of the component whose options these are."""
    name = definition.get("properties", {}).get("name", {})
    return name["const"] if isinstance(name, Mapping) and isinstance(name.get("const"), str) else None


def _with_names(node: Any, names: Mapping[str, str]) -> Any:
    """``node``, where each choice of components may also be one of their names."""
    if isinstance(node, list):
        return [_with_names(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    choices = node.get("oneOf", []) if "discriminator" in node else [node] if node.get("$ref") in names else []
    known = [names[choice["$ref"]] for choice in choices if choice.get("$ref") in names]
    if not known:
        return {key: _with_names(value, names) for key, value in node.items()}
    told = {key: value for key, value in node.items() if key in ("title", "description", "default", "examples")}
    refs = [{"$ref": choice["$ref"]} for choice in choices]
    mapping = {"required": ["name"], "oneOf": refs} if len(refs) > 1 else refs[0]
    return {**told, "anyOf": [{"type": "string", "enum": known}, mapping]}
