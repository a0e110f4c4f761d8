"""What a reward will be asked about, known before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flowfactory import ComponentConfig, Prompt, RunError, Samples, UserError, rewards

if TYPE_CHECKING:
    from flowfactory import RunConfig

T = TypeVar("T")


def check_prompts(run: RunConfig, reward: ComponentConfig, read: Callable[[Prompt], object]) -> None:
    """ValueError, naming the prompt, where ``read`` finds in a prompt that ``reward`` judges nothing that it can judge by.

    ``read`` says so by UserError. A prompt that lists its ``rewards`` without this one is passed over, and so is any that lists
    some where this one stands within another.
    """
    trains, evaluates = _judges(run, reward)
    labels = {label for rewards in (run.rewards, run.evaluation.rewards) for label, r in rewards.items() if r == reward}
    for path in filter(None, (run.prompts.train if trains else None, run.prompts.heldout if evaluates else None)):
        for prompt in rewards.read_prompts(path):
            listed = prompt.metadata.get("rewards")
            if listed is not None and not (isinstance(listed, list) and labels & {*map(str, listed)}):
                continue
            try:
                read(prompt)
            except UserError as error:
                raise ValueError(f"prompt {prompt.index + 1} of {path.name}: {error}") from error


def parse_samples(samples: Samples, parse: Callable[[str, Mapping[str, Any]], T]) -> list[T]:
    """What ``parse`` makes of the prompt and the metadata of each sample. RunError: of one it makes nothing."""
    try:
        return [parse(*both) for both in zip(samples.prompts, samples.metadata, strict=True)]
    except UserError as error:
        raise RunError(str(error)) from error


def _judges(run: RunConfig, reward: ComponentConfig) -> tuple[bool, bool]:
    """Whether ``reward`` judges what is trained on, and what is held out; one within another is taken to judge both."""
    trains, evaluates = (reward in rewards.values() for rewards in (run.rewards, run.evaluation.rewards))
    return trains or not evaluates, evaluates or not (trains and run.evaluation.rewards)


def check_videos(run: RunConfig, reward: ComponentConfig, name: str) -> None:
    """ValueError where what ``reward``, called ``name``, judges is not drawn in two frames or more."""
    trains, evaluates = _judges(run, reward)
    drawn = run.sampling.canvas.frames if trains else None
    evaluated = run.evaluation.canvas(run.sampling).frames if evaluates else None
    for key, frames in (("sampling.frames", drawn), ("evaluation.frames", evaluated)):
        if frames == 1:
            raise ValueError(f"reward {name} looks at videos, and this run draws pictures; set {key} to 2 or more")
