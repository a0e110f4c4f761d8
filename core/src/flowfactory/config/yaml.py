"""YAML as configs have it: strict keys and YAML 1.2 numbers, read and written."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel

from flowfactory.errors import UserError


class Loader(yaml.SafeLoader):
    """YAML 1.2 floats (``1e-4`` is a number), and a repeated key is an error rather than the last one's win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                problem = f"{key!r} cannot be a key; write text with braces in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """The value. UserError: not YAML, with file and line."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{where}: {problem}") from error


def dump(config: BaseModel) -> str:
    """The resolved config as YAML that :func:`flowfactory.config.loading.load` reads back to the same."""
    return yaml.safe_dump(_put_name_first(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _put_name_first(value: Any) -> Any:
    if isinstance(value, dict):
        first = [key for key in ("name", "weight") if key in value]
        return {key: _put_name_first(value[key]) for key in [*first, *(key for key in value if key not in first)]}
    if isinstance(value, list):
        return [_put_name_first(item) for item in value]
    return value
