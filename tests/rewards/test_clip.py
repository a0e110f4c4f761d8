from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from reward_cases import PROMPTS, pictures, samples
from tiny_clip import clip_folder, embeddings

from flowfactory.testing import check_reward
from flowfactory_rewards.clip import ClipConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (16, 16)])
def test_the_score_is_the_cosine_of_the_embeddings(folder: Path, height: int, width: int) -> None:
    media = pictures(height, width)
    scores = check_reward(ClipConfig(path=str(folder)), samples(media))["under test"]
    looked, told = embeddings(folder, media, PROMPTS)
    expected = (looked * told).sum(1)
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=2e-6)
    assert expected.std() > 0.01


def test_a_longer_prompt_beside_it_changes_no_score(folder: Path) -> None:
    prompts = ("cat", "a photo of " * 9)  # longer than there are places for
    config = ClipConfig(path=str(folder))
    media = pictures(count=1).expand(2, -1, -1, -1)
    together = check_reward(config, samples(media, prompts), tolerance=1e-6)["under test"]
    alone = check_reward(config, samples(media[:1], prompts[:1]))["under test"]
    assert together[0].item() == pytest.approx(alone.item(), abs=1e-6)
    assert together[0].item() != pytest.approx(together[1].item(), abs=1e-3)


def test_prompts_that_repeat_go_with_their_pictures(folder: Path) -> None:
    media, prompts = pictures(count=4), ("cat", "a red circle", "cat", "a photo")
    scores = check_reward(ClipConfig(path=str(folder)), samples(media, prompts))["under test"]
    looked, told = embeddings(folder, media, prompts)
    assert scores.tolist() == pytest.approx((looked * told).sum(1).tolist(), abs=2e-6)


@pytest.mark.weights
def test_released_weights_prefer_the_colour_that_is_there() -> None:
    plain = torch.zeros(2, 3, 64, 64)
    plain[0, 0] = 1
    plain[1, 2] = 1
    config = ClipConfig.model_validate({"path": os.environ.get("FLOWFACTORY_CLIP", "openai/clip-vit-large-patch14")})
    right = check_reward(config, samples(plain, ("a red square", "a blue square")))["under test"]
    wrong = check_reward(config, samples(plain, ("a blue square", "a red square")))["under test"]
    assert (right > wrong).all()
    assert (right > 0.15).all()
    assert (right < 0.4).all()
