"""Qwen-Image-2.1, from texts and from pictures: it draws what diffusers' own QwenImage21Pipeline draws, and trains."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import policy_gradient
import pytest
import torch
from adapter_loaders import load_adapters
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel
from families import LORA, check_sizes, draw_one_by_one, nudge, open_bench, relative_difference, train_two_iterations
from saved import save_trained, stored
from tiny_qwen_image_21 import LATENTS, qwen_image_21
from torch import Tensor

from flowfactory import Canvas, Prompt, Runtime, Step, Trajectory, UserError, flow
from flowfactory.config.loading import load, validate
from flowfactory.data.pictures import read_picture
from flowfactory.flow.dynamics import ODE
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.origin import find_origin
from flowfactory.testing import Bench, Drawn, bench, check_encode_media, check_model, draw_with_pipeline
from flowfactory.testing.two_parameter import FILE
from flowfactory_qwen_image.picture_processor import PictureProcessor3
from flowfactory_qwen_image.qwen_image_21 import QwenImage21Config
from flowfactory_qwen_image.qwen_image_21_edit import QwenImage21EditConfig

AREA = 64 * 64
LONG = "a photo of a red circle and a blue square " * 3
TEXTS = ("a photo of a red circle", "", LONG)
OWN_SIGMAS = [1.0, 0.8, 0.3]
KINDS = (QwenImage21Config, QwenImage21EditConfig)
BFLOAT = torch.bfloat16


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint(kind)``: "whole", "to-zero", whose schedule ends there, or "own", with sigmas of its author's."""
    changes: dict[str, dict[str, Any]] = {"whole": {}, "to-zero": {"terminal": False}, "own": {"sample_sigmas": OWN_SIGMAS}}
    return lru_cache(lambda kind: qwen_image_21(tmp_path_factory.mktemp(kind), **changes[kind]))


@pytest.fixture(scope="session")
def pipeline_of() -> Callable[[Path], Any]:
    """``pipeline_of(folder)`` is the whole checkpoint as diffusers itself runs it."""

    def open_it(folder: Path) -> Any:
        # diffusers cannot open this part without torchvision
        processor = PictureProcessor3.from_pretrained(folder, subfolder="processor")
        pipeline = QwenImage21Pipeline.from_pretrained(folder, processor=processor)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return open_it


def options(folder: Path, edit: bool = False, **given: Any) -> Any:
    """The model's, with all weights unless told otherwise."""
    known = {"path": str(folder), "train": "full"} | ({"picture_area": AREA} if edit else {})
    return KINDS[edit].model_validate(known | given)


