"""Prompts are encoded as the pipeline encodes them."""

from __future__ import annotations

import torch
from text_to_image import LONG, TextToImage

from flowfactory import Canvas, Prompt

PROMPTS = ("a photo of a red circle", "", "blue cat", LONG * 4)
CANVAS = Canvas(32, 32)


def test_encode_is_the_pipelines_encode_prompt(family: TextToImage) -> None:
    hooks = family.bench(("cat",)).hooks
    ours = [entry["embeds"] for entry in hooks.encode([*map(Prompt, PROMPTS)], CANVAS)]
    negative = [entry["embeds"] for entry in hooks.encode([Prompt(text, is_negative=True) for text in PROMPTS], CANVAS)]
    with torch.no_grad():
        theirs = family.pipeline().encode_prompt(list(PROMPTS), True, list(PROMPTS), max_sequence_length=100)
    for mine, embeds, mask in ((ours, *theirs[:2]), (negative, *theirs[2:])):
        for entry, row, own in zip(mine, embeds, mask, strict=True):
            torch.testing.assert_close(entry, row[own.bool()], rtol=1e-6, atol=1e-6)
    assert len({len(embeds) for embeds in ours}) == 4, "all prompts are equally long"
    assert len(ours[3]) == 100, "the longest is not cut"
    assert len(negative[1]) == 1, "a system prompt stands before the negative one"


def test_a_batch_of_prompts_is_encoded_as_one_by_one(family: TextToImage) -> None:
    hooks = family.bench(("cat",)).hooks
    prompts = [Prompt(f"a photo of {'red ' * number} circle", is_negative=number % 2 > 0) for number in range(10)]
    together = [entry["embeds"] for entry in hooks.encode(prompts, CANVAS)]
    for number in (0, 7, 8, 9):  # both sides of the border between two batches of the encoder
        (alone,) = hooks.encode([prompts[number]], CANVAS)
        torch.testing.assert_close(together[number], alone["embeds"], rtol=1e-5, atol=1e-5)
