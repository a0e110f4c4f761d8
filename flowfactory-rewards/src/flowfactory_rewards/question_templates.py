"""Questions to a judge, with the prompt and keys of its metadata in braces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from flowfactory import RunError


def check_question(text: str) -> str:
    """``text``. ValueError: its braces hold something else than names."""
    for _, name, form, conversion in Formatter().parse(text):  # which raises ValueError for a lone brace
        if name is not None and (not re.fullmatch(r"[^\W\d]\w*", name) or form or conversion):
            raise ValueError(f"{{{name}}} is no name; write {{prompt}} or a key of the metadata, and {{{{ for a brace")
    return text


def fill_question(template: str, prompt: str, metadata: Mapping[str, Any]) -> str:
    """``template`` for one prompt. RunError: it asks for a key that the metadata lack."""
    try:
        return template.format_map({**metadata, "prompt": prompt})
    except KeyError as error:
        raise RunError(f"the prompt {prompt!r} has no metadata {error.args[0]!r}, which the question needs") from error
