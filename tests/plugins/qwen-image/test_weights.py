"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import comfyui
import pytest
import torch
from adapter_loaders import check_every_loader
from diffusers import QwenImageTransformer2DModel
from families import LORA, nudge, open_bench, relative_difference
from saved import save_trained
from tiny_qwen_image import LATENTS

from flowfactory import Prompt, Step, Trajectory, flow
from flowfactory.flow.dynamics import ODE
from flowfactory.models import Family, Parts
from flowfactory.testing import Bench, bench, check_model
from flowfactory_qwen_image.qwen_image import QWEN_IMAGE, QwenImageConfig

CLOSE = 1e-5
UNREAD = tuple(f"transformer.transformer_blocks.1.{layer}." for layer in ("attn.to_add_out", "txt_mlp"))
KINDS = ("image", "edit-2511")


@pytest.fixture
def prompts(pictures: dict[str, Path]) -> dict[str, list[Prompt]]:
    """Two of each kind of model."""
    texts = ("a photo of a red circle", "green square")
    given = (("wide",), ("square", "tall"))
    return {
        "image": [Prompt(text) for text in texts],
        "edit-2511": [
            Prompt(text, images=tuple(pictures[name] for name in names)) for text, names in zip(texts, given, strict=True)
        ],
    }


@pytest.mark.parametrize(
    ("kind", "train", "guidance"),
    [
        *(("image", train, guidance) for train in ("full", LORA) for guidance in (1.0, 4.0)),
        *(("edit-2511", train, guidance) for train, guidance in (("full", 4.0), (LORA, 1.0))),
    ],
)
def test_the_model_keeps_its_contract(config: Any, prompts: Any, kind: str, train: Any, guidance: float) -> None:
    check_model(config(kind, train), prompts[kind], (32, 32), guidance)


