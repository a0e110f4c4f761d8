"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cards
import comfyui
import policy_gradient
import pytest
import torch
from adapter_loaders import check_every_loader
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from families import LORA, nudge, open_bench, relative_difference
from safetensors.torch import load_file
from saved import save_trained, stored
from wan_pipelines import CONFIGS, EVERY, SIZES, draw_reference, open_pipeline

from flowfactory import Step, flow
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import ODE
from flowfactory.policy.policy import REFERENCE
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.card import Exported, make_card
from flowfactory.runs.export.origin import find_origin
from flowfactory.testing import Bench, bench, check_model
from flowfactory.testing.two_parameter import settings

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
BOTH = (0.95, 0.4)  # a sigma on each side of the boundary


@pytest.fixture
def fresh(checkpoint: Any, prompts: Any, conditions_folder: Path) -> Any:
    """``fresh(task, kind, train, guidance, …)``: a model whose weights a test may change."""

    def build(task: str, kind: str = "2.1", train: Any = LORA, guidance: float = 3.0, **options: Any) -> Bench:
        config = CONFIGS[task].model_validate({"path": str(checkpoint(task, kind)), "train": train, **options})
        return open_bench(config, conditions_folder, prompts(task)[:1], SIZES[kind], 4, guidance)

    return build


def theirs(pipeline: Any, made: Bench, task: str) -> torch.Tensor:
    return draw_reference(pipeline, made, **({"num_inference_steps": 5} if task == "v2v" else {}))


def gradients(made: Bench, sigmas: tuple[float, ...], guidance: float = 1.0) -> dict[str, torch.Tensor | None]:
    """Of a loss at ``sigmas``, a row each, by name."""
    rows = [0] * len(sigmas)
    channels = 6 if made.plan.canvas == SIZES["5b"] else 4
    latents = flow.noise(made.plan.rows(rows), (channels, 2, 4, 6))
    step = Step(latents, torch.tensor(sigmas), made.conditions.rows(rows), guidance, ODE())
    velocity = made.policy.evaluate(step).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    weights = made.policy.parameters
    found = torch.autograd.grad((velocity - target).square().sum(), list(weights.values()), allow_unused=True)
    return dict(zip(weights, found, strict=True))


@pytest.mark.parametrize(
    ("task", "kind", "train", "guidance"),
    [("t2v", "2.1", LORA, 1.0), ("i2v", "2.1", "full", 3.0), ("i2v", "5b", LORA, 3.0), ("v2v", "2.1", "full", 1.0)],
)
def test_the_model_keeps_its_contract(checkpoint: Any, prompts: Any, task: str, kind: str, train: Any, guidance: float) -> None:
    config = CONFIGS[task].model_validate({"path": str(checkpoint(task, kind)), "train": train})
    check_model(config, prompts(task)[:2], (32, 64, 5) if kind == "5b" else (16, 32, 5), guidance)


@pytest.mark.parametrize("experts", ["high", "low", "both"])
def test_experts_alone_and_together_keep_their_contract(checkpoint: Any, prompts: Any, experts: str) -> None:
    options = {"path": str(checkpoint("t2v", "a14b")), "train": LORA, "experts": experts}
    check_model(CONFIGS["t2v"].model_validate(options), prompts("t2v")[:2], (16, 32, 5), 2.0)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_adapters_land_on_attention_and_feed_forward(fresh: Any, task: str) -> None:
    made = fresh(task)
    added = ("add_k_proj", "add_v_proj") if task == "i2v" else ()
    assert set(made.policy.adapted) == {
        f"transformer.blocks.{block}.{layer}"
        for block in (0, 1)
        for layer in (
            *(f"attn1.{name}" for name in ATTENTION),
            *(f"attn2.{name}" for name in (*ATTENTION, *added)),
            *("ffn.net.0.proj", "ffn.net.2"),
        )
    }


def test_fresh_adapters_change_nothing(fresh: Any, pipeline: Any) -> None:
    made = fresh("t2v")
    assert relative_difference(made.draw(1).latents, theirs(pipeline("t2v"), made, "t2v")) < 1e-5


