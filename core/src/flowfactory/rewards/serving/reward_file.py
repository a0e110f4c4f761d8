"""Which reward is served, and with which options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import parse_component
from flowfactory.config.overrides import apply_override
from flowfactory.config.paths import file_error
from flowfactory.config.text_files import read_text
from flowfactory.config.yaml import parse_yaml
from flowfactory.errors import UserError


def load_reward(reward: str, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()) -> tuple[str, ComponentConfig]:
    """The name and the options of ``reward``: a component's name, or a YAML file with one. UserError: there is no such."""
    path = Path(reward)
    folder = None
    raw: Any = {"name": reward}
    if path.suffix in (".yaml", ".yml"):
        if reason := file_error(path):
            raise UserError(reason)
        raw = parse_yaml(read_text(path, path.name), path.name)
        raw = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
            raise UserError(f"{path.name}: expected a mapping with the 'name' of a reward and its options")
        folder = path.parent
    for assignment in overrides:
        raw = apply_override(raw, assignment, "key=value")
    return raw["name"], parse_component("reward", raw, plugins, folder, path.name if folder is not None else "")
