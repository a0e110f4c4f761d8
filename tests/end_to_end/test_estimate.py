"""What is foretold of real models, against what their runs take, and against what their files hold."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import torch
from families import LORA
from family_cases import CASES, GRPO, NFT, prompts, sections
from record_files import write_records
from safetensors import safe_open
from torch.profiler import ProfilerActivity, profile

from flowfactory.config.loading import validate
from flowfactory.config.schema import DistributedConfig, RunConfig
from flowfactory.errors import UserError
from flowfactory.models.pretrained import Pretrained
from flowfactory.policy import quantization
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.train import train
from flowfactory_tiny import FOLDER

FLOAT = 4


def config(folder: Path, model: Mapping[str, Any], algorithm: Mapping[str, Any], **changes: Mapping[str, Any]) -> RunConfig:
    """Two iterations of 8 pictures."""
    file = folder / "prompts.txt"
    if not file.exists():
        file.write_text("a red circle\na blue square\n")
    stochastic = algorithm["name"] == "grpo"
    dynamics = {"name": "flow-sde", "sde_steps": [0, 1], "num_sde_steps": 2} if stochastic else {"name": "ode"}
    sampling = {"groups": 2, "group_size": 4, "size": [32, 32], "steps": 3, "batch_size": 4, "dynamics": dynamics}
    raw = {
        "model": dict(model),
        "algorithm": dict(algorithm),
        "rewards": {"size": {"name": "jpeg-size"}},
        "prompts": {"train": str(file), **changes.get("prompts", {})},
        "sampling": {**sampling, **changes.get("sampling", {})},
        "training": {"iterations": 2, "batch_size": 4, **changes.get("training", {})},
        "output": {"dir": str(folder / "run")},
        "device": "cpu",
    }
    return validate(raw)


def tiny(folder: Path, train: Any = LORA, algorithm: Mapping[str, Any] = GRPO, **training: Any) -> RunConfig:
    return config(folder, {"name": "tiny", "train": train}, algorithm, training=training)


def most_allocated(run: RunConfig) -> int:
    """Bytes that PyTorch's allocators had given out at once, by their own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        train(run, say=lambda _: None)
    events: Any = recorded.profiler
    changes = sorted((e.start_ns(), e.nbytes()) for e in events.kineto_results.events() if e.name() == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    ("train", "algorithm", "training"),
    [
        (LORA, GRPO, {}),
        ("full", NFT, {}),
        ("full", {"name": "grpo", "kl": 0.1}, {"activation_checkpointing": "blocks"}),
        (LORA, GRPO, {"keep_graphs": True}),
    ],
    ids=["lora-grpo", "full-nft", "full-grpo-kl-checkpointed", "lora-grpo-kept-graphs"],
)
def test_a_run_of_the_tiny_generator_takes_what_is_foretold(
    train: Any, algorithm: dict[str, Any], training: dict[str, Any], tmp_path: Path
) -> None:
    run = tiny(tmp_path, train, algorithm, **training)
    assert estimate(run).peak == pytest.approx(most_allocated(run), rel=0.05)


@pytest.mark.parametrize(
    ("algorithm", "training"),
    [({"name": "sft"}, {}), ({"name": "offline-dpo"}, {}), (NFT, {"regularise": {"sft": 0.1}})],
    ids=["sft", "offline-dpo", "regularised"],
)
def test_what_learning_from_records_takes_is_foretold(
    algorithm: dict[str, Any], training: dict[str, Any], tmp_path: Path
) -> None:
    records = write_records(tmp_path, ("target", "chosen", "rejected"))
    run = config(
        tmp_path,
        {"name": "tiny", "train": LORA},
        algorithm,
        prompts={"train": str(records)},
        sampling={"groups": 4},
        training={"batch_size": 8, **training},
    )
    found = estimate(run)
    assert found.peak == pytest.approx(most_allocated(run), rel=0.1)
    assert bool(found.phases["sample"]) == (algorithm is NFT), "nothing is drawn to learn from records"