@pytest.mark.parametrize(("task", "kind"), [pair for pair in EVERY if pair not in (("t2v", "5b"), ("i2v", "a14b"))])
def test_diffusers_loads_the_adapters_and_draws_the_same(
    fresh: Any, checkpoint: Any, tmp_path: Path, task: str, kind: str
) -> None:
    made = fresh(task, kind)
    nudge(made)
    ours = made.draw(1).latents
    save_trained(made.policy, tmp_path)
    pipeline = open_pipeline(task, checkpoint(task, kind))
    assert relative_difference(ours, theirs(pipeline, made, task)) > 1e-2, "the adapters change nothing that could be compared"
    pipeline.load_lora_weights(tmp_path)
    if kind == "a14b":
        assert relative_difference(ours, theirs(pipeline, made, task)) > 1e-2, "the second expert's adapters change nothing"
        pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    assert relative_difference(ours, theirs(pipeline, made, task)) < 1e-5


@pytest.mark.parametrize(("task", "kind"), [("i2v", "2.1"), ("t2v", "a14b")])
def test_every_loader_of_adapters_draws_what_was_trained(
    fresh: Any, checkpoint: Any, tmp_path: Path, task: str, kind: str
) -> None:
    made = fresh(task, kind)
    nudge(made)
    folder = checkpoint(task, kind)
    model = CONFIGS[task].model_validate({"path": str(folder), "train": LORA})
    ours, out = made.draw(1).latents, tmp_path / "exported"
    out.mkdir()
    check_every_loader(
        made.policy, model, "wan", ours, lambda: open_pipeline(task, folder), lambda opened: theirs(opened, made, task), out
    )
    names = {path.name for path in (out / "comfyui").iterdir()}
    both = {"adapters_high_noise.safetensors", "adapters_low_noise.safetensors"}
    assert names == (both if kind == "a14b" else {"adapters.safetensors"})


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_the_code_of_a_card_loads_both_experts(
    fresh: Any, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    made, folder = fresh("t2v", "a14b"), checkpoint("t2v", "a14b")
    nudge(made)
    ours = made.draw(1).latents
    raw = settings(tmp_path, "reinforce", [policy_gradient.__file__], sampling={"size": [32, 48], "frames": 5})
    run = validate(raw | {"model": {"name": "wan-t2v", "path": str(folder), "train": LORA}})
    origin, out = find_origin(run.model), tmp_path / "out"
    out.mkdir()
    with stored(made.policy) as modules:
        files = write_formatted(modules, out, form, run.model, origin, "unused")
    exported = Exported(1, None, form, dict(zip(made.policy.modules, files, strict=True)))
    (out / "README.md").write_text(make_card("run", [], run, origin, exported))
    assert cards.head(out)["pipeline_tag"] == "text-to-video"
    loaded = cards.run_code(out, monkeypatch, folder)["pipeline"]
    pipeline = open_pipeline("t2v", folder)
    pipeline.transformer, pipeline.transformer_2 = loaded.transformer, loaded.transformer_2
    assert relative_difference(ours, theirs(pipeline, made, "t2v")) < 1e-5


def test_comfyui_has_a_name_for_every_layer(fresh: Any, checkpoint: Any, tmp_path: Path) -> None:
    transformer = open_pipeline("i2v", checkpoint("i2v")).transformer
    weights = comfyui.linear_weights(transformer)
    assert any("image_embedder" in name for name in weights)
    comfyui.check_against_diffusers(weights, "wan", convert_wan_transformer_to_diffusers)
    train = {"lora": {"rank": 2, "targets": list(weights)}}
    made = fresh("i2v", train=train)
    nudge(made)
    model = CONFIGS["i2v"].model_validate({"path": str(checkpoint("i2v")), "train": train})
    comfyui.check_names(made.policy, model, "wan", transformer, tmp_path)


@pytest.mark.parametrize(("experts", "trained"), [("high", "transformer"), ("low", "transformer_2")])
def test_the_expert_that_trains_is_saved_alone_and_handed_over(
    fresh: Any, checkpoint: Any, tmp_path: Path, experts: str, trained: str
) -> None:
    made = fresh("t2v", "a14b", experts=experts)
    assert set(made.policy.modules) == {trained}
    nudge(made)
    ours = made.draw(1).latents
    save_trained(made.policy, tmp_path)
    second = trained == "transformer_2"
    folder = tmp_path / "transformer_2" if second else tmp_path
    assert sorted(tmp_path.rglob("*.safetensors")) == [folder / "pytorch_lora_weights.safetensors"]
    assert all(key.startswith("transformer.") for key in load_file(folder / "pytorch_lora_weights.safetensors"))
    pipeline = open_pipeline("t2v", checkpoint("t2v", "a14b"))
    pipeline.load_lora_weights(folder, load_into_transformer_2=second)
    assert relative_difference(ours, theirs(pipeline, made, "t2v")) < 1e-5


@pytest.mark.parametrize(("task", "kind"), [("t2v", "a14b"), ("i2v", "2.1")])
def test_diffusers_loads_fully_trained_transformers(fresh: Any, checkpoint: Any, tmp_path: Path, task: str, kind: str) -> None:
    made = fresh(task, kind, "full")
    nudge(made)
    ours = made.draw(1).latents
    save_trained(made.policy, tmp_path)
    pipeline = open_pipeline(task, checkpoint(task, kind))
    assert relative_difference(ours, theirs(pipeline, made, task)) > 1e-2, "training changed nothing that could be compared"
    for name in made.policy.modules:
        setattr(pipeline, name, WanTransformer3DModel.from_pretrained(tmp_path / name))
    assert relative_difference(ours, theirs(pipeline, made, task)) < 1e-5


@pytest.mark.parametrize(("task", "kind", "guidance"), [*((*pair, 1.0) for pair in EVERY), ("i2v", "2.1", 4.0)])
def test_full_training_reaches_every_weight(fresh: Any, task: str, kind: str, guidance: float) -> None:
    made = fresh(task, kind, "full", guidance)
    found = gradients(made, BOTH if kind == "a14b" else (0.7,), guidance)
    still = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    assert still == []
    assert all(bool(gradient.isfinite().all()) for gradient in found.values() if gradient is not None)


def test_each_expert_gets_the_gradient_of_its_own_samples(fresh: Any) -> None:
    made = fresh("t2v", "a14b", "full", 1.0)
    together = gradients(made, BOTH)
    for sigma, name, other in ((0.95, "transformer.", "transformer_2."), (0.4, "transformer_2.", "transformer.")):
        alone = gradients(made, (sigma,))
        assert all(gradient is None for key, gradient in alone.items() if key.startswith(other))
        assert all(gradient is not None for key, gradient in alone.items() if key.startswith(name))
    assert all(gradient is not None for gradient in together.values())


def test_a_sample_that_the_frozen_expert_sees_teaches_nothing(fresh: Any) -> None:
    made = fresh("t2v", "a14b", experts="high")
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradients(made, (0.4,))
    assert any(gradient is not None and gradient.any() for gradient in gradients(made, BOTH).values())


def test_the_given_frame_has_no_gradient_and_no_part_in_a_ratio(checkpoint: Any, prompts: Any, conditions_folder: Path) -> None:
    config = CONFIGS["i2v"].model_validate({"path": str(checkpoint("i2v", "5b")), "train": LORA})
    made = bench(config, conditions_folder, prompts("i2v")[:1], SIZES["5b"], 3, 2.0, 2)
    (first, *_) = made.draw(2).steps
    nudge(made)
    found = made.policy.evaluate(first)
    given, weights = found.velocity[:, :, :1].sum(), list(made.policy.parameters.values())
    assert not any(gradient.any() for gradient in torch.autograd.grad(given, weights))
    with torch.no_grad():
        after = made.policy.evaluate(first).mean
        made.policy.keep_reference()
        with made.policy.using(REFERENCE):
            before = made.policy.evaluate(first).mean
    assert after is not None
    assert before is not None
    assert torch.equal(after[:, :, :1], before[:, :, :1])
    assert relative_difference(after[:, :, 1:], before[:, :, 1:]) > 1e-4


def test_the_first_stochastic_step_has_noise_of_a_latents_size(checkpoint: Any, prompts: Any, conditions_folder: Path) -> None:
    config = CONFIGS["t2v"].model_validate({"path": str(checkpoint("t2v")), "train": LORA})
    drawn = bench(config, conditions_folder, prompts("t2v")[:1], (32, 32, 5), 4, 1.0, 2).draw(2)
    assert len(drawn.steps) == 3
    assert all(float(step.next_latents.std()) < 3 for step in drawn.steps if step.next_latents is not None)
