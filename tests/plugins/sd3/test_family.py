"""What every family over a diffusers pipeline has from core, seen on Stable Diffusion 3."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LORA
from families import open_bench as bench_of
from transformers import CLIPTextModelWithProjection

from flowfactory import UserError, flow
from flowfactory.models.pretrained import Pretrained
from flowfactory_sd3.sd3 import SD3Config

PROMPTS = ("a photo of a red circle", "green square", "cat")


def config(path: Path, **options: Any) -> SD3Config:
    return SD3Config.model_validate({"path": str(path), "max_sequence_length": 16, "train": "full", **options})


@pytest.mark.parametrize("count", [1, 2, 5])
def test_decoding_in_pieces_gives_the_same_pictures(checkpoint: Any, cache: Path, count: int) -> None:
    whole = bench_of(config(checkpoint()), cache, PROMPTS, (32, 32)).draw(3)
    pieces = bench_of(config(checkpoint(), decode_batch_size=count), cache, PROMPTS, (32, 32)).draw(3)
    assert torch.equal(whole.latents, pieces.latents)
    torch.testing.assert_close(whole.media, pieces.media, rtol=0, atol=1e-5)


def test_decoding_in_pieces_decodes_no_more_at_once(checkpoint: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    asked: list[int] = []
    real = AutoencoderKL.decode

    def counting(self: Any, latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        asked.append(len(latents))
        return real(self, latents, *rest, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", counting)
    bench_of(config(checkpoint(), decode_batch_size=2), cache, PROMPTS, (32, 32)).draw(3)
    assert asked == [2, 1]


def test_the_vae_computes_in_its_own_dtype(checkpoint: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    rounded: list[bool] = []
    real = AutoencoderKL.decode

    def watched(self: Any, *rest: Any, **options: Any) -> Any:
        rounded.append(torch.is_autocast_enabled("cpu"))
        return real(self, *rest, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", watched)
    bench_of(config(checkpoint(), train=LORA), cache, PROMPTS, (32, 32), steps=1, precision=torch.bfloat16).draw(3)
    assert rounded == [False]


def test_tiling_is_the_vaes_own(checkpoint: Any, cache: Path) -> None:
    made = bench_of(config(checkpoint(), tiling=True), cache, PROMPTS, (32, 32))
    plain = bench_of(config(checkpoint()), cache, PROMPTS, (32, 32))
    assert torch.equal(made.draw(3).latents, plain.draw(3).latents)
    vae = made.hooks._hook.load.get_hookimpls()[0].plugin._parts.pipeline.vae
    assert vae.use_tiling


def test_text_encoders_are_let_go_after_encoding(checkpoint: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = CLIPTextModelWithProjection.forward

    def watched(self: Any, *rest: Any, **options: Any) -> Any:
        seen.append(weakref.ref(self))
        return real(self, *rest, **options)

    monkeypatch.setattr(CLIPTextModelWithProjection, "forward", watched)
    made = bench_of(config(checkpoint()), cache, PROMPTS, (32, 32))
    gc.collect()
    assert seen
    assert all(encoder() is None for encoder in seen), "an encoder is still held"
    assert made.draw(3).media.shape == (3, 3, 32, 32)


def test_a_checkpoint_of_another_pipeline_is_one_line(checkpoint: Any, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoint(), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError) as refused:
        Pretrained(str(folder), ("StableDiffusion3Pipeline",)).parts  # noqa: B018
    assert str(refused.value) == f"model.path {folder} holds a FluxPipeline; this model reads StableDiffusion3Pipeline"


def test_a_hub_id_that_is_not_here_has_no_configs_and_no_download() -> None:
    checkpoint = Pretrained("nobody/nothing-of-the-kind", ("StableDiffusion3Pipeline",))
    assert checkpoint.config("vae") == {}
    assert checkpoint.config("") == {}


def test_the_key_of_conditions_follows_what_makes_them(checkpoint: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint(), folder)

    def encoding(dtype: torch.dtype = torch.float32, **options: Any) -> str:
        from flowfactory import Runtime

        model = config(folder, **options).build("model")
        return model.load(Runtime(torch.device("cpu"), dtype)).encoding

    before = encoding()
    assert encoding(train={"lora": {"rank": 2}}, decode_batch_size=1, tiling=True) == before
    assert encoding(max_sequence_length=8) != before
    assert encoding(torch.bfloat16) != before
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # another time of change
    assert encoding() != before


def test_conditions_of_other_shapes_are_drawn_apart_and_the_same(checkpoint: Any, cache: Path) -> None:
    made = bench_of(config(checkpoint()), cache, PROMPTS, (32, 32), guidance=3.0)
    model = made.hooks._hook.load.get_hookimpls()[0].plugin
    noise = flow.noise(made.plan, (4, 16, 16))
    sigma = torch.tensor([0.9, 0.5, 0.2])
    known = made.conditions
    # the text of the second is shorter: its padding is cut off
    cut = {**known.entries[1], "embeds": known.entries[1]["embeds"][:-3]}
    ragged = type(known)((known.entries[0], cut, known.entries[2]), known.negative)
    with torch.no_grad():
        together = model.velocity(noise, sigma, ragged, 3.0)
        alone = torch.cat([model.velocity(noise[[i]], sigma[[i]], ragged.rows([i]), 3.0) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
