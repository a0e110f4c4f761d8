"""Prompts that bring pictures to learn from."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

GREYS = (40, 90, 140, 190, 240)


def write_records(folder: Path, keys: tuple[str, ...] = ("target",)) -> Path:
    """Five prompts, of one to five letters, with a grey picture under each of ``keys``, none like another."""
    lines = []
    for number, grey in enumerate(GREYS):
        line = {"prompt": "a" * (number + 1)}
        for place, key in enumerate(keys):
            line[key] = f"{number}-{key}.png"
            Image.new("RGB", (9, 7), (grey - 30 * place,) * 3).save(folder / line[key])
        lines.append(json.dumps(line))
    file = folder / "records.jsonl"
    file.write_text("\n".join(lines))
    return file
