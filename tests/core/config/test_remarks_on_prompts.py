"""What is said of prompts that are allowed and most likely not what somebody wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory.config.idle_keys import remarks_on_prompts
from flowfactory.config.schema import RunConfig
from flowfactory.types import Prompt


@pytest.mark.parametrize(
    ("heldout", "told"),
    [
        (("a fish", "a bird"), None),
        (("a bird", "a cat"), "1 of the 2 prompts are in prompts.train too"),
        (("a dog", "a cat", "a cat"), "all prompts are in prompts.train too"),
    ],
)
def test_prompts_that_are_held_out_and_trained_on_are_told(
    heldout: tuple[str, ...], told: str | None, load: Callable[..., RunConfig]
) -> None:
    train = [Prompt("a cat"), Prompt("a dog", 1)]
    found = [*remarks_on_prompts(load(), train, [Prompt(text, i) for i, text in enumerate(heldout)])]
    assert len(found) == (told is not None)
    assert all(told and told in sentence for sentence in found)


def test_the_same_words_with_other_pictures_are_other_prompts(load: Callable[..., RunConfig]) -> None:
    one, other = (Prompt("make it blue", images=(Path(name),)) for name in ("a.png", "b.png"))
    assert not [*remarks_on_prompts(load(), [one], [other])]
    assert [*remarks_on_prompts(load(), [one, other], [other])]
