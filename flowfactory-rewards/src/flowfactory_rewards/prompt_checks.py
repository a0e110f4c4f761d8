"""What a reward will be asked about, known before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flowfactory import ComponentConfig, RunError, Samples, UserError
from flowfactory.rewards import judges

if TYPE_CHECKING:
    from flowfactory import RunConfig

T = TypeVar("T")


def parse_samples(samples: Samples, parse: Callable[[str, Mapping[str, Any]], T]) -> list[T]:
    """What ``parse`` makes of the prompt and the metadata of each sample. RunError: of one it makes nothing."""
    try:
        return [parse(*both) for both in zip(samples.prompts, samples.metadata, strict=True)]
    except UserError as error:
        raise RunError(str(error)) from error


def check_videos(run: RunConfig, reward: ComponentConfig, name: str) -> None:
    """ValueError where what ``reward``, called ``name``, judges is not drawn in two frames or more."""
    trains, evaluates = judges(run, reward)
    drawn = run.sampling.canvas.frames if trains else None
    evaluated = run.evaluation.canvas(run.sampling).frames if evaluates else None
    for key, frames in (("sampling.frames", drawn), ("evaluation.frames", evaluated)):
        if frames == 1:
            raise ValueError(f"reward {name} looks at videos, and this run draws pictures; set {key} to 2 or more")
