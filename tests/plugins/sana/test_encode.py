"""Prompts are encoded as the pipeline encodes them."""

from __future__ import annotations

import inspect

import torch
from text_to_image import LONG, TextToImage

from flowfactory import Canvas, Prompt

PROMPTS = ("A photo of a RED circle ", "", "blue cat", LONG * 4)


def test_encode_is_the_pipelines_encode_prompt(family: TextToImage) -> None:
    hooks, pipeline = family.bench(("cat",)).hooks, family.pipeline()
    asked = [Prompt(text, is_negative=negative) for negative in (False, True) for text in PROMPTS]
    ours = [entry["embeds"] for entry in hooks.encode(asked, Canvas(32, 32))]
    lines = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    with torch.no_grad():
        theirs = pipeline.encode_prompt(
            list(PROMPTS), True, list(PROMPTS), max_sequence_length=30, complex_human_instruction=lines
        )
    for mine, embeds, mask in ((ours[:4], theirs[0], theirs[1]), (ours[4:], theirs[2], theirs[3])):
        for entry, row, own in zip(mine, embeds, mask, strict=True):
            torch.testing.assert_close(entry, row[own.bool()], rtol=1e-5, atol=1e-5)
    assert len({len(embeds) for embeds in ours[:4]}) == 4, "all prompts are equally long"
    assert len(ours[3]) == 30, "the longest is not cut"
    assert len(ours[5]) == 1, "the instruction stands before the negative one"
    mixed = [entry["embeds"] for entry in hooks.encode([asked[0], asked[4], asked[1], asked[2]], Canvas(32, 32))]
    for entry, same in zip(mixed, (ours[0], ours[4], ours[1], ours[2]), strict=True):
        torch.testing.assert_close(entry, same, rtol=1e-5, atol=1e-5)
    assert torch.equal(*(entry["embeds"] for entry in hooks.encode([Prompt("a CAT"), Prompt(" a cat")], Canvas(32, 32))))
