"""Model folders that somebody else made: nothing in them is run, and no path in them leads elsewhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import payload
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from flowfactory import UserError
from flowfactory.models import check_file, check_files, load_module
from flowfactory.models.checkpoint_files import reading
from flowfactory.models.config_sizes import check_sizes

diffusers = pytest.importorskip("diffusers")
CHANNELS = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
CONFIG = CLIPTextConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
MODULES: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "transformers": (CLIPTextModel, "pytorch_model.bin", lambda: CLIPTextModel(CONFIG)),
    "diffusers": (
        diffusers.AutoencoderTiny,
        "diffusion_pytorch_model.bin",
        lambda: diffusers.AutoencoderTiny(**CHANNELS, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)),
    ),
}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path, Path]:
    """A class, a folder of it with weights as torch.save writes them, and their file."""
    kind, name, make = MODULES[request.param]
    made = make()
    made.save_pretrained(tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    weights.unlink()
    torch.save(made.state_dict(), tmp_path / "model" / name)
    return kind, tmp_path / "model", tmp_path / "model" / name


def refusal(attempt: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as refused:
        attempt()
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_weights_that_torch_saved_are_read(module: tuple[Any, Path, Path]) -> None:
    kind, folder, file = module
    saved = torch.load(file, weights_only=True)
    loaded = load_module(kind, folder, "it").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())


def test_weights_with_a_program_are_refused_before_they_are_read(module: tuple[Any, Path, Path], tmp_path: Path) -> None:
    kind, folder, file = module
    mark = tmp_path / "ran"
    for content in (payload.saved_by_torch(mark), payload.program()):
        file.write_bytes(content)
        for attempt in (lambda: check_files(folder), lambda: load_module(kind, folder, "it")):
            told = refusal(attempt)
            assert told == f"{file} holds more than tensors and is not read: it could run code; get it as .safetensors"
    file.write_bytes(payload.pickled(mark))
    told = refusal(lambda: load_module(kind, folder, f"the model in {folder}"))
    assert told.startswith(f"the model in {folder} cannot be read: ")
    assert not mark.exists()


def test_shards_lie_beside_their_index(module: tuple[Any, Path, Path], tmp_path: Path) -> None:
    kind, folder, file = module
    weights = torch.load(file, weights_only=True)
    (tmp_path / "elsewhere.bin").write_bytes(file.read_bytes())
    index = folder / f"{file.name}.index.json"
    file.unlink()
    for name in (
        "../elsewhere.bin",
        str(tmp_path / "elsewhere.bin"),
        "a/../../elsewhere.bin",
        "..",
        ".",
        "",
        "..\\e.bin",
        "a\nb",
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
        told = refusal(lambda: load_module(kind, folder, "it"))
        assert told.startswith(f"{index} names {name!r}, which is no file beside it")


def test_a_way_to_generate_that_a_model_brings_is_refused(tmp_path: Path) -> None:
    CLIPTextModel(CONFIG).save_pretrained(tmp_path / "model")
    (tmp_path / "model/custom_generate").mkdir()
    code = tmp_path / "model/custom_generate/generate.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    told = refusal(lambda: load_module(CLIPTextModel, tmp_path / "model", "it"))
    assert told == f"{code} is code, which is not run; take it away, or choose another model"
    assert not (tmp_path / "ran").exists()


def test_an_adapter_beside_weights_is_refused(module: tuple[Any, Path, Path], tmp_path: Path) -> None:
    """Its config may name modules that peft imports, and weights that torch.save wrote."""
    kind, folder, _ = module
    adapter = folder / "adapter_config.json"
    settings = {"peft_type": "LORA", "target_modules": ["q_proj"], "megatron_config": {}, "megatron_core": "evil"}
    adapter.write_text(json.dumps(settings))
    (folder / "adapter_model.bin").write_bytes(payload.saved_by_torch(tmp_path / "ran"))
    if kind is CLIPTextModel:
        told = refusal(lambda: load_module(kind, folder, "it"))
        assert told == f"{adapter} adds an adapter, which is not read; merge it into the weights, or take it away"
    else:
        load_module(kind, folder, "it")  # diffusers looks for none
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_a_config_names_is_refused(place: str, tmp_path: Path) -> None:
    CLIPTextModel(CONFIG).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    before = json.loads(config.read_text())
    for settings in ({place: "somebody/kernels"}, {"text_config": {place: "somebody/kernels:attention"}}):
        config.write_text(json.dumps(before | settings))
        told = refusal(lambda: load_module(CLIPTextModel, tmp_path, "it"))
        assert told.startswith(f"{config} names a kernel for its attention, which is code and not run")
    config.write_text(json.dumps(before | {place: "sdpa"}))
    load_module(CLIPTextModel, tmp_path, "it")


def test_pipes_in_place_of_weights_are_not_opened(module: tuple[Any, Path, Path]) -> None:
    _, folder, file = module
    file.unlink()
    os.mkfifo(file)
    assert refusal(lambda: load_module(module[0], folder, "it")).startswith("it has no weights in")
    assert refusal(lambda: check_file(file)).startswith(f"there is no file {file}")


def test_what_transformers_says_of_custom_code_is_no_advice_to_run_it() -> None:
    with pytest.raises(UserError) as refused, reading("the model"):
        raise ValueError("The repository contains custom code ... pass the argument `trust_remote_code=True` to allow it")
    assert str(refused.value) == (
        "the model cannot be read: it needs code that it brings, which is not run; choose a model that the library itself has"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, more than the 1000 that is read"),
        ({"text_config": {"num_hidden_layers": 200_000}}, "num_hidden_layers is 200000, more than the 1000 that is read"),
        ({"layers_per_block": [2, 200_000]}, "layers_per_block is 200000, more than the 1000 that is read"),
        ({"num_layers": 1e9}, "num_layers is 1000000000.0, more than the 1000 that is read"),
        ({"vocab_size": 10**400}, "vocab_size is 1e+300, more than the 1048576 that is read"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776, more than the 131072 that is read"),
        ({"block_out_channels": [8] * 5000}, "block_out_channels has 5000 items, more than the 1000 that are read"),
        ({"down_block_types": ["Block"] * 5000}, "down_block_types has 5000 items, more than the 1000 that are read"),
    ],
)
def test_a_config_of_sizes_that_no_model_has_is_refused_at_once(
    settings: dict[str, Any], told: str, module: tuple[Any, Path, Path]
) -> None:
    kind, folder, _ = module
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    began = time.monotonic()
    for attempt in (lambda: check_files(folder), lambda: load_module(kind, folder, "it")):
        assert refusal(attempt) == f"{config}: {told}; get it again, whole"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 152064, "max_position_embeddings": 128000, "rope_theta": 1e6, "intermediate_size": 29568},
        {"vision_config": {"depth": 32, "hidden_size": 1280, "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}},
        {
            "text_config": {"num_hidden_layers": 40, "vocab_size": 131072, "head_dim": 128, "rope_theta": 1e9},
            "image_size": 1540,
        },
        {"d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_layers": 24, "relative_attention_num_buckets": 32},
        {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": [16, 56, 56]},
        {"num_layers": 8, "num_single_layers": 48, "joint_attention_dim": 15360, "num_attention_heads": 48},
        {"num_layers": 40, "ffn_dim": 13824, "text_dim": 4096, "rope_max_seq_len": 1024, "in_channels": 36},
        {"axes_lens": [1536, 512, 512], "n_layers": 30, "n_refiner_layers": 2, "cap_feat_dim": 2560},
        {"pos_embed_max_size": 384, "sample_size": 128, "dual_attention_layers": list(range(13))},
        {"vocab_size": 901629, "eos_token_id": 200000, "vision_token_id": 10**7, "id2label": {"9": "LABEL"}},
        {"max_position_embeddings": 10485760, "num_hidden_layers": 126, "intermediate_size": 73728, "num_experts": 512},
        {"num_labels": 21841, "suppress_tokens": list(range(2000)), "max_pixels": 12845056, "num_hidden_layers": None},
    ],
)
def test_sizes_that_released_models_have_are_read(settings: dict[str, Any], tmp_path: Path) -> None:
    check_sizes(tmp_path / "config.json", settings)
    check_sizes(tmp_path / "scheduler_config.json", {"num_train_timesteps": 1000, "max_image_seq_len": 8192})


@pytest.mark.parametrize(
    "settings",
    [{"vocab_size": 10**6}, {"intermediate_size": 2**17}, {"max_position_embeddings": 2**24}, {"hidden_size": 2**14}],
)
def test_no_room_is_made_for_more_numbers_than_weights_can_hold(settings: dict[str, int], tmp_path: Path) -> None:
    CLIPTextModel(CONFIG).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    before = json.loads(config.read_text())
    packed = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    for others in ({}, packed):
        config.write_text(json.dumps(before | settings | others))
        told = refusal(lambda: load_module(CLIPTextModel, tmp_path, "it"))
        size = (tmp_path / "model.safetensors").stat().st_size
        assert told.startswith(f"it has weights of {size} bytes, which cannot be the ")
        assert told.endswith("; get it again, whole, or a config.json that goes with its weights")


def test_what_takes_more_memory_than_there_is_is_one_line() -> None:
    with pytest.raises(UserError) as refused, reading("the scheduler"):
        np.empty(2**56)
    told = "the scheduler takes more memory than this machine has; use one with more, or get it again, whole"
    assert str(refused.value) == told
