from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from damaged import copy_of
from PIL import Image
from reward_cases import PROMPTS, pictures, samples
from tiny_clip import clip_folder, embeddings

from flowfactory.rewards import to_pixels
from flowfactory.testing import check_reward
from flowfactory_rewards.dual_encoder import CLIP_H, find_processor
from flowfactory_rewards.pickscore import PickScoreConfig

PROCESSORS = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("pickscore"))


def test_the_score_is_the_cosine_times_the_learned_scale(folder: Path) -> None:
    media = pictures()
    scores = check_reward(PickScoreConfig(path=str(folder)), samples(media))["under test"]
    looked, told = embeddings(folder, media, PROMPTS)
    expected = math.exp(1.5) * (looked * told).sum(1)
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=5e-6)
    assert expected.std() > 0.05


def test_the_processor_may_be_elsewhere(folder: Path, tmp_path: Path) -> None:
    weights, processor = tmp_path / "weights", tmp_path / "processor"
    shutil.copytree(folder, weights)
    processor.mkdir()
    for name in PROCESSORS:
        shutil.move(weights / name, processor / name)
    media = pictures()
    apart = PickScoreConfig(path=str(weights), processor=str(processor))
    expected = check_reward(PickScoreConfig(path=str(folder)), samples(media))["under test"]
    assert check_reward(apart, samples(media))["under test"].equal(expected)


def test_without_both_they_are_those_of_the_clip_that_was_tuned(folder: Path, tmp_path: Path) -> None:
    tuned = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert find_processor(str(folder), CLIP_H) == str(folder)
    for lost in (PROCESSORS[:1], PROCESSORS[1:2], PROCESSORS):
        copy = copy_of(folder, tmp_path / "-".join(lost))
        for name in lost:
            (copy / name).unlink()
        assert find_processor(str(copy), CLIP_H) == tuned


@pytest.mark.weights
def test_released_weights_score_as_the_documented_program() -> None:
    """The program in PickScore's README, on the pictures of this test."""
    from transformers import AutoModel, AutoProcessor

    path = os.environ.get("FLOWFACTORY_PICKSCORE", "yuvalkirstain/PickScore_v1")
    media = pictures(256, 256)
    config = PickScoreConfig.model_validate({"path": path})
    scores = check_reward(config, samples(media), tolerance=1e-3)["under test"]
    processor = AutoProcessor.from_pretrained("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", backend="pil")
    model = AutoModel.from_pretrained(path).eval()
    given = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    files = [Image.fromarray(picture) for picture in to_pixels(media)]
    with torch.no_grad():
        looked = model.get_image_features(**processor(images=files, return_tensors="pt")).pooler_output
        told = model.get_text_features(**processor(text=list(PROMPTS), **given)).pooler_output
        looked, told = looked / looked.norm(dim=-1, keepdim=True), told / told.norm(dim=-1, keepdim=True)
        expected = model.logit_scale.exp() * (looked * told).sum(1)
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert 10 < scores.mean() < 30
