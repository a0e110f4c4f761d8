from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from reward_cases import PROMPTS, pictures, refusal, samples
from tiny_clip import clip_folder, embeddings
from torch import Tensor

from flowfactory import UserError
from flowfactory.testing import check_reward
from flowfactory_rewards.aesthetic import AestheticConfig

FILE = "aesthetic-model.pth"
WIDTHS = (24, 16, 12, 8, 6, 1)


def predictor(numbers: tuple[int, ...] = (0, 2, 4, 6, 7)) -> dict[str, Tensor]:
    """Weights under the names that LAION's predictor has."""
    source = torch.Generator().manual_seed(1)
    found = {}
    for number, into, out in zip(numbers, WIDTHS[:-1], WIDTHS[1:], strict=True):
        found[f"layers.{number}.weight"] = torch.randn(out, into, generator=source) * 0.6
        found[f"layers.{number}.bias"] = torch.randn(out, generator=source)
    return found


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = clip_folder(tmp_path_factory.mktemp("aesthetic"))
    torch.save(predictor(), place / FILE)
    return place


def test_the_score_is_the_predictors_of_the_normalised_embedding(folder: Path) -> None:
    media = pictures(40, 32)
    config = AestheticConfig(path=str(folder), predictor=str(folder))
    scores = check_reward(config, samples(media))["under test"]
    expected, _ = embeddings(folder, media, PROMPTS)
    for number in (0, 2, 4, 6, 7):
        weights = predictor()
        expected = expected @ weights[f"layers.{number}.weight"].double().T + weights[f"layers.{number}.bias"].double()
    assert scores.tolist() == pytest.approx(expected[:, 0].tolist(), abs=5e-6)
    assert expected.std() > 0.01


def test_the_prompt_makes_no_difference(folder: Path) -> None:
    config = AestheticConfig(path=str(folder), predictor=str(folder))
    others = check_reward(config, samples(pictures(), ("", "a", "blurry")))["under test"]
    assert others.equal(check_reward(config, samples(pictures()))["under test"])


def test_a_predictor_with_activations_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(predictor((0, 3, 6, 9, 11)), tmp_path / "relu.pth")
    reward = AestheticConfig(path=str(folder), predictor=str(tmp_path), file="relu.pth").build("looks")
    with pytest.raises(UserError, match=r"relu\.pth in .* has the layers \[0, 3, 6, 9, 11\]"):
        reward.prepare_reward(torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"more.weight": torch.zeros(2)}, r"holds a weight that this reward does not know, the first more\.weight"),
        ({"layers.0.weight": torch.zeros(16, 5)}, r"layer 0 is \[16, 5\] with a bias \[16\], and 24 features come to it"),
        ({"layers.2.bias": torch.zeros(5)}, r"layer 2 is \[12, 16\] with a bias \[5\]"),
    ],
)
def test_a_predictor_with_other_weights_is_one_line(folder: Path, tmp_path: Path, change: dict[str, Tensor], told: str) -> None:
    torch.save(predictor() | change, tmp_path / "other.pth")
    config = AestheticConfig(path=str(folder), predictor=str(tmp_path), file="other.pth")
    assert re.search(rf"^other\.pth in .*{told}", refusal(config))


@pytest.mark.weights
def test_released_weights_rate_as_the_scorer_of_ddpo() -> None:
    """The arithmetic of ddpo-pytorch's AestheticScorer; noise is rated below 6 and above 1."""
    from huggingface_hub import hf_hub_download
    from transformers import CLIPModel, CLIPProcessor

    path = os.environ.get("FLOWFACTORY_CLIP", "openai/clip-vit-large-patch14")
    media = pictures(224, 224)
    scores = check_reward(AestheticConfig.model_validate({"path": path}), samples(media), tolerance=1e-3)["under test"]
    weights = torch.load(hf_hub_download("trl-lib/ddpo-aesthetic-predictor", FILE), weights_only=True)
    processor = CLIPProcessor.from_pretrained(path, backend="pil")
    with torch.no_grad():
        given = processor(images=list((media * 255).round().byte()), return_tensors="pt")
        states = CLIPModel.from_pretrained(path).eval().get_image_features(**given).pooler_output
        states = states / states.norm(dim=-1, keepdim=True)
        for number in (0, 2, 4, 6, 7):
            states = states @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
    assert scores.tolist() == pytest.approx(states[:, 0].tolist(), abs=1e-2)
    assert ((scores > 1) & (scores < 6)).all()
