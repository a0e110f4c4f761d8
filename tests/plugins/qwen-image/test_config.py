"""What a config may not say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import policy_gradient
import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from families import LORA, open_bench, train_two_iterations
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

import flowfactory_qwen_image
from flowfactory import Runtime, UserError
from flowfactory.config.loading import validate
from flowfactory.data.pictures import read_picture
from flowfactory.data.prompts import check_media, read_prompts
from flowfactory.runs.train import train
from flowfactory.testing.two_parameter import FILE
from flowfactory.training.prompts import prepare_prompts
from flowfactory_qwen_image.qwen_image import QwenImageConfig
from flowfactory_qwen_image.qwen_image_edit import QwenImageEditConfig

DATA = Path(flowfactory_qwen_image.__file__).parent / "data"
LEARN = Path(policy_gradient.__file__)


@pytest.fixture
def settings(checkpoint: Any, tmp_path: Path) -> dict[str, Any]:
    """A config as a mapping."""
    (tmp_path / "prompts.txt").write_text("a photo of a red circle\nblue cat\n")
    return {
        "model": {"name": "qwen-image", "path": str(checkpoint("image"))},
        "algorithm": "reinforce",
        "rewards": {"light": "bright"},
        "prompts": {"train": str(tmp_path / "prompts.txt")},
        "sampling": {"groups": 1, "group_size": 2, "size": [32, 32], "steps": 2, "batch_size": 2, "dynamics": "flow-sde"},
        "training": {"iterations": 1, "batch_size": 2},
        "output": {"dir": str(tmp_path / "run")},
        "plugins": [str(FILE), str(LEARN)],
        "device": "cpu",
    }


def edits(settings: dict[str, Any], checkpoint: Any, line: dict[str, Any]) -> dict[str, Any]:
    file = Path(settings["prompts"]["train"]).with_suffix(".jsonl")
    file.write_text(json.dumps(line) + "\n")
    model = {"name": "qwen-image-edit", "path": str(checkpoint("edit-2509")), "vae_area": 2048, "condition_area": 4096}
    return settings | {"model": model, "prompts": {"train": str(file)}}


@pytest.mark.parametrize("kind", ["image", "edit-2509"])
@pytest.mark.parametrize(("size", "nearest"), [([30, 32], [32, 32]), ([32, 57], [32, 64]), ([1, 32], [16, 32])])
def test_a_size_the_model_cannot_draw_is_refused_with_the_nearest(
    settings: dict[str, Any], checkpoint: Any, kind: str, size: list[int], nearest: list[int]
) -> None:
    if kind != "image":
        settings["model"] = {"name": "qwen-image-edit", "path": str(checkpoint(kind))}
    settings["sampling"]["size"] = size
    with pytest.raises(UserError, match=rf"sampling\.size {re.escape(str(size))}.*nearest is {re.escape(str(nearest))}$"):
        validate(settings)
    settings["sampling"]["size"] = nearest
    assert validate(settings)


def test_a_size_is_checked_before_the_checkpoint_is_there(settings: dict[str, Any]) -> None:
    settings["model"]["path"] = "Qwen/Qwen-Image"
    assert validate(settings)
    settings["sampling"]["size"] = [520, 512]
    with pytest.raises(UserError, match=r"sampling\.size \[520, 512\].*nearest is \[512, 512\]$"):
        validate(settings)


def test_frames_are_refused(settings: dict[str, Any]) -> None:
    settings["sampling"]["frames"] = 5
    with pytest.raises(UserError, match=r"sampling\.frames: this model draws pictures; leave it out"):
        validate(settings)


def test_one_step_is_too_few_for_a_schedule_that_ends_above_zero(config: Any, cache: Path) -> None:
    with pytest.raises(UserError, match=r"^steps 1: .* takes 2 steps or more$"):
        open_bench(config("image"), cache, ["cat"], (32, 32), steps=1).draw(1)
    assert open_bench(config("image-lightning"), cache, ["cat"], (32, 32), steps=1).draw(1).media.isfinite().all()


@pytest.mark.parametrize("section", ["sampling", "evaluation"])
def test_one_step_is_refused_when_the_config_is_read(settings: dict[str, Any], section: str) -> None:
    settings.setdefault(section, {})["steps"] = 1
    with pytest.raises(UserError, match=r"steps 1: .* takes 2 steps or more$"):
        validate(settings)


def test_an_edit_without_a_picture_is_refused(settings: dict[str, Any], checkpoint: Any) -> None:
    with pytest.raises(UserError, match=r"'a cat' brings 0 images, and model 'qwen-image-edit' takes 1 or more; write them"):
        train(validate(edits(settings, checkpoint, {"prompt": "a cat"})), say=lambda _: None)


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (8, 4096)])
def test_a_picture_too_thin_for_the_model_is_refused_before_weights_are_read(
    settings: dict[str, Any], checkpoint: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "thin.png")
    config = validate(edits(settings, checkpoint, {"prompt": "a cat", "image": "thin.png"}))
    with pytest.raises(UserError) as refused:
        prepare_prompts(config)
    told = f"{size[0]} x {size[1]} pixels are too thin for an area of 2048 pixels; crop it"
    assert str(refused.value) == f"picture {tmp_path / 'thin.png'}: {told}"


@pytest.mark.parametrize("area", [32 * 32, 384 * 384, 1024 * 1024])
@pytest.mark.parametrize("height", [1, 2, 5, 16, 100, 999, 1000])
def test_the_pictures_that_are_taken_are_those_that_can_be_read(height: int, area: int) -> None:
    config = QwenImageEditConfig.model_validate({"path": "a/b", "vae_area": area, "condition_area": area})
    wide, high = calculate_dimensions(area, 1000 / height)
    try:
        smart_resize(high, wide)
        readable = True
    except (ValueError, ZeroDivisionError):
        readable = False
    assert (config.picture_error(1000, height) is None) == readable == (config.picture_error(height, 1000) is None)


def test_pictures_for_a_model_of_texts_are_refused(
    settings: dict[str, Any], checkpoint: Any, pictures: dict[str, Path]
) -> None:
    other = edits(settings, checkpoint, {"prompt": "a cat", "image": str(pictures["wide"])})
    with pytest.raises(UserError, match=r"'a cat' brings 1 images, and model 'qwen-image' takes 0$"):
        train(validate(settings | {"prompts": other["prompts"]}), say=lambda _: None)


@pytest.mark.parametrize(("kind", "other"), [("image", "edit-2509"), ("edit-2509", "image")])
def test_a_checkpoint_of_another_pipeline_is_one_line(config: Any, checkpoint: Any, kind: str, other: str) -> None:
    model = config(kind, path=checkpoint(other)).build("model")
    with pytest.raises(UserError, match=r"^model\.path .* holds a QwenImage\w*; this model reads QwenImage\w*Pipeline$"):
        model.load(Runtime(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("name", ["texts.txt", "texts-heldout.txt", "edits.jsonl", "edits-heldout.jsonl"])
def test_the_prompts_of_the_examples_bring_what_the_models_take(name: str) -> None:
    prompts = read_prompts(DATA / name)
    check_media(prompts, QwenImageConfig.takes if name.endswith(".txt") else QwenImageEditConfig.takes, name)
    for path in {path for prompt in prompts for path in prompt.images}:
        assert read_picture(path).size > (200, 200)


@pytest.mark.parametrize(("kind", "learned"), [("image", "full"), ("edit-2511", LORA)], ids=["image-full", "edit-lora"])
def test_a_run_passes_its_preflight(
    checkpoint: Any, pictures: dict[str, Path], tmp_path: Path, kind: str, learned: Any
) -> None:
    lines: list[dict[str, Any]] = [{"prompt": "a photo of a red circle"}, {"prompt": "blue cat"}]
    model = {"name": "qwen-image", "path": str(checkpoint(kind)), "train": learned}
    if kind != "image":
        lines[0]["image"] = str(pictures["wide"])
        lines[1]["images"] = [str(pictures["square"]), str(pictures["tall"])]
        model |= {"name": "qwen-image-edit", "vae_area": 2048, "condition_area": 4096}
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = train_two_iterations(
        model,
        {"name": "reinforce"},
        file,
        tmp_path,
        sampling={"size": [32, 32], "guidance": 2.0},
        plugins=[FILE, LEARN],
    )
    records = run.records()
    assert [record["iteration"] for record in records] == [0, 1, 2]
    assert records[-1]["eval/light/mean"] != records[0]["eval/light/mean"]
