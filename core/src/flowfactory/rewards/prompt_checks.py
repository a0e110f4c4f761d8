"""What a reward will be asked about, known before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable

from flowfactory.config.component import ComponentConfig
from flowfactory.config.schema import RunConfig
from flowfactory.data.prompts import read_source
from flowfactory.errors import UserError
from flowfactory.types import Prompt


def check_prompts(run: RunConfig, reward: ComponentConfig, read: Callable[[Prompt], object]) -> None:
    """ValueError, naming the prompt, where ``read`` finds in a prompt that ``reward`` judges nothing that it can judge by.

    ``read`` says so by UserError or ValueError. A prompt that lists its ``rewards`` without this one is passed over, and so is
    any that lists some where this one stands within another.
    """
    trains, evaluates = judges(run, reward)
    labels = {label for rewards in (run.rewards, run.evaluation.rewards) for label, r in rewards.items() if r == reward}
    for source in (*(run.prompts.trained if trains else ()), *(run.prompts.held_out if evaluates else ())):
        for prompt in read_source(source):
            listed = prompt.metadata.get("rewards")
            if listed is not None and not (isinstance(listed, list) and labels & {*map(str, listed)}):
                continue
            try:
                read(prompt)
            except (UserError, ValueError) as error:
                raise ValueError(f"prompt {prompt.index + 1} of {source.file.name}: {error}") from error


def judges(run: RunConfig, reward: ComponentConfig) -> tuple[bool, bool]:
    """Whether ``reward`` judges what is trained on, and what is held out; one within another is taken to judge both."""
    trains, evaluates = (reward in rewards.values() for rewards in (run.rewards, run.evaluation.rewards))
    return trains or not evaluates, evaluates or not (trains and run.evaluation.rewards)
