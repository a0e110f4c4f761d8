"""A held-out sample that an evaluation left in the run directory, as observers are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluatedSample:
    """A PNG, or an MP4 of what moves, in the run directory; its prompt, and {label: score} of the rewards that apply to it."""

    path: Path
    prompt: str
    scores: Mapping[str, float]
