import pytest
import torch

from flowfactory import Prompt, Samples
from flowfactory_tiny.color_share import ColorShareConfig
from flowfactory_tiny.scene_reward import read_caption
from flowfactory_tiny.scenes import BACKGROUNDS, COLORS


def score(picture, prompt):
    reward = ColorShareConfig().build("share")
    return float(reward.compute_reward(Samples(picture[None], (prompt,), torch.zeros(1, dtype=torch.int64), ({},)))["share"])


def test_it_is_the_share_of_pixels_of_the_colours_that_are_named():
    picture = torch.tensor(BACKGROUNDS["gray"])[:, None, None].repeat(1, 4, 4)
    picture[:, :2] = torch.tensor(COLORS["red"])[:, None, None]
    picture[:, 2, :2] = torch.tensor(COLORS["blue"])[:, None] + 0.02
    assert score(picture, "a red circle on gray") == 8 / 16
    assert score(picture, "a red circle above a blue ring on gray") == 10 / 16
    assert score(picture, "three green rings on gray") == 0


def test_a_picture_of_one_colour_fools_it():
    assert score(torch.tensor(COLORS["cyan"])[:, None, None].expand(3, 8, 8), "a small cyan cross on black") == 1


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="reward color-share cannot judge it: not a caption"):
        read_caption("color-share", Prompt("a cat"))
