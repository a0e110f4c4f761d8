import pytest
import torch
from flowfactory import Samples
from flowfactory.testing import check_reward
from pydantic import ValidationError

from flowfactory_newname.reward import NewNameConfig


def samples(media: torch.Tensor) -> Samples:
    """Four pictures, two of each prompt."""
    prompts = ("a cat", "a cat", "a dog", "a dog")
    return Samples(media, prompts, groups=torch.tensor([0, 0, 1, 1]), metadata=({},) * 4)


def test_it_keeps_the_contract() -> None:
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # pointwise=False for a reward that compares pictures
    check_reward(NewNameConfig(), samples(pictures))


def test_scores_are_those_worked_out_by_hand() -> None:
    brightness = torch.tensor([0.0, 0.25, 0.75, 1.0])
    pictures = brightness[:, None, None, None].expand(4, 3, 8, 8)
    scores = check_reward(NewNameConfig(target=0.75), samples(pictures))
    assert scores["under test"].tolist() == [-0.75, -0.5, 0.0, -0.25]


def test_a_target_that_no_picture_has_is_refused() -> None:
    with pytest.raises(ValidationError):
        NewNameConfig(target=2)
