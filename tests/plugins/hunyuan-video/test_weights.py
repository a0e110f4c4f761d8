"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cards
import policy_gradient
import pytest
import torch
from families import LORA, nudge, relative_difference
from hunyuan_videos import Videos
from peft import PeftModel
from saved import save_trained, stored
from text_to_image import EXACT, check_all_weights

from flowfactory import Step, flow
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import ODE
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.card import Exported, make_card
from flowfactory.runs.export.origin import find_origin
from flowfactory.testing import bench, check_model
from flowfactory.testing.two_parameter import settings

NAMES = {"t2v": "hunyuan-video-1.5", "i2v": "hunyuan-video-1.5-i2v"}
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
OF_THE_TEXT = ("attn.add_k_proj", "attn.add_v_proj")
LEAVING = ("attn.add_q_proj", "attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
"""What makes the text that leaves a block, which nothing reads after the last."""


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_the_model_keeps_its_contract(videos: Videos, train: Any, guidance: float) -> None:
    check_model(videos.options(train=train), videos.prompts(), (16, 20, 5), guidance)


def test_adapters_land_on_attention_and_feed_forward_of_every_block(family: Videos) -> None:
    policy = family.bench(train=LORA).policy
    refiner = "context_embedder.token_refiner.refiner_blocks.0"
    both = [(block, *(*ATTENTION, *FEED_FORWARD, *OF_THE_TEXT)) for block in ("transformer_blocks.0", "transformer_blocks.1")]
    layers = [(refiner, *ATTENTION, *FEED_FORWARD), *both, ("transformer_blocks.0", *LEAVING)]
    assert set(policy.adapted) == {f"transformer.{block}.{layer}" for block, *found in layers for layer in found}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_diffusers_loads_the_adapters_and_draws_the_same(videos: Videos, tmp_path: Path, guidance: float) -> None:
    made, pipeline = videos.bench(guidance=guidance, train=LORA), videos.pipeline()
    assert relative_difference(made.draw(2).latents, videos.drawn(pipeline, made)) < EXACT, "fresh adapters change something"
    nudge(made)
    ours = made.draw(2).latents
    save_trained(made.policy, tmp_path)
    assert relative_difference(ours, videos.drawn(pipeline, made)) > 1e-2, "the adapters change nothing to compare"
    pipeline.transformer.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert relative_difference(ours, videos.drawn(pipeline, made)) < EXACT


def test_peft_loads_the_adapters_and_draws_the_same(videos: Videos, tmp_path: Path) -> None:
    made, pipeline = videos.bench(guidance=4.0, train=LORA), videos.pipeline()
    nudge(made)
    model = videos.options(train=LORA)
    with stored(made.policy) as modules:
        write_formatted(modules, tmp_path, "peft", model, find_origin(model), "adapters")
    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, tmp_path)
    assert relative_difference(made.draw(2).latents, videos.drawn(pipeline, made)) < 1e-4


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_the_code_of_a_card_loads_the_adapters(
    videos: Videos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    made, folder = videos.bench(guidance=4.0, train=LORA), videos.checkpoint()
    nudge(made)
    raw = settings(tmp_path, "reinforce", [policy_gradient.__file__], sampling={"size": [28, 36], "frames": 5})
    run = validate(raw | {"model": {"name": NAMES[videos.kind], "path": str(folder), "train": LORA}})
    origin, out = find_origin(run.model), tmp_path / "out"
    out.mkdir()
    with stored(made.policy) as modules:
        files = write_formatted(modules, out, form, run.model, origin, "unused")
    exported = Exported(1, None, form, dict(zip(made.policy.modules, files, strict=True)))
    (out / "README.md").write_text(make_card("run", [], run, origin, exported))
    assert cards.head(out)["pipeline_tag"] == {"t2v": "text-to-video", "i2v": "image-to-video"}[videos.kind]
    pipeline = videos.pipeline()
    pipeline.transformer = cards.run_code(out, monkeypatch, folder)["pipeline"].transformer
    assert relative_difference(made.draw(2).latents, videos.drawn(pipeline, made)) < 1e-4


def test_diffusers_loads_the_fully_trained_transformer(videos: Videos, tmp_path: Path) -> None:
    check_all_weights(videos, tmp_path)


@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_bf16_draws_and_replays_what_it_drew(videos: Videos, tmp_path: Path, train: Any) -> None:
    config = videos.options(train=train)
    made = bench(config, tmp_path, videos.prompts(), videos.size, guidance=4.0, group_size=2, precision=torch.bfloat16)
    drawn = made.draw(4)
    assert bool(drawn.media.isfinite().all())
    assert drawn.latents.dtype == torch.float32
    assert len(drawn.steps) > 0
    for step in drawn.steps:
        replayed = made.policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        assert float((torch.exp(replayed - step.log_prob) - 1).abs().max().detach()) < 1e-5
    kept = {name: tensor.dtype for name, tensor in made.conditions.entries[0].items()}
    assert kept == dict.fromkeys(kept, torch.bfloat16)


def test_full_training_reaches_every_weight_that_is_read(videos: Videos) -> None:
    made = videos.bench(guidance=4.0)
    step = Step(flow.noise(made.plan, (4, 2, 7, 9)), torch.full((2,), 0.7), made.conditions, 4.0, ODE())
    velocity = made.policy.evaluate(step).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    parameters = made.policy.parameters
    gradients = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()))
    assert [name for name, gradient in zip(parameters, gradients, strict=True) if not gradient.any()] == []
    assert any("image_embedder" in name for name in parameters) == (videos.kind == "i2v")