def test_what_draws_videos_takes_records_of_one_frame(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    records = write_records(tmp_path)
    model = {"name": "wan-t2v", "path": str(checkpoints("wan-t2v")), "train": LORA}
    changes = {**sections(CASES["wan-t2v"]), "prompts": {"train": str(records)}}
    changes["sampling"] = {**changes["sampling"], "frames": 1}
    assert estimate(config(tmp_path, model, {"name": "sft"}, **changes)).parts["activations"].device > 0


def test_guidance_that_is_trained_under_is_foretold_and_half_of_it_without_a_gradient(tmp_path: Path) -> None:
    def guided(algorithm: dict[str, Any], guidance: float = 3.0) -> RunConfig:
        return config(tmp_path, {"name": "tiny", "train": LORA}, algorithm, sampling={"guidance": guidance})

    def activations(algorithm: dict[str, Any], guidance: float = 3.0) -> int:
        return estimate(guided(algorithm, guidance)).parts["activations"].device

    without, both = activations(NFT, 1.0), NFT | {"guidance": 3}
    assert activations(NFT) == pytest.approx(without, rel=0.01)  # drawn under guidance, trained without
    assert 1.7 < activations(both) / without < 2.1
    assert 0.9 < activations(both | {"guidance_gradient": "conditional"}) / without < 1.1
    run = guided(GRPO | {"guidance_gradient": "conditional"})
    assert estimate(run).peak == pytest.approx(most_allocated(run), rel=0.05)


@pytest.mark.parametrize("key", CASES)
def test_every_model_is_foretold_with_the_weights_of_its_files(
    key: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    case, folder = CASES[key], checkpoints(key)
    model = {"name": case.name, "path": str(folder), "train": "full", **case.options}
    changes = {**sections(case), "prompts": {"train": str(prompts(case, tmp_path))}}
    found = estimate(config(tmp_path, model, NFT, **changes))
    files = [file for part in folder.glob("transformer*") for file in part.glob("*.safetensors")]
    stored = sum(elements(file) for file in files) * FLOAT
    assert found.parts["weights"].device == stored > 0
    assert found.parts["encoders"].device > 0
    assert found.parts["activations"].device > 0
    assert found.phases["learn"] > found.phases["sample"]


def elements(file: Path) -> int:
    with safe_open(file, "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118


def test_bf16_rounds_what_it_rounds_where_weights_are_read(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel
    from transformers import CLIPTextModel, T5EncoderModel, UMT5EncoderModel

    def read(kind: Any, folder: Path, **dtype: Any) -> int:
        module = kind.from_pretrained(folder, **dtype)
        return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))

    half = {"dtype": torch.bfloat16}
    wan, flux = checkpoints("wan-t2v"), checkpoints("flux1")
    changes: dict[str, Any] = {**sections(CASES["wan-t2v"]), "training": {"precision": "bf16"}}
    found = estimate(config(tmp_path, {"name": "wan-t2v", "path": str(wan), "train": LORA}, NFT, **changes)).parts
    transformer = WanTransformer3DModel.from_pretrained(wan / "transformer", torch_dtype=torch.bfloat16)
    weights = sum(weight.numel() * weight.element_size() for weight in transformer.parameters())
    assert found["weights"].device - found["gradients"].device == weights, "its norms stay in float32"
    assert found["encoders"].device == read(UMT5EncoderModel, wan / "text_encoder", **half)
    model = {"name": "flux1", "path": str(flux), "train": LORA, **CASES["flux1"].options}
    found = estimate(config(tmp_path, model, NFT, training={"precision": "bf16"})).parts
    encoders = read(CLIPTextModel, flux / "text_encoder", **half) + read(T5EncoderModel, flux / "text_encoder_2", **half)
    assert found["encoders"].device == encoders


def test_no_weights_are_read(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(FOLDER / "pipeline", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    model = {"name": "tiny", "train": LORA, "path": str(bare)}
    assert estimate(config(tmp_path, model, GRPO)) == estimate(tiny(tmp_path))
    (bare / "transformer" / "config.json").unlink()
    with pytest.raises(UserError, match=r"model\.path: .*bare.*config\.json"):
        estimate(config(tmp_path, model, GRPO))
    assert Pretrained.load.__module__ == Pretrained.fetch.__module__ == "flowfactory.models.pretrained", (
        "checkpoints are opened whole again"
    )


def test_checkpointed_blocks_and_bf16_keep_less(tmp_path: Path) -> None:
    plain, again, half = (
        estimate(tiny(tmp_path, **training)) for training in ({}, {"activation_checkpointing": "blocks"}, {"precision": "bf16"})
    )
    assert again.parts["activations"].device < 0.7 * plain.parts["activations"].device
    assert half.parts["activations"].device < 0.8 * plain.parts["activations"].device
    assert half.parts["decoder"].device == plain.parts["decoder"].device / 2
    assert again.phases["sample"] == plain.phases["sample"]


def test_on_cuda_normalisation_stays_in_float32(tmp_path: Path) -> None:
    run = tiny(tmp_path, precision="bf16", activation_checkpointing="blocks")
    on_cpu, on_cuda = estimate(run), estimate(run, cuda=True)
    assert on_cuda.parts["activations"].device > on_cpu.parts["activations"].device
    before = torch.nn.functional.layer_norm
    with torch.autocast("cpu", torch.bfloat16):
        normal = before(torch.randn(2, 3, dtype=torch.bfloat16), (3,))
    assert normal.dtype == torch.bfloat16, "only while estimating"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_fewer_bits_take_what_the_quantised_blocks_take(kind: str, tmp_path: Path) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel.from_pretrained(FOLDER / "pipeline" / "transformer")
    quantization.quantize_blocks(transformer, ("JointTransformerBlock",), kind, torch.float32)
    stored = sum(weight.numel() * weight.element_size() for weight in transformer.parameters())
    states = [weight.quant_state for weight in transformer.parameters() if hasattr(weight, "quant_state")]
    scales = [scale for state in states for scale in (state.absmax, state.state2.absmax)]
    stored += sum(scale.numel() * scale.element_size() for scale in scales)
    whole, fewer = tiny(tmp_path), config(tmp_path, {"name": "tiny", "train": LORA, "quantize": kind}, GRPO)
    adapters = estimate(whole).parts["gradients"].device
    assert estimate(fewer).parts["gradients"].device == adapters
    assert estimate(fewer).parts["weights"].device - adapters == pytest.approx(stored, rel=0.01)


def test_two_ranks_hold_blocks_and_half_of_the_weights(tmp_path: Path) -> None:
    run = tiny(tmp_path, "full")
    alone, shared = estimate(run), estimate(run, 2)
    assert 2 * shared.parts["weights"].device == alone.parts["weights"].device
    communication = shared.parts["communication"].device
    assert alone.parts["weights"].device / 3 < communication < 2 * alone.parts["weights"].device


def test_a_machine_needs_room_for_the_files_once_and_a_rank_for_a_block(tmp_path: Path) -> None:
    file = next((FOLDER / "pipeline" / "transformer").glob("*.safetensors")).stat().st_size
    one, four = (estimate(tiny(tmp_path), ranks, cuda=True) for ranks in (1, 4))
    assert one.phases["read"] == 0
    assert four.host < one.parts["weights"].device, "no rank has all of them"
    assert file < four.machine <= file + 4 * four.host


def test_the_command_tells_of_a_bundled_example(flowfactory: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    told = flowfactory("estimate", "quickstart", "--set", "device=auto", "--card", "8").stdout
    assert "encoders" in told
    assert "it fits" in told
    told = flowfactory("estimate", "quickstart", "--set", "device=auto", "--card", "1.0").stdout
    assert "what would help" in told


def test_ranks_that_share_forwards_share_their_activations_and_draw_the_same(tmp_path: Path) -> None:
    tiny_flux.flux1(tmp_path / "flux1", dev=False)
    model = {"name": "flux1", "path": str(tmp_path / "flux1"), "train": "full", "max_sequence_length": 128}
    run = config(tmp_path, model, NFT, sampling={"size": [128, 128]})

    def foretold(context: int, ranks: int) -> Any:
        chosen = DistributedConfig.model_validate({"context": context, "shard": 1})
        return estimate(run.model_copy(update={"distributed": chosen}), ranks).parts

    alone, shared, pairs = foretold(1, 1), foretold(2, 2), foretold(2, 4)
    assert shared["samples"] == alone["samples"]
    assert pairs["samples"].device == alone["samples"].device / 2
    # all but modulations, and what is exchanged
    assert 0.5 < shared["activations"].device / alone["activations"].device < 0.6
    # of half of the samples the velocities of the old weights wait for the step
    assert 0.97 < pairs["activations"].device / shared["activations"].device < 1
    assert shared["drawing"].device < 0.75 * alone["drawing"].device
    assert shared["weights"] == alone["weights"]
    with pytest.raises(UserError, match=r"^distributed\.context 2 does not divide 3 ranks"):
        foretold(2, 3)
