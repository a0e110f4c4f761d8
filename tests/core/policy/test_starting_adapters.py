"""Files of adapters, read as what they add to each layer's weight; and what is refused of them, by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, WanPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from flowfactory import Trainable, UserError
from flowfactory.config.component import LoraTraining
from flowfactory.models.adapter_layouts import read_adapters
from flowfactory.policy import lora
from flowfactory.policy.starting_adapters import StartingAdapters, read_starting_adapters

Q, OUT, WORDS = "blocks.0.to_q", "blocks.0.to_out.0", "words"


class Layers(nn.Module):
    """Two linear layers, a convolution and an embedding, under names such as transformers have."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.to_q, block.to_out = nn.Linear(4, 6), nn.ModuleList([nn.Linear(6, 4)])
        self.blocks, self.patch, self.words = nn.ModuleList([block]), nn.Conv2d(3, 4, 2), nn.Embedding(7, 5)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def factors(prefix: str = "", rank: int = 2, ends: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, Tensor]:
    """Of both linear layers."""
    down, up = ends
    return {
        f"{prefix}{Q}.{down}.weight": numbers(rank, 4),
        f"{prefix}{Q}.{up}.weight": numbers(6, rank),
        f"{prefix}{OUT}.{down}.weight": numbers(rank, 6),
        f"{prefix}{OUT}.{up}.weight": numbers(4, rank),
    }


def read(path: Path, modules: Mapping[str, nn.Module] | None = None, convert: Any = None, **lora: Any) -> StartingAdapters:
    training = LoraTraining.model_validate({"lora": {"from": str(path), **lora}})
    trainable = Trainable(modules or {"transformer": Layers()}, training, ("to_q",), (), "", False, convert_adapters=convert)
    found = read_starting_adapters(trainable)
    assert found is not None
    return found


def saved(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    return path


def added(starting: StartingAdapters, layer: str = Q, module: str = "transformer") -> Tensor:
    return starting.factors[module][layer].product()


LAYOUTS = {
    "diffusers": factors("transformer."),
    "no prefix": factors(),
    "peft": factors("base_model.model."),
    "peft of a whole pipeline": factors("base_model.model.transformer."),
    "comfyui": factors("diffusion_model."),
    "down and up": factors("transformer.", ends=("lora_down", "lora_up")),
    "older diffusers": factors("transformer.", ends=("lora.down", "lora.up")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_adds_the_product_of_its_factors(tmp_path: Path, layout: str) -> None:
    found = read(saved(tmp_path / "a.safetensors", LAYOUTS[layout]))
    torch.testing.assert_close(added(found), numbers(6, 2) @ numbers(2, 4))
    torch.testing.assert_close(added(found, OUT), numbers(4, 2) @ numbers(2, 6))


def test_alpha_is_read_from_a_tensor_from_the_head_and_from_the_file_beside(tmp_path: Path) -> None:
    plain = numbers(6, 2) @ numbers(2, 4)
    tensor = read(saved(tmp_path / "a.safetensors", factors() | {f"{Q}.alpha": torch.tensor(5.0)}))
    torch.testing.assert_close(added(tensor), 2.5 * plain)
    torch.testing.assert_close(added(tensor, OUT), numbers(4, 2) @ numbers(2, 6))
    told = {"transformer.r": 2, "transformer.lora_alpha": 6, "transformer.alpha_pattern": {"to_out.0": 1}}
    head = read(saved(tmp_path / "b.safetensors", factors("transformer."), {"lora_adapter_metadata": json.dumps(told)}))
    torch.testing.assert_close(added(head), 3 * plain)
    torch.testing.assert_close(added(head, OUT), 0.5 * numbers(4, 2) @ numbers(2, 6))
    saved(tmp_path / "peft" / "adapter_model.safetensors", factors("base_model.model."))
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8, "use_rslora": True}))
    torch.testing.assert_close(added(read(tmp_path / "peft")), 8 / 2**0.5 * plain)


def test_kohya_files_are_converted_by_the_pipeline_of_the_model(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    module = FluxTransformer2DModel(
        num_layers=1, num_single_layers=0, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(2, 2, 0), in_channels=4,
    )  # fmt: skip
    down, up = numbers(2, 8), numbers(24, 2)
    file = saved(
        tmp_path / "kohya.safetensors",
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down,
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": up,
            "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.0),
        },
    )
    convert = partial(read_adapters, (), {"transformer": module}, FluxPipeline)
    found = read(file, {"transformer": module}, convert)
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        layer = f"transformer_blocks.0.attn.{name}"
        torch.testing.assert_close(added(found, layer), 0.5 * up[8 * i : 8 * (i + 1)] @ down)
    assert len(found.factors["transformer"]) == 3


def test_layers_of_other_ranks_and_alphas_get_one_of_each_and_compute_the_same(tmp_path: Path) -> None:
    mixed = factors(rank=2) | {f"{OUT}.lora_A.weight": numbers(3, 6), f"{OUT}.lora_B.weight": numbers(4, 3)}
    mixed |= {
        f"{OUT}.alpha": torch.tensor(1.5),
        "words.lora_embedding_A": numbers(2, 7),
        "words.lora_embedding_B": numbers(5, 2),
    }
    mixed |= {"patch.lora_A.weight": numbers(2, 3, 2, 2), "patch.lora_B.weight": numbers(4, 2, 1, 1)}
    module = Layers()
    found = read(saved(tmp_path / "a.safetensors", mixed), {"transformer": module})
    own = found.adapters("transformer", module)
    assert (own.rank, own.alpha) == (3, 3.0)
    x, words, picture = numbers(5, 4), torch.tensor([1, 4]), numbers(2, 3, 4, 4)
    fused = Layers()
    fused.load_state_dict(module.state_dict())
    found.fuse({"transformer": fused})
    lora.add_adapters(module, own, (), seed=0)
    found.fill("transformer", module)
    block, other = module.blocks[0], fused.blocks[0]
    torch.testing.assert_close(block.to_out[0](block.to_q(x)), other.to_out[0](other.to_q(x)))
    torch.testing.assert_close(module.words(words), fused.words(words))
    torch.testing.assert_close(module.patch(picture), fused.patch(picture))
    assert not torch.equal(fused.words.weight, Layers().words.weight)