def test_a_family_that_forgets_its_mask_breaks_its_contract(config: Any) -> None:
    def unmasked(parts: Parts, *rest: Any) -> torch.Tensor:
        def transformer(**options: Any) -> Any:
            return parts.pipeline.transformer(**(options | {"encoder_hidden_states_mask": None}))

        pipeline = SimpleNamespace(transformer=transformer, scheduler=parts.pipeline.scheduler)
        return QWEN_IMAGE.velocity(replace(parts, pipeline=pipeline), *rest)

    class ForgetfulConfig(QwenImageConfig):
        family: ClassVar[Family] = replace(QWEN_IMAGE, velocity=unmasked)

    options = config("image", "full").model_dump(exclude={"name"})
    with pytest.raises(AssertionError, match=r"the batch size changes what is drawn.*at padding that a mask should hide"):
        check_model(ForgetfulConfig.model_validate(options), size=(32, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_land_on_every_projection_of_attention_and_feed_forward(config: Any, cache: Path, kind: str) -> None:
    layers = (
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{stream}_mlp.net.{name}" for stream in ("img", "txt") for name in ("0.proj", "2")),
    )
    made = open_bench(config(kind, LORA), cache, [], (32, 32))
    expected = {f"transformer.transformer_blocks.{block}.{layer}" for block in (0, 1) for layer in layers}
    assert set(made.policy.adapted) == {layer for layer in expected if not layer.startswith(UNREAD)}
    assert len(made.policy.parameters) == 2 * 21
    assert all("lora_" in name for name in made.policy.parameters)


def test_fresh_adapters_change_nothing(config: Any, cache: Path, prompts: Any) -> None:
    plain = open_bench(config("image"), cache, prompts["image"], (32, 32)).draw(2)
    adapted = open_bench(config("image", LORA), cache, prompts["image"], (32, 32)).draw(2)
    assert (
        relative_difference(adapted.latents, plain.latents) < CLOSE
    )  # a frozen weight meets other kernels than one that trains


@pytest.fixture
def moved(config: Any, cache: Path, prompts: Any, tmp_path: Path) -> Callable[..., tuple[Bench, Trajectory]]:
    """``moved(kind, train, guidance)``: a model whose weights were moved and saved, and what it draws."""

    def make(kind: str, *train: Any, guidance: float = 4.0) -> tuple[Bench, Trajectory]:
        made = open_bench(config(kind, *train), cache, prompts[kind], (32, 32), 3, guidance)
        nudge(made)
        ours = made.draw(2)
        save_trained(made.policy, tmp_path)
        return made, ours

    return make


@pytest.mark.parametrize(("kind", "guidance"), [("image", 1.0), ("image", 4.0), ("edit-2511", 4.0)])
def test_diffusers_loads_the_adapters_and_draws_the_same(
    moved: Any,
    diffusers_pipeline: Any,
    checkpoint: Any,
    their_picture: Any,
    tmp_path: Path,
    prompts: Any,
    kind: str,
    guidance: float,
) -> None:
    made, ours = moved(kind, LORA, guidance=guidance)
    pipeline = diffusers_pipeline(checkpoint(kind))
    bare = their_picture(pipeline, made)
    assert relative_difference(ours.latents, bare.latents) > 1e-2, "the adapters change nothing that could be compared"
    pipeline.load_lora_weights(tmp_path)
    loaded = their_picture(pipeline, made)
    assert relative_difference(ours.latents, loaded.latents) < CLOSE
    assert relative_difference(ours.media, loaded.media) < CLOSE


def test_every_loader_of_adapters_draws_what_was_trained(
    moved: Any, config: Any, diffusers_pipeline: Any, checkpoint: Any, their_picture: Any, tmp_path: Path, prompts: Any
) -> None:
    made, ours = moved("image", LORA)

    def draw(pipeline: Any) -> torch.Tensor:
        drawn: torch.Tensor = their_picture(pipeline, made).latents
        return drawn

    out = tmp_path / "exported"
    out.mkdir()
    model = config("image", LORA)
    check_every_loader(
        made.policy, model, "qwen-image", ours.latents, lambda: diffusers_pipeline(checkpoint("image")), draw, out
    )


def test_comfyui_has_a_name_for_every_layer(
    config: Any, cache: Path, diffusers_pipeline: Any, checkpoint: Any, tmp_path: Path
) -> None:
    transformer = diffusers_pipeline(checkpoint("image")).transformer
    model = config("image", {"lora": {"rank": 2, "targets": list(comfyui.linear_weights(transformer))}})
    made = open_bench(model, cache, [], (32, 32))
    nudge(made)
    comfyui.check_names(made.policy, model, "qwen-image", transformer, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_the_fully_trained_transformer(
    moved: Any, diffusers_pipeline: Any, checkpoint: Any, their_picture: Any, tmp_path: Path, prompts: Any, kind: str
) -> None:
    made, ours = moved(kind)
    transformer = QwenImageTransformer2DModel.from_pretrained(tmp_path / "transformer")
    loaded = transformer.state_dict()
    trained = {name.removeprefix("transformer."): weight for name, weight in made.policy.parameters.items()}
    assert set(trained) == {n for n, _ in transformer.named_parameters() if not f"transformer.{n}".startswith(UNREAD)}
    assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())
    pipeline = diffusers_pipeline(checkpoint(kind))
    assert relative_difference(ours.latents, their_picture(pipeline, made).latents) > 1e-2
    pipeline.transformer = transformer
    assert relative_difference(ours.latents, their_picture(pipeline, made).latents) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_full_training_reaches_every_weight_but_those_of_text_nobody_reads(
    config: Any, cache: Path, prompts: Any, kind: str
) -> None:
    """The last block makes text that is dropped: what alone makes it does not train, its queries have gradients of zero."""
    made = open_bench(config(kind), cache, prompts[kind], (32, 32), guidance=4.0)
    noise = flow.noise(made.plan, (LATENTS, 4, 4))
    velocity = made.policy.evaluate(Step(noise, torch.full((2,), 0.7), made.conditions, 4.0, ODE())).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    parameters = made.policy.parameters
    gradients = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    last = "transformer.transformer_blocks.1"
    assert {name for name, gradient in zip(parameters, gradients, strict=True) if not gradient.any()} == {
        f"{last}.attn.norm_added_q.weight",
        *(f"{last}.attn.add_q_proj.{part}" for part in ("weight", "bias")),
    }
    unread = {name: weight for name, weight in transformer_of(made) if name.startswith(UNREAD)}
    assert len(unread) == 6
    for weight in unread.values():
        weight.requires_grad_(True)
    velocity = made.policy.evaluate(Step(noise, torch.full((2,), 0.7), made.conditions, 4.0, ODE())).velocity
    assert set(torch.autograd.grad(velocity.sum(), list(unread.values()), allow_unused=True)) == {None}


def transformer_of(made: Bench) -> list[tuple[str, torch.nn.Parameter]]:
    return [(f"transformer.{name}", weight) for name, weight in made.policy.modules["transformer"].named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_draws_finite_pictures_and_replays_what_it_drew(config: Any, cache: Path, prompts: Any, kind: str) -> None:
    made = bench(config(kind, LORA), cache, prompts[kind], (32, 32), 3, 4.0, 2, precision=torch.bfloat16)
    stored = {weight.dtype for name, weight in made.policy.modules["transformer"].named_parameters() if "lora_" not in name}
    assert stored == {torch.bfloat16}
    drawn = made.draw(4)
    assert drawn.media.isfinite().all()
    assert drawn.steps
    for step in drawn.steps:
        replayed = made.policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        assert float((torch.exp(replayed.detach() - step.log_prob) - 1).abs().max()) < 1e-5
