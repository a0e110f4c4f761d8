"""The contract of a reward."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.scoring import Rewards
from flowfactory.types import Samples


def check_reward(
    config: ComponentConfig, samples: Samples, pointwise: bool = True, tolerance: float = 1e-5
) -> dict[str, Tensor]:
    """The scores of ``samples``, after the reward has kept its contract.

    It answers under its label with one finite score a sample, twice the same, leaves its input as it was, and, if
    ``pointwise``, scores a batch as it scores its samples one by one.
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
    if pointwise:
        for i in range(len(samples.prompts)):
            one = Samples(
                samples.media[i : i + 1],
                samples.prompts[i : i + 1],
                samples.groups[i : i + 1],
                samples.metadata[i : i + 1],
            )
            alone = rewards(one)["under test"]
            assert torch.allclose(alone, scores["under test"][i : i + 1], atol=tolerance), (
                f"sample {i} scores {float(alone):.6g} alone and {float(scores['under test'][i]):.6g} in a batch; "
                "pass pointwise=False if it is meant to look at the group"
            )
    return scores
