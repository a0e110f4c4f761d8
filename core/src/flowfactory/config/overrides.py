"""``--set a.b=value``: values from the command line, set on top of a config."""

from __future__ import annotations

import re
from typing import Any, cast

from flowfactory.config.paths import CommandLineText
from flowfactory.config.strict import expand_name
from flowfactory.config.wording import LONGEST
from flowfactory.config.yaml import parse_yaml
from flowfactory.errors import UserError
from flowfactory.untrusted_files import DEEPEST


def apply_override(raw: dict[str, Any], assignment: str, form: str = "a.b=value") -> dict[str, Any]:
    """``raw`` with ``a.b=value`` set; the value is YAML. UserError: not of this ``form``, or a path through a list."""
    path, equals, text = assignment.partition("=")
    path = path.strip()
    keys = path.split(".")
    if not equals or not all(keys):
        guess = re.fullmatch(r"([\w.-]+)\s*[:\s]\s*(\S.*)", assignment[:LONGEST])
        meant = f"; did you mean --set {guess[1]}={guess[2]}?" if guess else ""
        raise UserError(f"--set {assignment}: write it as {form}{meant}")
    if len(keys) > DEEPEST:
        raise UserError(f"--set {path}: it leads more than {DEEPEST} deep; no config needs that")

    def put(node: Any, depth: int) -> Any:
        if depth == len(keys):
            return _mark_typed(parse_yaml(text, f"--set {path}"))
        if isinstance(node, list):
            raise UserError(f"--set {assignment}: {'.'.join(keys[:depth])} is a list; set it as a whole")
        if isinstance(node, str) and keys[:depth] != ["model", "train"]:  # whose other form has no name
            node = expand_name(node)
        inner = dict(node) if isinstance(node, dict) else {}
        inner[keys[depth]] = put(inner.get(keys[depth]), depth + 1)
        return inner

    return cast(dict[str, Any], put(raw, 0))


def _mark_typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mark_typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark_typed(item) for item in value]
    return CommandLineText(value) if isinstance(value, str) else value