def test_one_rank_and_alpha_are_kept_to_the_bit(tmp_path: Path) -> None:
    tensors = factors() | {f"{layer}.alpha": torch.tensor(5.0) for layer in (Q, OUT)}
    module = Layers()
    found = read(saved(tmp_path / "a.safetensors", tensors), {"transformer": module})
    own = found.adapters("transformer", module)
    assert own == lora.Adapters(2, 5.0, (OUT, Q))
    lora.add_adapters(module, own, (), seed=0)
    found.fill("transformer", module)
    parameters = dict(module.named_parameters())
    for name, value in factors().items():
        layer, half = name.split(".lora_")
        assert torch.equal(parameters[f"{layer}.lora_{half[0]}.{lora.ADAPTER}.weight"], value)


def test_of_two_transformers_each_gets_its_own_in_a_folder_and_in_one_file(tmp_path: Path) -> None:
    modules = {"transformer": Layers(), "transformer_2": Layers()}
    both = factors("transformer.") | {f"transformer_2.{name}": 2 * value for name, value in factors().items()}
    saved(tmp_path / "two" / "pytorch_lora_weights.safetensors", factors("transformer."))
    second = {f"transformer.{name}": 2 * value for name, value in factors().items()}
    saved(tmp_path / "two" / "transformer_2" / "pytorch_lora_weights.safetensors", second)
    for found in (read(saved(tmp_path / "one.safetensors", both), modules), read(tmp_path / "two", modules)):
        torch.testing.assert_close(added(found, Q, "transformer_2"), 4 * added(found))
    with pytest.raises(UserError, match="has adapters for transformer, and none for transformer_2, which trains too"):
        read(saved(tmp_path / "first.safetensors", factors("transformer.")), modules)
    with pytest.raises(UserError, match="is for transformer_2, and this run trains transformer; name the file that is meant"):
        read(tmp_path / "two")


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "another layer": (
        factors("transformer.") | {"transformer.blocks.0.to_k.lora_A.weight": numbers(2, 4)},
        "transformer.blocks.0.to_k.lora_A.weight is of no layer of transformer; did you mean 'blocks.0.to_q'",
    ),
    "a bias": (factors() | {f"{Q}.lora_B.bias": numbers(6)}, f"{Q}.lora_B.bias is no factor of a low-rank adapter"),
    "whole weights": (factors() | {f"{Q}.weight": numbers(6, 4)}, f"{Q}.weight is no factor of a low-rank adapter"),
    "DoRA": (factors() | {f"{Q}.lora_magnitude_vector": numbers(6)}, "is of DoRA, whose magnitudes"),
    "a text encoder": (
        factors() | {"text_encoder.q.lora_A.weight": numbers(2, 4)},
        "is of a text encoder, which is not trained",
    ),
    "half of one": (dict([*factors().items()][:1]), f"of {Q} there is but one of the two factors"),
    "two ranks": (factors() | {f"{Q}.lora_A.weight": numbers(3, 4)}, "have no common rank"),
    "not finite": (factors() | {f"{Q}.lora_A.weight": numbers(2, 4) / 0}, f"{Q}.lora_A.weight is not finite"),
    "packed": (factors() | {f"{Q}.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)}, f"{Q}.lora_A.weight is of torch.int8"),
    "two names": (factors() | factors("transformer."), "has one layer under two names"),
    "nothing": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_and_never_passed_over(tmp_path: Path, case: str) -> None:
    tensors, sentence = REFUSED[case]
    with pytest.raises(UserError, match=rf"model\.train\.lora\.from: .*{re.escape(sentence)}"):
        read(saved(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("base", [False, True])
def test_adapters_of_another_width_are_refused(tmp_path: Path, base: bool) -> None:
    tensors = factors() | {f"{Q}.lora_A.weight": numbers(2, 9)}
    module = Layers()
    found = read(saved(tmp_path / "a.safetensors", tensors), {"transformer": module}, **({"as": "base"} if base else {}))
    if not base:
        lora.add_adapters(module, found.adapters("transformer", module), (), seed=0)
    with pytest.raises(UserError, match=rf"of {re.escape(Q)}, and this model takes .*; the adapters are of another model"):
        found.fuse({"transformer": module}) if base else found.fill("transformer", module)


def test_what_diffusers_would_leave_out_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", {"diffusion_model.blocks.0.nothing.lora_A.weight": numbers(2, 4)})
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read(file, convert=partial(read_adapters, (), {}, WanPipeline))


def test_numbers_of_eight_bits_are_read(tmp_path: Path) -> None:
    rounded = {name: value.to(torch.float8_e4m3fn) for name, value in factors().items()}
    found = read(saved(tmp_path / "a.safetensors", rounded))
    down, up = (rounded[f"{Q}.lora_{half}.weight"].float() for half in "AB")
    torch.testing.assert_close(added(found), up @ down)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", factors())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read: .*; get it again, whole"):
        read(file)
