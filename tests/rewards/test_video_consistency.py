from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_detectors
import torch
from reward_cases import randomize_weights
from reward_run import config_with_reward
from torch.nn import functional
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from flowfactory import RunError, Samples, UserError
from flowfactory.testing import check_reward
from flowfactory_rewards.video_consistency import VideoConsistencyConfig, score_consistency

SIZE = 32
TRUNK = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def dino(folder: Path) -> Path:
    """As DINO's checkpoint is: without the pooler that a ViT has."""
    randomize_weights(ViTModel(ViTConfig(**TRUNK, image_size=SIZE, patch_size=8), add_pooling_layer=False)).save_pretrained(
        folder
    )
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=SIZE, patch_size=8
    )
    randomize_weights(Dinov2Model(config)).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {"dino": dino, "dinov2": dinov2, "clip": tiny_detectors.clip}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vision")
    return {kind: make(folder / kind) for kind, make in MAKERS.items()}


def clips(count: int = 2, frames: int = 5, channels: int = 3) -> torch.Tensor:
    """Coarse noise [count, frames, channels, 32, 32], each of its own brightness: this size is seen without resizing."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(count * frames, channels, 4, 4, generator=source)
    return functional.interpolate(coarse, (SIZE, SIZE)).unflatten(0, (count, frames))


def samples(media: torch.Tensor) -> Samples:
    count = len(media)
    return Samples(media, ("a",) * count, torch.arange(count), ({},) * count)


def vbench(embedded: torch.Tensor) -> float:
    """VBench's subject consistency of embeddings [F, D], frame after frame as it goes."""
    total = 0.0
    for i in range(1, len(embedded)):
        before = max(0.0, float(functional.cosine_similarity(embedded[i - 1], embedded[i], dim=0)))
        first = max(0.0, float(functional.cosine_similarity(embedded[0], embedded[i], dim=0)))
        total += (before + first) / 2
    return total / (len(embedded) - 1)


def seen(kind: str, folder: Path, frames: torch.Tensor) -> torch.Tensor:
    """Embeddings [F, D], float64, of frames [F, 3, 32, 32]."""
    pictures = (frames * 255).round().double() / 255
    processor = {"dino": ViTImageProcessorPil, "dinov2": BitImageProcessorPil, "clip": CLIPImageProcessorPil}[kind]
    settings = processor.from_pretrained(folder)
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (settings.image_mean, settings.image_std))
    values = (pictures - mean) / std
    with torch.no_grad():
        if kind == "clip":
            return CLIPModel.from_pretrained(folder).double().get_image_features(values).pooler_output
        model = (
            ViTModel.from_pretrained(folder, add_pooling_layer=False) if kind == "dino" else Dinov2Model.from_pretrained(folder)
        )
        return model.double()(values).last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_score_is_vbench_s_of_the_model_s_embeddings(kind: str, models: dict[str, Path]) -> None:
    media = clips()
    scores = check_reward(VideoConsistencyConfig(path=str(models[kind]), batch_size=3), samples(media))["under test"]
    expected = [vbench(seen(kind, models[kind], clip)) for clip in media]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_opposite_frames_are_no_worse_than_unrelated_ones() -> None:
    a, b, c = (torch.tensor(values) for values in ([1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]))
    embedded = torch.stack([torch.stack([a, a, a]), torch.stack([a, b, a]), torch.stack([a, c, a]), torch.stack([a, c, b])])
    assert score_consistency(embedded).tolist() == pytest.approx(
        [1, (0 + 0 + 0 + 1) / 4, (0.6 + 0.6 + 0.6 + 1) / 4, (0.6 + 0.6) / 4]
    )
    assert score_consistency(embedded).tolist() == pytest.approx([vbench(clip) for clip in embedded])


def test_a_still_scores_one_and_a_cut_less(models: dict[str, Path]) -> None:
    one, other = clips(1, 2)[0]
    media = torch.stack([torch.stack([one] * 4), torch.stack([one, one, other, other])])
    still, cut = check_reward(VideoConsistencyConfig(path=str(models["dino"])), samples(media))["under test"].tolist()
    assert still == pytest.approx(1, abs=1e-5)
    assert cut < 0.99


def test_frames_that_are_not_looked_at_do_not_count(models: dict[str, Path]) -> None:
    media = clips(2, 5)
    few = check_reward(VideoConsistencyConfig(path=str(models["dino"]), frames=3), samples(media))["under test"]
    fewer = check_reward(VideoConsistencyConfig(path=str(models["dino"])), samples(media[:, [0, 2, 4]]))["under test"]
    assert torch.allclose(few, fewer)


def test_one_channel_is_seen_as_grey(models: dict[str, Path]) -> None:
    config, media = VideoConsistencyConfig(path=str(models["dino"])), clips(channels=1)
    one, three = (check_reward(config, samples(given))["under test"] for given in (media, media.expand(-1, -1, 3, -1, -1)))
    assert torch.equal(one, three)


def test_a_model_without_an_embedding_of_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="type 'bert'; this reward sees through vit, dinov2"):
        VideoConsistencyConfig(path=str(tmp_path)).build("same").prepare_reward(torch.device("cpu"))


def test_weights_that_are_missing_are_not_made_up(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(models["dinov2"] / "model.safetensors")
    state.pop("layernorm.weight")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((models["dinov2"] / name).read_bytes())
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks a weight .*Dinov2Model.*, the first layernorm\.weight;"):
        VideoConsistencyConfig(path=str(tmp_path)).build("same").prepare_reward(torch.device("cpu"))


def test_labels_share_the_weights(models: dict[str, Path]) -> None:
    one, two = (VideoConsistencyConfig(path=str(models["dino"]), frames=frames).build("same") for frames in (2, 3))
    for reward in (one, two):
        reward.prepare_reward(torch.device("cpu"))
    assert one._vision is two._vision


def test_pictures_are_refused_before_and_while_drawing(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"video-consistency looks at videos, and this run draws pictures; set sampling.frames"):
        config_with_reward(tmp_path, {"name": "video-consistency"})
    assert config_with_reward(tmp_path, {"name": "video-consistency"}, frames=5)
    for media in (torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 3, 16, 16)):
        with pytest.raises(RunError, match="consistency is between frames"):
            VideoConsistencyConfig(path=str(models["dino"])).build("same").compute_reward(samples(media))


@pytest.mark.weights
def test_dino_tells_a_still_from_a_cut() -> None:
    """No number is published for a video at hand: a still must score 1, and one with a cut to noise clearly less."""
    source = torch.Generator().manual_seed(0)
    one, other = torch.full((3, 224, 224), 0.5), torch.rand(3, 224, 224, generator=source)
    media = torch.stack([torch.stack([one] * 3), torch.stack([one, other, one])])
    still, cut = check_reward(VideoConsistencyConfig(), samples(media))["under test"].tolist()
    assert still == pytest.approx(1, abs=1e-4)
    assert cut < 0.9
