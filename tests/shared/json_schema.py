"""What is wrong with a value by a JSON schema, of the keywords that the schema of a config has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TYPES: Mapping[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}


def problems(value: Any, schema: Any, whole: Any = None, place: str = "") -> list[str]:
    """A line each; none where ``value`` is valid."""
    whole = schema if whole is None else whole
    if isinstance(schema, bool):
        return [] if schema else [f"{place}: not allowed"]
    if "$ref" in schema:
        return problems(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole, place)
    found = []
    if kind := schema.get("type"):
        number = isinstance(value, bool) and kind in ("integer", "number")
        if number or not isinstance(value, TYPES[kind]):
            return [f"{place}: no {kind}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{place}: not {schema['const']}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place}: none of {schema['enum']}")
    for word, least, most in (("anyOf", 1, None), ("oneOf", 1, 1)):
        if word in schema:
            right = sum(not problems(value, branch, whole, place) for branch in schema[word])
            if right < least or (most is not None and right > most):
                found.append(f"{place}: {right} of {word}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        found += [
            f"{place}: beyond {word}" for word, holds in BOUNDS.items() if word in schema and not holds(value, schema[word])
        ]
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{place}: not like {schema['pattern']}")
    if isinstance(value, list):
        for number_, item in enumerate(value):
            of = [*schema.get("prefixItems", []), *[schema.get("items", True)] * len(value)][number_]
            found += problems(item, of, whole, f"{place}.{number_}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{place}: lacks {key}" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            found += problems(
                item, known.get(key, schema.get("additionalProperties", True)), whole, f"{place}.{key}".strip(".")
            )
    return found
