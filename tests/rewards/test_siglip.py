from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_cases import PROMPTS, find_alive, normalize_image, pictures, randomize_weights, refusal, samples, to_pil_image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from flowfactory import UserError
from flowfactory.testing import check_reward
from flowfactory_rewards import siglip

SIZE, LENGTH = 16, 10
WORDS = ("<pad>", "<eos>", "<unk>", "a", "photo", "of", "red", "blue", "circle", "square", "cat")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer that knows capitals, and that pads on the wrong side when it is not told."""
    place = tmp_path_factory.mktemp("siglip")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.save_pretrained(place)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH, "projection_size": 32},
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
    )
    model = randomize_weights(SiglipModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(1.2)
        model.logit_bias.fill_(-0.7)
    model.save_pretrained(place)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(place)
    return place


def logits(folder: Path, media: Tensor, texts: tuple[str, ...]) -> Tensor:
    """Worked out from the towers, each prompt by itself: [n], float64."""
    model = SiglipModel.from_pretrained(folder).double()
    squeezed = [to_pil_image(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in media]
    seen = torch.stack([normalize_image(picture, (0.5,) * 3, (0.5,) * 3) for picture in squeezed])
    with torch.no_grad():
        looked = functional.normalize(model.vision_model(pixel_values=seen).pooler_output, dim=1)
        rows = []
        for text in texts:
            ids = [WORDS.index(word) for word in text.split()] + [1]
            states = model.text_model(input_ids=torch.tensor([ids + [0] * (LENGTH - len(ids))])).last_hidden_state
            rows.append(functional.normalize(model.text_model.head(states[:, -1]), dim=1)[0])
        return torch.exp(torch.tensor(1.2).double()) * (looked * torch.stack(rows)).sum(1) - 0.7


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_the_logit_is_scale_times_cosine_plus_bias(folder: Path, height: int, width: int) -> None:
    media = pictures(height, width)
    scores = check_reward(siglip.SiglipConfig(path=str(folder)), samples(media))["under test"]
    expected = logits(folder, media, PROMPTS)
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=5e-6)
    assert expected.std() > 0.01


def test_the_probability_is_its_sigmoid(folder: Path) -> None:
    media = pictures()
    scores = check_reward(siglip.SiglipConfig(path=str(folder), score="probability"), samples(media))["under test"]
    assert scores.tolist() == pytest.approx(logits(folder, media, PROMPTS).sigmoid().tolist(), abs=2e-6)


def test_capitals_make_no_difference(folder: Path) -> None:
    config = siglip.SiglipConfig(path=str(folder))
    shouted = check_reward(config, samples(pictures(), [prompt.upper() for prompt in PROMPTS]))["under test"]
    assert shouted.equal(check_reward(config, samples(pictures()))["under test"])


def test_logit_and_probability_share_one_model(folder: Path) -> None:
    before = len(find_alive(SiglipModel))
    rewards = [siglip.SiglipConfig(path=str(folder), score=score).build(score) for score in ("logit", "probability")]
    for reward in rewards:
        reward.prepare_reward(torch.device("cpu"))
    assert len(find_alive(SiglipModel)) == before + 1


def test_a_model_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.json").read_text().replace('"model_type": "siglip"', '"model_type": "siglip2"')
    (tmp_path / "config.json").write_text(text)
    reward = siglip.SiglipConfig(path=str(tmp_path)).build("pair")
    with pytest.raises(UserError, match="holds a model of type 'siglip2'; this reward reads 'siglip'"):
        reward.prepare_reward(torch.device("cpu"))


def test_another_tokenizer_or_none_is_one_line(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "siglip"
    shutil.copytree(folder, place)
    words = json.loads((place / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {f"word{i}": len(WORDS) + i for i in range(5)}
    (place / "tokenizer.json").write_text(json.dumps(words))
    config = siglip.SiglipConfig(path=str(place))
    assert re.search(r"^the tokenizer in .* has ids up to 15, and its encoder has 11 embeddings; get the tok", refusal(config))
    (place / "tokenizer.json").unlink()
    assert re.search(r"^the tokenizer in .* has no [\w.]+ in ", refusal(config))


@pytest.mark.weights
@pytest.mark.parametrize("path", ["google/siglip-base-patch16-224", "google/siglip2-base-patch16-224"])
def test_released_weights_score_as_the_documented_pipeline(path: str) -> None:
    from transformers import pipeline

    path = os.environ.get("FLOWFACTORY_SIGLIP", path)
    media = pictures(224, 224)
    config = siglip.SiglipConfig.model_validate({"path": path, "score": "probability"})
    scores = check_reward(config, samples(media), tolerance=1e-4)["under test"]
    classify = pipeline("zero-shot-image-classification", model=path)
    for picture, prompt, score in zip(media, PROMPTS, scores, strict=True):
        told = classify(to_pil_image(picture), candidate_labels=[prompt], hypothesis_template="{}")
        assert float(score) == pytest.approx(told[0]["score"], abs=1e-3)
