"""Prompts and pictures are encoded as the pipelines encode them, once."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_flux
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from families import open_bench, relative_difference, train_two_iterations
from flux_family import LONG, NAMES, TAKES_PICTURES, TOKENS, Flux, make_config, make_prompts
from PIL import Image
from safetensors.torch import load_file, save_file

from flowfactory import Canvas, RunError, UserError
from flowfactory.data.prompts import check_files, check_picture_tokens

CLOSE = 5e-5  # of the largest: by 1e-5 other kernels round embeds with outliers otherwise, as those of FLUX.2
TEXTS = ("a photo of a red circle", "", "cat", LONG)
ENCODERS = ("Qwen3ForCausalLM", "Mistral3ForConditionalGeneration", "T5EncoderModel", "CLIPTextModel")


@pytest.mark.parametrize("variant", ["dev", "flux2", "klein-base"])
def test_encode_is_the_pipelines_encode_prompt(flux: Flux, variant: str) -> None:
    entries = list(
        flux.model(variant, flux.prompts(variant, "cat")).hooks.encode(flux.prompts(variant, *TEXTS), Canvas(32, 32))
    )
    with torch.no_grad():
        told = flux.pipeline(variant).encode_prompt(list(TEXTS), max_sequence_length=TOKENS[variant])
    names = ("embeds", "pooled") if variant == "dev" else ("embeds",)
    for name, expected in zip(names, told, strict=False):
        assert relative_difference(torch.stack([entry[name] for entry in entries]), expected) < CLOSE
    assert set(entries[0]) == set(names)
    assert not torch.allclose(entries[0]["embeds"], entries[2]["embeds"])


@pytest.mark.parametrize("variant", ["dev", "kontext", "flux2", "klein-base"])
def test_a_batch_of_prompts_is_encoded_as_one_by_one(flux: Flux, variant: str) -> None:
    prompts = [*flux.mixed(variant), *flux.prompts(variant, *TEXTS)]
    hooks = flux.model(variant, prompts).hooks
    together = list(hooks.encode(prompts, Canvas(32, 32)))
    assert len(together) == 9
    for place in (3, 4):  # both sides of the border between two batches of the encoders
        (alone,) = hooks.encode([prompts[place]], Canvas(32, 32))
        assert set(together[place]) == set(alone)
        for name, tensor in alone.items():
            assert relative_difference(together[place][name], tensor) < CLOSE


@pytest.mark.parametrize("variant", TAKES_PICTURES)
@pytest.mark.parametrize("size", [(70, 66), (67, 101), (130, 98), (400, 300)])
def test_as_many_tokens_of_a_picture_are_foretold_as_are_encoded(
    flux: Flux, variant: str, size: tuple[int, int], tmp_path: Path
) -> None:
    picture = tiny_flux.picture(tmp_path / "picture.png", size, seed=5)
    small = {} if variant == "kontext" else {"picture_area": 64 * 96}
    options = make_config(variant, flux.folder(variant), **small)
    made = flux.model(variant, make_prompts("cat", images=[picture]), **small)
    (entry,) = made.conditions.entries
    patch = 2 if variant == "kontext" else 1
    height, width = entry["image_0"].shape[-2:]
    assert options.picture_tokens(*size) == (height // patch) * (width // patch)
    assert options.picture_tokens(*size[::-1]) == options.picture_tokens(*size), "as it is when it is turned"


@pytest.mark.parametrize(("context", "fits"), [(1, True), (2, True), (5, True), (3, False)])
def test_pictures_whose_tokens_cannot_be_divided_are_refused(flux: Flux, context: int, fits: bool, tmp_path: Path) -> None:
    picture = tiny_flux.picture(tmp_path / "picture.png", (80, 64), seed=5)
    options, prompts = make_config("flux2", flux.folder("flux2")), make_prompts("cat", images=[picture])
    assert options.picture_tokens(80, 64) == 20
    if fits:
        check_picture_tokens(prompts, options, context)
    else:
        with pytest.raises(
            UserError, match=r"^the pictures of the prompt 'cat' are 20 tokens, which distributed\.context 3 does"
        ):
            check_picture_tokens(prompts, options, context)


@pytest.mark.parametrize("variant", TAKES_PICTURES)
def test_each_picture_of_a_prompt_has_an_entry_of_its_own_size(flux: Flux, variant: str) -> None:
    places = (1,) if variant == "kontext" else (1, 0)
    made = flux.model(variant, flux.bringing(*places, texts=["blue"]), guidance=2.0)
    (entry,) = made.conditions.entries
    cell = 8 if variant == "kontext" else 16
    sizes = [(64 // cell, 96 // cell), (64 // cell, 64 // cell)][: len(places)]
    assert [tuple(entry[f"image_{i}"].shape[1:]) for i in range(len(places))] == sizes
    assert f"image_{len(places)}" not in entry
    negative = made.conditions.negative
    if variant == "klein-base":  # the one with a negative prompt, which sees the same pictures
        assert negative is not None
        assert torch.equal(negative.entries[0]["image_1"], entry["image_1"])
    else:
        assert negative is None


def test_pictures_are_no_larger_than_the_config_says(flux: Flux) -> None:
    made = flux.model("klein", flux.bringing(0, 1, texts=["blue"]), picture_area=64 * 64)
    (entry,) = made.conditions.entries
    assert [tuple(entry[name].shape) for name in ("image_0", "image_1")] == [(16, 4, 3), (16, 3, 4)]


@pytest.mark.parametrize("variant", ["dev", "flux2", "klein-base"])
def test_prompts_in_the_cache_need_no_encoder(flux: Flux, tmp_path: Path, variant: str) -> None:
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    shutil.copytree(flux.folder(variant), folder)
    config, prompts = make_config(variant, folder), flux.mixed(variant)
    first = open_bench(config, cache, prompts, (32, 32), steps=2, guidance=3.0).draw(5)
    for weights in folder.glob("text_encoder*/model.safetensors"):
        spoil(weights)
    again = open_bench(config, cache, prompts, (32, 32), steps=2, guidance=3.0).draw(5)
    assert torch.equal(again.latents, first.latents)
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="is cut off or damaged"):  # so the encoders really could not have been read
        open_bench(config, cache, prompts, (32, 32), steps=2, guidance=3.0)


def spoil(file: Path) -> None:
    """Make ``file`` unreadable, with its size and time as before, which the key of the cache is made of."""
    facts = file.stat()
    file.write_bytes(b"\xff" * facts.st_size)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("variant", ["kontext", "klein-base"])
def test_pictures_of_another_vae_are_not_served_from_the_cache(flux: Flux, tmp_path: Path, variant: str) -> None:
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    shutil.copytree(flux.folder(variant), folder)
    config, prompts = make_config(variant, folder), flux.bringing(0, texts=["blue"])
    assert open_bench(config, cache, prompts, (32, 32)).entries == 1
    assert open_bench(config, cache, prompts, (32, 32)).entries == 0
    os.utime(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert open_bench(config, cache, prompts, (32, 32)).entries == 1


def test_no_encoder_stays_after_encoding(flux: Flux, tmp_path: Path) -> None:
    before = [id(thing) for thing in gc.get_objects() if type(thing).__name__ in ENCODERS]
    made = open_bench(make_config("klein", flux.folder("klein")), tmp_path, flux.prompts("klein", "cat"), (32, 32))
    assert made.entries == 1
    assert set(made.policy.modules) == {"transformer"}
    after = [id(thing) for thing in gc.get_objects() if type(thing).__name__ in ENCODERS]
    assert set(after) <= set(before)


@pytest.mark.parametrize(
    ("variant", "size", "reason"),
    [
        ("flux2", (70, 40), "40 x 70 pixels: take one of at least 64 x 64, up to 8 times as long as wide"),
        ("klein", (600, 64), "64 x 600 pixels: take one of at least 64 x 64, up to 8 times as long as wide"),
        ("kontext", (70, 12), "12 x 70 pixels are fewer than a token covers, 16 x 16; take a larger one"),
    ],
)
def test_a_picture_the_pipeline_cannot_take_is_one_line(
    flux: Flux, tmp_path: Path, variant: str, size: tuple[int, int], reason: str
) -> None:
    path = tiny_flux.picture(tmp_path / "bad.png", size)
    prompts = make_prompts("cat", images=[path])
    with pytest.raises(UserError) as refused:  # before weights are read
        check_files(prompts, make_config(variant, flux.folder(variant)), 1)
    assert str(refused.value) == f"picture {path}: {reason}"
    made = flux.model(variant, flux.prompts(variant, "cat"))
    with pytest.raises(UserError) as refused:  # of which there may be more when a hub id's configs have arrived
        list(made.hooks.encode(prompts, Canvas(32, 32)))
    assert str(refused.value) == f"picture {path}: {reason}"


@pytest.mark.parametrize("size", [(64, 64), (63, 64), (512, 64), (64, 512), (513, 64), (64, 513), (2000, 1)])
def test_the_pictures_that_flux2_takes_are_those_its_pipeline_takes(flux: Flux, size: tuple[int, int]) -> None:
    try:
        Flux2ImageProcessor.check_image_input(Image.new("RGB", size))
        taken = True
    except ValueError:
        taken = False
    assert (make_config("flux2", flux.folder("flux2")).picture_error(*size) is None) == taken


@pytest.mark.parametrize("variant", ["dev", "kontext"])
def test_one_of_two_text_encoders_that_sees_no_prompt_ends_the_run(flux: Flux, variant: str, tmp_path: Path) -> None:
    """Every token has one embedding, as where the tokenizer knows none; other pictures do not hide it."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(flux.folder(variant), folder)
    weights = load_file(folder / "text_encoder_2/model.safetensors")
    weights["shared.weight"][:] = weights["shared.weight"][5]
    save_file(weights, folder / "text_encoder_2/model.safetensors", metadata={"format": "pt"})
    lines = [{"prompt": "a cat"}, {"prompt": "a photo of a red circle"}]
    if variant == "kontext":
        lines = [line | {"image": str(picture)} for line, picture in zip(lines, flux.pictures[:2], strict=True)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = make_config(variant, folder).model_dump(mode="json") | {"name": NAMES[variant]}
    told = "^preflight: 'embeds' in the conditions of 'a cat' and 'a photo of a red circle' is the same for all; look at"
    with pytest.raises(RunError, match=told):
        train_two_iterations(model, {"name": "reinforce"}, prompts, tmp_path, sampling={"size": [32, 32]})
