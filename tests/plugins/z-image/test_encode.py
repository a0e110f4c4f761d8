"""Prompts are encoded as the pipeline encodes them, once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import Canvas, Prompt, UserError

LONG = "a photo of a red circle and a blue square " * 8
PROMPTS = ("a photo of a red circle", "", "cat", LONG)
CANVAS = Canvas(32, 32)


def test_encode_is_the_pipelines_encode_prompt(bench_of: Any, pipeline_of: Any, checkpoint: Any) -> None:
    ours = [entry["embeds"] for entry in bench_of(checkpoint(), ("cat",)).hooks.encode([*map(Prompt, PROMPTS)], CANVAS)]
    with torch.no_grad():
        theirs, _ = pipeline_of(checkpoint()).encode_prompt(list(PROMPTS), max_sequence_length=64)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    assert len({len(embeds) for embeds in ours}) == 4, "all prompts are equally long"
    assert len(ours[3]) == 64, "the longest is not cut"


def test_the_length_is_the_options(bench_of: Any, pipeline_of: Any, checkpoint: Any) -> None:
    (cut,) = bench_of(checkpoint(), ("cat",), max_sequence_length=20).hooks.encode([Prompt(LONG)], CANVAS)
    assert len(cut["embeds"]) == 20


def test_a_batch_of_prompts_is_encoded_as_one_by_one(bench_of: Any, checkpoint: Any) -> None:
    hooks = bench_of(checkpoint(), ("cat",)).hooks
    prompts = [Prompt(f"a photo of {'red ' * number} circle") for number in range(10)]
    together = [entry["embeds"] for entry in hooks.encode(prompts, CANVAS)]
    assert len(together) == 10
    for number in (0, 7, 8, 9):  # both sides of the border between two batches of the encoder
        (alone,) = hooks.encode([prompts[number]], CANVAS)
        torch.testing.assert_close(together[number], alone["embeds"], rtol=1e-5, atol=1e-5)


def test_prompts_in_the_cache_need_no_text_encoder(bench_of: Any, checkpoint: Any, tmp_path: Path) -> None:
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    shutil.copytree(checkpoint(), folder)
    first = bench_of(folder, PROMPTS, guidance=4.0, negative="blurry", cache=cache)
    spoil(folder / "text_encoder" / "model.safetensors")
    again = bench_of(folder, PROMPTS, guidance=4.0, negative="blurry", cache=cache)
    assert (first.entries, again.entries) == (4, 0)
    assert torch.equal(again.draw(4).latents, first.draw(4).latents)
    with pytest.raises(UserError, match="is cut off or damaged"):  # another negative prompt is not there yet
        bench_of(folder, PROMPTS, guidance=4.0, negative="green", cache=cache)


def spoil(file: Path) -> None:
    """Make ``file`` unreadable, with its size and time as before, which the key of the cache is made of."""
    facts = file.stat()
    file.write_bytes(b"\xff" * facts.st_size)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_other_weights_of_the_text_encoder_are_not_served_from_the_cache(
    bench_of: Any, checkpoint: Any, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    shutil.copytree(checkpoint(), folder)
    bench_of(folder, PROMPTS, cache=cache)
    spoil(folder / "text_encoder" / "model.safetensors")
    os.utime(folder / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match="is cut off or damaged"):
        bench_of(folder, PROMPTS, cache=cache)
