"""Held-out samples as services show them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowfactory.data.media import import_pyav
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.score_format import format_score

FRAMES = 32
"""Of a GIF, which is large."""


def caption(sample: EvaluatedSample) -> str:
    """``a red fox  ocr 0.4100  pickscore 21.3000``."""
    scores = (f"{label} {format_score(score)}" for label, score in sample.scores.items())
    return "  ".join((sample.prompt, *scores))


def is_video(sample: EvaluatedSample) -> bool:
    """Whether it moves."""
    return sample.path.suffix == ".mp4"


def to_gif(path: Path) -> bytes:
    """A GIF of the video, of at most FRAMES frames; for services that show no MP4."""
    with import_pyav().open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 8)
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    step = -(-len(pictures) // FRAMES)
    first, *others = pictures[::step]
    file = io.BytesIO()
    duration = round(1000 * step / rate)  # milliseconds a frame
    first.save(file, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return file.getvalue()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings, for services that have no others."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
