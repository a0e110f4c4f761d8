"""The contract of a reward."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.scoring import Rewards
from flowfactory.types import Samples

OTHER_PROMPTS = ("a red cat", "a big dog")
"""What stands in for the prompt where all samples have one."""


def check_reward(
    config: ComponentConfig, samples: Samples, pointwise: bool = True, tolerance: float = 1e-5, varies: bool = True
) -> dict[str, Tensor]:
    """The scores of ``samples``, after the reward has kept its contract.

    It answers under its label with one finite score a sample, twice the same, leaves its input as it was, and, if
    ``pointwise``, scores a batch as it scores its samples one by one. Where it ``varies``, samples of which no two are the same
    do not all score the same, from which nothing could be learned. A reward with ``reads_prompts = True`` scores the same
    pictures otherwise where each has another of the prompts.
    """
    before = samples.media.clone()
    try:
        rewards = Rewards({"under test": config})
        scores = rewards(samples)
    except (RunError, UserError) as error:
        raise AssertionError(str(error)) from error
    assert torch.equal(samples.media, before), "the reward changed the pictures it was given"
    again = rewards(samples)
    assert torch.equal(scores["under test"], again["under test"]), "the reward gives other scores for the same pictures"
    if varies:
        _check_varies(samples, scores["under test"])
    if pointwise:
        _check_one_by_one(rewards, samples, scores["under test"], tolerance)
    if getattr(config.build("under test"), "reads_prompts", False):
        _check_reads_prompts(rewards, samples, scores["under test"])
    return scores


def _check_varies(samples: Samples, scores: Tensor) -> None:
    alike = any(torch.equal(one, other) for i, one in enumerate(samples.media) for other in samples.media[:i])
    if len(scores) == 1 or alike:
        return
    assert not torch.equal(scores, scores[:1].expand_as(scores)), (
        f"all {len(scores)} samples score {float(scores[0]):.6g}, and no two are the same; give samples that the reward tells "
        "apart, or pass varies=False if it is not meant to"
    )


def _check_one_by_one(rewards: Rewards, samples: Samples, scores: Tensor, tolerance: float) -> None:
    for i, score in enumerate(scores):
        alone = rewards(samples.rows([i]))["under test"]
        assert torch.allclose(alone, score, atol=tolerance), (
            f"sample {i} scores {float(alone):.6g} alone and {float(score):.6g} in a batch; "
            "pass pointwise=False if it is meant to look at the group"
        )


def _check_reads_prompts(rewards: Rewards, samples: Samples, scores: Tensor) -> None:
    """Each sample's prompt becomes the next one of those in ``samples``, so that groups still have one prompt."""
    first = {prompt: i for i, prompt in reversed(list(enumerate(samples.prompts)))}
    known = sorted(first, key=first.__getitem__)
    if len(known) > 1:
        other = dict(zip(known, known[1:] + known[:1], strict=True))
        rows = [first[other[prompt]] for prompt in samples.prompts]
        swapped = replace(samples.rows(rows), media=samples.media, groups=samples.groups)
    else:
        text = next(text for text in OTHER_PROMPTS if text != known[0])
        sources = tuple(replace(source, text=text) for source in samples.sources)
        swapped = replace(samples, prompts=(text,) * len(samples.prompts), sources=sources)
    assert not torch.equal(rewards(swapped)["under test"], scores), (
        f"the same pictures score the same for {swapped.prompts[0]!r} as for {samples.prompts[0]!r}, and the reward says "
        "reads_prompts = True; see whether its tokenizer and its text encoder have their files"
    )
