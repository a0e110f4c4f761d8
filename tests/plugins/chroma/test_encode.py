"""Prompts are encoded as the pipeline encodes them."""

from __future__ import annotations

import torch
from text_to_image import LONG, TextToImage

from flowfactory import Canvas, Prompt

PROMPTS = ("a photo of a red circle", "", "blue cat", LONG * 4)


def test_encode_is_the_pipelines_encode_prompt(family: TextToImage) -> None:
    ours = list(family.bench(("cat",)).hooks.encode([*map(Prompt, PROMPTS)], Canvas(32, 32)))
    with torch.no_grad():
        embeds, _, masks, *_ = family.pipeline().encode_prompt(
            list(PROMPTS), do_classifier_free_guidance=False, max_sequence_length=24
        )
    for entry, row, mask in zip(ours, embeds, masks, strict=True):
        torch.testing.assert_close(entry["embeds"], row, rtol=1e-6, atol=1e-6)
        assert torch.equal(entry["mask"], mask)
    assert [int(entry["mask"].sum()) for entry in ours] == [10, 2, 4, 24], "its tokens, the end, and one of the padding"
