from __future__ import annotations

from pathlib import Path

import pytest
import tiny_detectors
import torch
from reward_cases import pictures, samples
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from flowfactory.testing import check_reward
from flowfactory_rewards.image_quality import ImageQualityConfig


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_detectors.clip(tmp_path_factory.mktemp("quality"))


def smoothed(media: torch.Tensor, times: int) -> torch.Tensor:
    """``media`` [n, 3, H, W] with each pixel the mean of 3 x 3, so many times over."""
    for _ in range(times):
        media = functional.avg_pool2d(functional.pad(media, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return media


def sharp(count: int = 3) -> torch.Tensor:
    """Blocks of colours with hard edges [count, 3, 96, 96]."""
    coarse = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, scale_factor=8)


@pytest.mark.parametrize(
    ("words", "texts"),
    [("quality", ("Good photo.", "Bad photo.")), ("natural", ("Natural photo.", "Synthetic photo."))],
)
def test_clip_iqa_is_the_probability_of_the_good_text(words: str, texts: tuple[str, str], clip: Path) -> None:
    media = pictures()
    scores = check_reward(ImageQualityConfig(path=str(clip), words=words), samples(media))["under test"]
    model = CLIPModel.from_pretrained(clip).double().eval()
    levels = [(picture * 255).round().byte().permute(1, 2, 0).numpy() for picture in media]
    values = CLIPImageProcessorPil.from_pretrained(clip)(levels, return_tensors="pt").pixel_values.double()
    with torch.no_grad():
        seen = functional.normalize(model.get_image_features(values).pooler_output, dim=1)
        told = [
            functional.normalize(model.get_text_features(**tokens).pooler_output[0], dim=0)
            for tokens in (CLIPTokenizer.from_pretrained(clip)(text, return_tensors="pt") for text in texts)
        ]
    good, bad = (100 * (seen @ text) for text in told)
    expected = 1 / (1 + torch.exp(bad - good))
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert expected.max() - expected.min() > 0.01


def test_clip_iqa_does_not_look_at_the_prompt(clip: Path) -> None:
    config = ImageQualityConfig(path=str(clip))
    one, other = (check_reward(config, samples(pictures(), prompts))["under test"] for prompts in (("a",) * 3, ("cat",) * 3))
    assert torch.equal(one, other)


def test_sharper_pictures_score_higher_by_blur() -> None:
    media = torch.cat([smoothed(sharp(1), times) for times in (0, 1, 4, 16)])
    scores = check_reward(ImageQualityConfig(metric="blur"), samples(media, ("a",) * 4))["under test"].tolist()
    assert scores == sorted(scores, reverse=True)
    assert 0 >= scores[0] > -0.35
    assert -0.65 > scores[-1] >= -1


def test_a_plain_picture_is_as_blurred_as_can_be() -> None:
    plain = torch.full((1, 3, 64, 64), 0.5)
    assert check_reward(ImageQualityConfig(metric="blur"), samples(plain, ("a",)))["under test"].item() == -1


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.1])
def test_noise_scores_minus_its_standard_deviation(deviation: float) -> None:
    """On a plain picture, where all that is estimated is noise."""
    noisy = 0.5 + deviation * torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    scores = check_reward(ImageQualityConfig(metric="noise"), samples(noisy.clamp(0, 1), ("a",) * 2))["under test"]
    assert scores.tolist() == pytest.approx([-deviation] * 2, rel=0.1)


def test_a_picture_without_noise_scores_nothing() -> None:
    plain = torch.full((1, 3, 64, 64), 0.5)
    assert check_reward(ImageQualityConfig(metric="noise"), samples(plain, ("a",)))["under test"].abs().item() < 1e-9


def test_a_video_scores_the_mean_of_its_frames() -> None:
    media = torch.cat([sharp(1), smoothed(sharp(1), 4)])
    one, other = check_reward(ImageQualityConfig(metric="blur"), samples(media, ("a",) * 2))["under test"].tolist()
    video = check_reward(ImageQualityConfig(metric="blur"), samples(media[None], ("a",)))["under test"].item()
    assert video == pytest.approx((one + other) / 2)


def test_one_channel_is_seen_as_grey() -> None:
    grey = sharp(2)[:, :1]
    for metric in ("blur", "noise"):
        one, three = (
            check_reward(ImageQualityConfig(metric=metric), samples(media, ("a",) * 2), varies=False)["under test"]
            for media in (grey, grey.expand(-1, 3, -1, -1))
        )
        assert torch.allclose(one, three)


@pytest.mark.weights
@pytest.mark.parametrize("words", ["quality", "sharpness"])
def test_clip_iqa_prefers_a_photograph_to_its_blurred_copy(words: str) -> None:
    """A photograph that scikit-image brings; no score of this CLIP is published for a picture at hand."""
    from skimage.data import astronaut

    photo = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 255
    media = torch.cat([photo, smoothed(photo, 60)])
    good, bad = check_reward(ImageQualityConfig(words=words), samples(media, ("a",) * 2))["under test"].tolist()
    assert good > bad