def theirs(pipeline: Any, made: Bench, **given: Any) -> Drawn:
    """What diffusers draws of the plan of ``made``, a prompt at a time, on white."""
    height, width, _ = made.plan.canvas

    def pack(pipeline: Any, noise: Tensor) -> Any:
        return pipeline._pack_latents(noise, *noise.shape)

    def unpack(pipeline: Any, latents: Tensor, canvas: Canvas) -> Tensor:
        return latents.transpose(1, 2).reshape(len(latents), -1, canvas.height // 16, canvas.width // 16)

    more = {"output_resolution": 64} | given
    shape = (LATENTS, height // 16, width // 16)
    drawn = draw_with_pipeline(pipeline, made, shape, pack, unpack, "true_cfg_scale", one_by_one=True, **more)
    colours, alpha = drawn.media[:, :3], drawn.media[:, 3:]
    return drawn._replace(media=colours * alpha + (1 - alpha))


Both = Callable[..., tuple[Trajectory, Drawn]]


@pytest.fixture(scope="module")
def both(checkpoint: Any, pipeline_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """``both(prompts, …)``: what the plugin draws of the prompts, and what the pipeline does from the same noise."""
    cached, pipeline = tmp_path_factory.mktemp("cache"), lru_cache(pipeline_of)

    def draw(
        prompts: Sequence[str | Prompt] = TEXTS,
        size: tuple[int, int] = (32, 32),
        steps: int = 3,
        guidance: float = 1.0,
        negative: str = "",
        kind: str = "whole",
    ) -> tuple[Trajectory, Drawn]:
        edit = any(isinstance(prompt, Prompt) and prompt.images for prompt in prompts)
        made = open_bench(options(checkpoint(kind), edit), cached, prompts, size, steps, guidance, negative)
        return made.draw(len(prompts)), theirs(pipeline(checkpoint(kind)), made)

    return draw


def check_same(ours: Trajectory, theirs: Drawn) -> None:
    assert relative_difference(ours.sigmas, theirs.sigmas) < 1e-6
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert ours.media.shape[1] == 3
    assert relative_difference(ours.media, theirs.media) < 1e-5


@pytest.mark.parametrize("kind", ["whole", "to-zero", "own"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_what_is_drawn_of_texts_is_the_pipelines(both: Both, kind: str, guidance: float) -> None:
    ours, other = both(guidance=guidance, kind=kind)
    check_same(ours, other)


@pytest.mark.parametrize("size", [(32, 64), (96, 32)])
@pytest.mark.parametrize("steps", [2, 7])
def test_any_size_and_number_of_steps_is_the_pipelines(both: Both, size: tuple[int, int], steps: int) -> None:
    check_same(*both(TEXTS[:2], size=size, steps=steps))


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(both: Both) -> None:
    ours, other = both(guidance=4.0, negative="blurry square")
    check_same(ours, other)
    empty, _ = both(guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def edits(pictures: dict[str, Path]) -> list[Prompt]:
    """One picture, two of other sizes, and two of one size with another text."""
    groups = (("square",), ("wide", "tall"), ("square", "other"))
    told = ("a red cat", "a photo of a blue circle", "")
    return [Prompt(text, images=tuple(pictures[name] for name in group)) for text, group in zip(told, groups, strict=True)]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_what_is_drawn_of_pictures_is_the_pipelines(both: Both, pictures: dict[str, Path], guidance: float) -> None:
    ours, other = both(edits(pictures), (32, 64), guidance=guidance, negative="blurry")
    check_same(ours, other)


def test_pictures_and_their_order_matter(both: Both, pictures: dict[str, Path]) -> None:
    def drawn(*names: str) -> Tensor:
        return both([Prompt("a cat", images=tuple(pictures[name] for name in names))])[0].latents

    found = [drawn("square"), drawn("other"), drawn("square", "other"), drawn("other", "square")]
    assert min(relative_difference(a, b) for a, b in pairwise(found)) > 1e-4


@pytest.mark.parametrize("edit", [False, True], ids=["texts", "pictures"])
def test_a_batch_is_drawn_as_its_rows(checkpoint: Any, pictures: dict[str, Path], cache: Path, edit: bool) -> None:
    prompts: list[Any] = [*edits(pictures), *edits(pictures)] if edit else ["cat", LONG, "", "cat", "a photo of a red circle"]
    made = open_bench(options(checkpoint("whole"), edit), cache, prompts, (32, 64), guidance=3.0, negative="blurry " * 5)
    assert relative_difference(made.draw(len(prompts)).latents, draw_one_by_one(made).latents) < 1e-5


def test_texts_are_encoded_by_the_pipelines_encode_prompt(checkpoint: Any, pipeline_of: Any, cache: Path) -> None:
    hooks = open_bench(options(checkpoint("whole")), cache, ["cat"], (32, 32)).hooks
    pipeline = pipeline_of(checkpoint("whole"))
    texts = [f"a photo of {'red ' * number}circle" for number in range(9)] + [""]  # more than a batch of the encoder
    for text, entry in zip(texts, hooks.encode([*map(Prompt, texts)], Canvas(32, 32)), strict=True):
        with torch.no_grad():
            embeds, valid, slots = pipeline.encode_prompt(text)
        assert valid is None
        torch.testing.assert_close(entry["embeds"], embeds[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(entry["slots"], slots[0])
        assert not entry["slots"].any()


def test_pictures_are_encoded_as_the_pipeline_encodes_them(
    checkpoint: Any, pipeline_of: Any, cache: Path, pictures: dict[str, Path]
) -> None:
    hooks = open_bench(options(checkpoint("whole"), True), cache, edits(pictures)[:1], (32, 32)).hooks
    pipeline = pipeline_of(checkpoint("whole"))
    (entry,) = hooks.encode([Prompt("a red cat", images=(pictures["wide"],))], Canvas(32, 32))
    resized = pipeline.image_processor.resize(read_picture(pictures["wide"]).convert("RGBA"), width=96, height=32)
    with torch.no_grad():
        embeds, _, slots = pipeline.encode_prompt("a red cat", [resized])
        latents = pipeline._encode_vae_image(pipeline.image_processor.preprocess(resized).unsqueeze(2), None)
    torch.testing.assert_close(entry["embeds"], embeds[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(entry["slots"], slots[0])
    assert int(slots.sum()) == 3 * 1  # of 32 x 32 pixels each
    torch.testing.assert_close(entry["image_0"], latents[0, :, 0], rtol=1e-5, atol=1e-5)


def test_the_text_is_not_normalised_by_its_encoder(checkpoint: Any, pipeline_of: Any) -> None:
    """Otherwise these tests would say nothing about it."""
    pipeline = pipeline_of(checkpoint("whole"))
    norm = pipeline.text_encoder.model.language_model.norm
    with torch.no_grad():
        plain, *_ = pipeline.encode_prompt("a cat")
        norm.weight.mul_(3)
        assert torch.equal(pipeline.encode_prompt("a cat")[0], plain)
        assert relative_difference(norm(plain), plain) > 0.1


def test_transparent_places_are_white(checkpoint: Any, pipeline_of: Any, cache: Path) -> None:
    made = open_bench(options(checkpoint("whole")), cache, ["a cat"], (32, 32))
    drawn = draw_with_pipeline(
        pipeline_of(checkpoint("whole")), made, (LATENTS, 2, 2), lambda pipe, noise: noise.flatten(2).transpose(1, 2)
    )
    assert drawn.media.shape == (1, 4, 32, 32)
    assert bool((drawn.media[:, 3:] < 0.9).any()), "all of it is opaque"
    assert relative_difference(made.draw(1).media, drawn.media[:, :3]) > 1e-2


def test_encode_media_is_the_other_way_round_of_decode(checkpoint: Any, pipeline_of: Any) -> None:
    pipeline = pipeline_of(checkpoint("whole"))
    media, latents = check_encode_media(options(checkpoint("whole")), size=(32, 64), pipeline=pipeline)
    pixels = torch.cat([media * 2 - 1, torch.ones_like(media[:, :1])], 1)
    with torch.no_grad():
        assert relative_difference(latents, pipeline._encode_vae_image(pixels[:, :, None], None)[:, :, 0]) < 1e-5
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_the_model_keeps_its_contract(checkpoint: Any, train: Any, guidance: float) -> None:
    check_model(options(checkpoint("whole"), train=train), size=(32, 64), guidance=guidance)


def test_adapters_land_on_attention_and_feed_forward_of_every_block(checkpoint: Any, cache: Path) -> None:
    policy = open_bench(options(checkpoint("whole"), train=LORA), cache, ["cat"], (32, 32)).policy
    layers = [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    layers += [f"img_mlp.{name}" for name in ("proj", "gate_layer", "out")]
    assert set(policy.adapted) == {f"transformer.transformer_blocks.{block}.{layer}" for block in (0, 1) for layer in layers}


@pytest.mark.parametrize("loader", ["diffusers", "a state dict", "peft"])
def test_other_loaders_of_adapters_draw_what_was_trained(
    checkpoint: Any, pipeline_of: Any, cache: Path, tmp_path: Path, loader: str
) -> None:
    config = options(checkpoint("whole"), train=LORA)
    made = open_bench(config, cache, TEXTS[:2], (32, 32), guidance=4.0)
    nudge(made)
    ours, pipeline = made.draw(2).latents, pipeline_of(checkpoint("whole"))
    assert relative_difference(ours, theirs(pipeline, made).latents) > 1e-2, "the adapters change nothing"
    with stored(made.policy) as modules:
        form = "peft" if loader == "peft" else "diffusers"
        (file,) = write_formatted(modules, tmp_path, form, config, find_origin(config), "adapters")
    load_adapters(loader, tmp_path / file, pipeline, "transformer", "")
    assert relative_difference(ours, theirs(pipeline, made).latents) < 1e-5


def test_diffusers_loads_the_fully_trained_transformer(checkpoint: Any, pipeline_of: Any, cache: Path, tmp_path: Path) -> None:
    made = open_bench(options(checkpoint("whole")), cache, TEXTS[:2], (32, 32))
    nudge(made)
    save_trained(made.policy, tmp_path)
    pipeline = pipeline_of(checkpoint("whole"))
    pipeline.transformer = QwenImage21Transformer2DModel.from_pretrained(tmp_path / "transformer")
    assert relative_difference(made.draw(2).latents, theirs(pipeline, made).latents) < 1e-5


@pytest.mark.parametrize("edit", [False, True], ids=["texts", "pictures"])
def test_full_training_reaches_every_weight(checkpoint: Any, cache: Path, pictures: dict[str, Path], edit: bool) -> None:
    prompts: list[Any] = edits(pictures)[:1] if edit else ["a red circle"]
    made = open_bench(options(checkpoint("whole"), edit), cache, prompts, (32, 32))
    latents = flow.noise(made.plan, (LATENTS, 2, 2))
    velocity = made.policy.evaluate(Step(latents, torch.full((1,), 0.7), made.conditions, 1.0, ODE())).velocity
    parameters = made.policy.parameters
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()), allow_unused=True)
    reached = zip(parameters, found, strict=True)
    assert {name for name, gradient in reached if gradient is None or not gradient.any()} == set()


@pytest.mark.parametrize("edit", [False, True], ids=["texts", "pictures"])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_bf16_draws_and_replays_what_it_drew(
    checkpoint: Any, cache: Path, pictures: dict[str, Path], train: Any, edit: bool
) -> None:
    prompts: list[Any] = edits(pictures)[:2] if edit else ["a photo of a red circle", "cat"]
    config = options(checkpoint("whole"), edit, train=train)
    made = bench(config, cache, prompts, (32, 64), guidance=3.0, group_size=2, precision=BFLOAT)
    drawn = made.draw(1)
    assert bool(drawn.media.isfinite().all())
    assert len(drawn.steps) > 0
    for step in drawn.steps:
        for row in range(len(step.latents)):  # as it was drawn: prompts of other lengths share no forward
            alone = made.policy.evaluate(step.rows([row])).log_prob
            assert alone is not None
            assert step.log_prob is not None
            assert float((torch.exp(alone - step.log_prob[row : row + 1]) - 1).abs().max().detach()) < 1e-5
    assert {entry["embeds"].dtype for entry in made.conditions.entries} == {BFLOAT}
    assert {entry["slots"].dtype for entry in made.conditions.entries} == {torch.bool}


@pytest.fixture
def settings(checkpoint: Any, tmp_path: Path) -> dict[str, Any]:
    """A config as a mapping."""
    (tmp_path / "prompts.txt").write_text("a photo of a red circle\nblue cat\n")
    return {
        "model": {"name": "qwen-image-2.1", "path": str(checkpoint("whole"))},
        "algorithm": {"name": "reinforce"},
        "rewards": {"light": "bright"},
        "prompts": {"train": str(tmp_path / "prompts.txt")},
        "sampling": {"size": [32, 32], "steps": 2, "dynamics": "flow-sde"},
        "plugins": [FILE, policy_gradient.__file__],
    }


@pytest.mark.parametrize("name", ["qwen-image-2.1", "qwen-image-2.1-edit"])
@pytest.mark.parametrize(("size", "nearest"), [([48, 70], [64, 64]), ([1, 32], [32, 32])])
def test_a_size_that_cannot_be_drawn_is_refused_with_the_nearest(
    settings: dict[str, Any], name: str, size: list[int], nearest: list[int]
) -> None:
    settings["model"]["name"] = name
    check_sizes(settings, "sampling", size, nearest)


def test_frames_are_refused(settings: dict[str, Any]) -> None:
    settings["sampling"]["frames"] = 5
    with pytest.raises(UserError, match=r"sampling\.frames: this model draws pictures; leave it out"):
        validate(settings)


def test_one_step_is_refused_where_the_schedule_ends_above_zero(settings: dict[str, Any], checkpoint: Any) -> None:
    settings["evaluation"] = {"steps": 1}
    with pytest.raises(UserError, match=r"steps 1: .* takes 2 steps or more$"):
        validate(settings)
    settings["model"]["path"] = str(checkpoint("to-zero"))
    assert validate(settings)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"attention": "cudnn"}, r"model\.attention: cudnn: this transformer calls PyTorch's own; leave it out"),
        ({"picture_area": 100}, r"model\.picture_area: "),
    ],
    ids=["attention", "area"],
)
def test_options_that_mean_nothing_are_refused(settings: dict[str, Any], option: dict[str, Any], told: str) -> None:
    settings["model"] |= {"name": "qwen-image-2.1-edit"} | option
    settings["training"] = {"precision": "bf16"}
    with pytest.raises(UserError, match=told):
        validate(settings)


def test_a_picture_that_is_too_thin_is_refused() -> None:
    config = QwenImage21EditConfig.model_validate({"path": "a/b", "picture_area": AREA})
    assert config.picture_error(1, 2000) == "1 x 2000 pixels are too thin for an area of 4096 pixels; crop it"
    assert config.picture_error(30, 64) is None


@pytest.mark.parametrize(
    ("name", "there", "told"), [("qwen-image-2.1", 1, "takes 0"), ("qwen-image-2.1-edit", 0, "takes 1 or")]
)
def test_pictures_that_are_too_many_or_too_few_are_refused(
    settings: dict[str, Any], pictures: dict[str, Path], tmp_path: Path, name: str, there: int, told: str
) -> None:
    line = {"prompt": "a cat", "images": [str(pictures["wide"])] * there}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line) + "\n")
    model = settings["model"] | {"name": name}
    with pytest.raises(UserError, match=rf"'a cat' brings {there} images, and model '{re.escape(name)}' {told}"):
        train_two_iterations(model, {"name": "reinforce"}, tmp_path / "prompts.jsonl", tmp_path, sampling={"size": [32, 32]})


def test_a_checkpoint_of_another_pipeline_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    settings["model"]["path"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds a QwenImagePipeline; this model reads QwenImage21Pipeline$"):
        validate(settings)


def test_a_processor_without_its_template_is_one_line(checkpoint: Any, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(checkpoint("whole"), tmp_path / "copy")
    (tmp_path / "copy" / "processor" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"processor of .* has no chat template, .*; get it again, whole$"):
        open_bench(options(tmp_path / "copy"), cache, ["a cat"], (32, 32))


def test_prompts_in_the_cache_need_neither_encoder_nor_processor(
    checkpoint: Any, tmp_path: Path, pictures: dict[str, Path], cache: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("whole"), folder)
    model = options(folder, True).build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    first = open_bench(options(folder, True), cache, edits(pictures), (32, 32)).draw(1).latents
    for file in (folder / "text_encoder" / "model.safetensors", folder / "processor" / "tokenizer.json"):
        facts = file.stat()
        file.write_bytes(b"\xff" * facts.st_size)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert torch.equal(open_bench(options(folder, True), cache, edits(pictures), (32, 32)).draw(1).latents, first)


@pytest.mark.parametrize("name", ["qwen-image-2.1", "qwen-image-2.1-edit"])
def test_the_example_is_valid(name: str) -> None:
    pytest.importorskip("flowfactory_rewards", reason="the reward of the example")
    assert load(name).sampling.guidance == 1


@pytest.mark.parametrize("edit", [False, True], ids=["texts", "pictures"])
def test_two_iterations_train(settings: dict[str, Any], pictures: dict[str, Path], tmp_path: Path, edit: bool) -> None:
    lines: list[dict[str, Any]] = [{"prompt": "a photo of a red circle"}, {"prompt": "blue cat"}]
    model = settings["model"] | {"train": LORA}
    if edit:
        lines[0]["image"] = str(pictures["wide"])
        lines[1]["images"] = [str(pictures["square"]), str(pictures["tall"])]
        model |= {"name": "qwen-image-2.1-edit", "picture_area": AREA}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = train_two_iterations(
        model, {"name": "reinforce"}, tmp_path / "prompts.jsonl", tmp_path, sampling={"size": [32, 32], "guidance": 2.0}
    )
    assert [record["iteration"] for record in run.records()] == [0, 1, 2]
