"""Prompts are encoded as the pipeline encodes them, without the padding in their middle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from text_to_image import TextToImage
from tiny_krea import LAYERS, WIDTH

from flowfactory import Canvas, Prompt

LONG = "a photo of a red circle and a blue square " * 8
PROMPTS = ("a photo of a red circle", "", "cat", LONG)
CANVAS = Canvas(32, 32)


def test_encode_is_the_pipelines_encode_prompt(family: TextToImage) -> None:
    ours = [entry["embeds"] for entry in family.bench(("cat",)).hooks.encode([*map(Prompt, PROMPTS)], CANVAS)]
    with torch.no_grad():
        theirs, valid = family.pipeline().encode_prompt(list(PROMPTS), max_sequence_length=64)
    for mine, other, there in zip(ours, theirs, valid, strict=True):
        torch.testing.assert_close(mine, other[there], rtol=1e-6, atol=1e-6)
        assert mine.shape[1:] == (len(LAYERS), WIDTH)
    assert len({len(embeds) for embeds in ours}) == 4, "all prompts are equally long"
    assert len(ours[1]) == 5, "the template behind an empty prompt"
    assert len(ours[3]) == 64, "the longest is not cut"


def test_the_length_is_the_options(family: TextToImage) -> None:
    (cut,) = family.bench(("cat",), max_sequence_length=20).hooks.encode([Prompt(LONG)], CANVAS)
    assert len(cut["embeds"]) == 20


def test_a_batch_of_prompts_is_encoded_as_one_by_one(family: TextToImage) -> None:
    hooks = family.bench(("cat",)).hooks
    prompts = [Prompt(f"a photo of {'red ' * number} circle") for number in range(10)]
    together = [entry["embeds"] for entry in hooks.encode(prompts, CANVAS)]
    for number in (0, 7, 8, 9):  # both sides of the border between two batches of the encoder
        (alone,) = hooks.encode([prompts[number]], CANVAS)
        torch.testing.assert_close(together[number], alone["embeds"], rtol=1e-5, atol=1e-5)


def test_other_layers_of_the_text_encoder_are_not_served_from_the_cache(family: TextToImage, tmp_path: Path) -> None:
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    shutil.copytree(family.checkpoint(), folder)
    first = family.bench(("cat",), path=str(folder), cache=cache)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder_select_layers"] = [0, 1, 2]
    (folder / "model_index.json").write_text(json.dumps(index))
    again = family.bench(("cat",), path=str(folder), cache=cache)
    torch.testing.assert_close(again.conditions.entries[0]["embeds"][:, 1:], first.conditions.entries[0]["embeds"][:, :2])
