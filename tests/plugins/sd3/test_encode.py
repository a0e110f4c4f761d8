"""Prompts are encoded as the pipeline encodes them, once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import Canvas, Prompt, UserError

LONG = "a photo of a red circle and a blue square " * 4
PROMPTS = ("a photo of a red circle", "", "cat", LONG)


@pytest.mark.parametrize("t5", [False, True], ids=["no-t5", "t5"])
def test_encode_is_the_pipelines_encode_prompt(opened: Any, diffusers_pipeline: Any, checkpoint: Any, t5: bool) -> None:
    folder = checkpoint(t5=t5)
    ours = list(opened(folder).hooks.encode([Prompt(text) for text in PROMPTS], Canvas(32, 32)))
    with torch.no_grad():
        embeds, _, pooled, _ = diffusers_pipeline(folder).encode_prompt(
            list(PROMPTS), None, None, do_classifier_free_guidance=False, max_sequence_length=16
        )
    torch.testing.assert_close(torch.stack([entry["embeds"] for entry in ours]), embeds, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack([entry["pooled"] for entry in ours]), pooled, rtol=1e-6, atol=1e-6)


def test_a_batch_of_prompts_is_encoded_as_one_by_one(opened: Any, checkpoint: Any) -> None:
    hooks = opened(checkpoint()).hooks
    prompts = [Prompt(f"a photo of {number} circle") for number in range(40)]
    together = list(hooks.encode(prompts, Canvas(32, 32)))
    assert len(together) == 40
    for number in (0, 31, 32, 39):  # both sides of the border between two batches of the encoders
        (alone,) = hooks.encode([prompts[number]], Canvas(32, 32))
        for name in ("embeds", "pooled"):
            torch.testing.assert_close(together[number][name], alone[name], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0]["pooled"], together[1]["pooled"])


def test_prompts_in_the_cache_need_no_text_encoder(opened: Any, checkpoint: Any, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(), folder)
    first = opened(folder).draw(PROMPTS, guidance=4.0)
    for weights in folder.glob("text_encoder*/model.safetensors"):
        spoil(weights)
    again = opened(folder).draw(PROMPTS, guidance=4.0)
    assert torch.equal(again.latents, first.latents)
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="is cut off or damaged"):  # so the encoders really could not have been read
        opened(folder).draw(PROMPTS, guidance=4.0)


def spoil(file: Path) -> None:
    """Make ``file`` unreadable, with its size and time as before, which the key of the cache is made of."""
    facts = file.stat()
    file.write_bytes(b"\xff" * facts.st_size)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_other_weights_of_a_text_encoder_are_not_served_from_the_cache(opened: Any, checkpoint: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(), folder)
    opened(folder).conditions(PROMPTS)
    spoil(folder / "text_encoder" / "model.safetensors")
    os.utime(folder / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match="is cut off or damaged"):
        opened(folder).conditions(PROMPTS)
