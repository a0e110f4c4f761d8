from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import ComponentConfig, Prompt, Samples, flow, hookimpl
from flowfactory.testing import check_reward

MEDIA = torch.rand(4, 3, 4, 4, generator=flow.generator("media"))
SAMPLES = Samples(MEDIA, ("a cat", "a cat", "a dog", "two dogs"), torch.tensor([0, 0, 1, 2]), ({"n": 1},) * 3 + ({"n": 2},))


class Read(ComponentConfig):
    """A reward that scores as it is told to, and says that it reads prompts."""

    score: Any
    reads: bool = True

    def build(self, label: str) -> object:
        config = self

        class Reward:
            reads_prompts = config.reads

            @hookimpl
            def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
                return {label: config.score(samples)}

        return Reward()


def by(told: Callable[[str], float]) -> Callable[[Samples], Tensor]:
    return lambda samples: samples.media.mean((1, 2, 3)) + torch.tensor([told(prompt) for prompt in samples.prompts])


def test_a_reward_that_reads_prompts_is_let_through() -> None:
    found = check_reward(Read(score=by(len)), SAMPLES)["under test"]
    assert torch.allclose(found, by(len)(SAMPLES))
    check_reward(Read(score=by(len)), SAMPLES.rows([0, 1]))  # of one prompt: another stands in


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 1], [3]])
def test_one_score_for_all_prompts_is_refused(rows: list[int]) -> None:
    with pytest.raises(AssertionError, match=r"the same pictures score the same for .* reads_prompts = True; see whether"):
        check_reward(Read(score=by(lambda prompt: 1.0)), SAMPLES.rows(rows))


def test_a_reward_that_does_not_say_so_may_score_all_prompts_alike() -> None:
    check_reward(Read(score=by(lambda prompt: 1.0), reads=False), SAMPLES)


def test_prompts_are_exchanged_with_all_that_is_theirs_and_groups_keep_one() -> None:
    asked = []

    def score(samples: Samples) -> Tensor:
        asked.append(samples)
        return by(len)(samples)

    sources = tuple(
        Prompt(text, i, metadata, images=(Path(f"{text}.png"),))
        for i, (text, metadata) in enumerate(zip(SAMPLES.prompts, SAMPLES.metadata, strict=True))
    )
    check_reward(Read(score=score), replace(SAMPLES, sources=sources), pointwise=False)
    swapped = asked[-1]
    assert swapped.prompts == ("a dog", "a dog", "two dogs", "a cat")
    assert [each["n"] for each in swapped.metadata] == [1, 1, 2, 1]
    assert [source.images[0].stem for source in swapped.sources] == list(swapped.prompts)
    assert torch.equal(swapped.groups, SAMPLES.groups)
    assert torch.equal(swapped.media, MEDIA)
