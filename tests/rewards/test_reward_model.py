from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_cases import find_alive, pictures, samples
from tiny_clip import clip_folder
from torch import Tensor
from transformers import CLIPModel

from flowfactory import UserError
from flowfactory.config.loading import validate
from flowfactory.config.schema import RunConfig
from flowfactory.config.yaml import dump
from flowfactory.testing import check_reward
from flowfactory.testing.two_parameter import settings
from flowfactory_rewards.clip import ClipConfig
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.weights import read_tensors

CPU = torch.device("cpu")
NAMES = ("aesthetic", "clip", "hpsv2", "hpsv3", "imagereward", "pickscore", "siglip")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("reward-model"))


def configured(folder: Path, rewards: dict[str, Any]) -> RunConfig:
    """As a user writes it: paths are relative to the file."""
    return validate(settings(folder, "grpo", rewards=rewards, sampling={"dynamics": "flow-sde"}), folder=folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_extra_is_one_line_that_installs_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path, {"judge": name})
    monkeypatch.setattr("flowfactory_rewards.dependencies.find_spec", lambda module: None)
    with pytest.raises(UserError) as told:
        config.rewards["judge"].build("judge")
    assert str(told.value) == f"reward {name!r} needs transformers: pip install 'flowfactory-rewards[{name}]'"


@pytest.mark.parametrize("name", NAMES)
def test_a_config_names_it_with_its_defaults_and_reads_no_weights(name: str, tmp_path: Path) -> None:
    config = configured(tmp_path, {"judge": {"name": name, "weight": 2, "batch_size": 3}})
    reward = config.rewards["judge"].build("judge")
    assert reward.label == "judge"  # type: ignore[attr-defined]
    assert f"name: {name}\n" in dump(config)
    fields = type(config.rewards["judge"]).model_fields
    assert all(field.description for label, field in fields.items() if label != "name")


def test_a_path_is_relative_to_the_config(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "weights")
    config = configured(tmp_path, {"judge": {"name": "clip", "path": "weights"}})
    assert getattr(config.rewards["judge"], "path") == str(tmp_path / "weights")  # noqa: B009 its type is known to the plugin


def test_labels_and_rewards_on_one_path_hold_one_model(folder: Path, tmp_path: Path) -> None:
    before = len(find_alive(CLIPModel))
    options = {"path": str(folder)}
    config = configured(
        tmp_path,
        {
            "first": {"name": "clip", **options},
            "second": {"name": "clip", "frames": 2, "weight": 0.5, **options},
            "third": {"name": "pickscore", **options},
        },
    )
    rewards = [config.rewards[label].build(label) for label in ("first", "second", "third")]
    assert len(find_alive(CLIPModel)) == before
    for reward in rewards:
        reward.prepare_reward(CPU)  # type: ignore[attr-defined]
    assert len(find_alive(CLIPModel)) == before + 1
    other = ClipConfig(path=str(folder), dtype="bf16").build("other")
    other.prepare_reward(CPU)
    assert len(find_alive(CLIPModel)) == before + 2


def test_a_video_scores_the_mean_of_its_frames(folder: Path) -> None:
    clips = pictures(count=10).reshape(2, 5, 3, 32, 32)
    config = ClipConfig(path=str(folder), frames=3, batch_size=2)
    prompts = ("a red circle", "cat")
    scores = check_reward(config, samples(clips, prompts))["under test"]
    for clip, prompt, score in zip(sample_frames(clips, 3), prompts, scores, strict=True):
        alone = check_reward(config, samples(clip, (prompt,) * 3))["under test"]
        assert float(score) == pytest.approx(float(alone.mean()), abs=1e-6)


def test_one_channel_is_seen_as_three(folder: Path) -> None:
    gray = pictures()[:, :1]
    config = ClipConfig(path=str(folder))
    three = check_reward(config, samples(gray.expand(-1, 3, -1, -1)))["under test"]
    assert check_reward(config, samples(gray))["under test"].equal(three)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_batch_size_changes_no_score(folder: Path, batch_size: int) -> None:
    expected = check_reward(ClipConfig(path=str(folder), batch_size=3), samples(pictures()))["under test"]
    scores = check_reward(ClipConfig(path=str(folder), batch_size=batch_size), samples(pictures()))["under test"]
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_what_the_model_computes_in(folder: Path, dtype: str) -> None:
    expected = check_reward(ClipConfig(path=str(folder)), samples(pictures()))["under test"]
    config = ClipConfig.model_validate({"path": str(folder), "dtype": dtype})
    scores = check_reward(config, samples(pictures()), tolerance=0.02)["under test"]
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=0.03)
    assert not scores.equal(expected)


def test_the_device_is_the_configs_where_it_names_one(folder: Path) -> None:
    reward = ClipConfig(path=str(folder), device="cpu").build("clip")
    reward.prepare_reward(torch.device("cuda"))  # which is not there
    assert reward.compute_reward(samples(pictures()))["clip"].device == CPU


def test_no_gradient_and_no_training_mode_is_left(folder: Path) -> None:
    reward = ClipConfig(path=str(folder)).build("clip")
    media = pictures().requires_grad_()
    scores: Tensor = reward.compute_reward(samples(media))["clip"]
    assert not scores.requires_grad
    models = find_alive(CLIPModel)
    assert models
    assert not any(model.training for model in models)
    assert not any(weight.requires_grad for model in models for weight in model.parameters())


def test_no_such_weights_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        ClipConfig(path=str(tmp_path / "empty")).build("clip").prepare_reward(CPU)


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**raw, "model_type": "siglip"}))
    with pytest.raises(UserError, match="holds a model of type 'siglip'; this reward reads 'clip'"):
        ClipConfig(path=str(tmp_path / "other")).build("clip").prepare_reward(CPU)


def test_a_weight_that_is_missing_is_no_random_one(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "less")
    weights = load_file(folder / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "less" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"less lacks a weight .*CLIPModel.*, the first visual_projection\.weight;"):
        ClipConfig(path=str(tmp_path / "less")).build("clip").prepare_reward(CPU)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_a_file_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(1), "more": Harmful()}, tmp_path / "file.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        read_tensors(str(tmp_path), "file.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no file .*weights\.pt; get it again, whole$"):
        read_tensors(str(tmp_path), "weights.pt")


def test_it_tells_what_its_weights_take_without_reading_them(folder: Path, tmp_path: Path) -> None:
    count = sum(weight.numel() for weight in CLIPModel.from_pretrained(folder).state_dict().values())
    rewards = {
        "a": {"name": "clip", "path": str(folder)},
        "b": {"name": "clip", "path": str(folder), "dtype": "bf16", "batch_size": 3},
        "c": {"name": "pickscore", "path": str(folder)},
        "sharp": {"name": "image-quality", "metric": "blur"},
        "far": {"name": "clip", "path": "nobody/has-this"},
    }
    config = configured(tmp_path, rewards)
    held = {label: reward.weight_bytes() for label, reward in config.rewards.items()}
    assert held["a"] is not None
    assert held["b"] is not None
    assert [*held["a"].values(), *held["b"].values()] == [4 * count, 2 * count]
    assert held["a"].keys() != held["b"].keys()
    assert held["sharp"] == {}
    assert held["far"] is None  # not on this machine
