"""Encoders run in bf16 where that is fast, and what they make has the dtype of the run."""

from __future__ import annotations

import pytest
import torch

from flowfactory.models.encoder_dtype import choose_encoder_dtype, round_entry

F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("chosen", "run", "device", "expected"),
    [
        ("auto", F32, "cpu", F32),
        ("auto", BF16, "cpu", BF16),
        ("auto", F32, "cuda", BF16),
        ("auto", BF16, "cuda", BF16),
        ("float32", BF16, "cuda", F32),
        ("bf16", F32, "cpu", BF16),
    ],
)
def test_it_is_bf16_on_an_accelerator_unless_told_otherwise(
    chosen: str, run: torch.dtype, device: str, expected: torch.dtype
) -> None:
    assert choose_encoder_dtype(chosen, run, device) is expected


@pytest.mark.parametrize(("made_in", "run"), [(F32, BF16), (BF16, F32), (F32, F32)])
def test_what_encoders_made_has_the_dtype_of_the_run_and_the_rest_stays(made_in: torch.dtype, run: torch.dtype) -> None:
    batch = torch.rand(3, 4).to(made_in)
    entry = {"embeds": batch[1], "video": torch.rand(2), "length": torch.tensor(3)}
    rounded = round_entry(entry, made_in, run, {"video"})
    assert {name: tensor.dtype for name, tensor in rounded.items()} == {"embeds": run, "video": F32, "length": torch.int64}
    assert torch.equal(rounded["embeds"], batch[1].to(run))
    assert rounded["embeds"].untyped_storage().nbytes() == 4 * run.itemsize  # not that of the batch
