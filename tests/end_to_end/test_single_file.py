"""A transformer's weights from one file, over the other parts of a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from families import open_bench, relative_difference
from family_cases import CASES
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from flowfactory import UserError
from flowfactory.config.loading import validate
from flowfactory.testing import Bench
from flowfactory_flux.flux1 import Flux1Config

PROMPTS = ("a cat", "a photo of a red circle")
KEYS = ("flux1", "flux2", "krea2", "qwen-image", "qwen-image-2.1", "z-image", "wan-t2v")
WAN = {
    **comfyui.DIRECT["wan"],
    **{
        f"blocks.{{}}.{theirs}.norm_{letter}": f"blocks.{{}}.{ours}.norm_{letter}"
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for letter in "qk"
    },
    "blocks.{}.norm2": "blocks.{}.norm3",
}


@pytest.fixture
def make(checkpoints: Callable[[str], Path], cache: Path, tmp_path: Path) -> Callable[..., Bench]:
    def made(key: str, **options: Any) -> Bench:
        case = CASES[key]
        (tmp_path / "prompts.txt").write_text("a cat\n")
        sampling: dict[str, Any] = {"size": case.size[:2], "dynamics": "flow-sde"}
        sampling |= {"frames": case.size[2]} if len(case.size) > 2 else {}
        raw: dict[str, Any] = {
            "model": {"name": case.name, "path": str(checkpoints(key)), "train": "full", **case.options, **options},
            "algorithm": "grpo",
            "rewards": {"clip": "clip"},
            "prompts": {"train": str(tmp_path / "prompts.txt")},
            "sampling": sampling,
        }
        return open_bench(validate(raw).model, cache, PROMPTS, case.size, guidance=case.guidance)

    return made


def others(made: Bench) -> dict[str, Tensor]:
    """Other weights for its transformer, each a little off, so that they come out in what is drawn."""
    source = torch.Generator().manual_seed(3)
    state = made.policy.modules["transformer"].state_dict()
    return {name: value + 0.05 * torch.randn(value.shape, generator=source) for name, value in state.items()}


def drawn_with(made: Bench, weights: dict[str, Tensor]) -> Tensor:
    made.policy.modules["transformer"].load_state_dict(weights)
    made.policy.mark_changed()
    return made.draw(2).latents


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_weights_of_the_file_draw(make: Callable[..., Bench], tmp_path: Path, key: str, prefix: str) -> None:
    made = make(key)
    weights = others(made)
    wanted = drawn_with(made, weights)
    file = tmp_path / "other.safetensors"
    save_file({f"{prefix}{name}": value for name, value in weights.items()}, file)
    assert torch.equal(make(key, weights=str(file)).draw(2).latents, wanted)
    assert relative_difference(make(key).draw(2).latents, wanted) > 1e-2


def released(name: str) -> str:
    """The name of a weight in the original release of Wan."""
    head = {"scale_shift_table": "head.modulation", "proj_out.weight": "head.head.weight", "proj_out.bias": "head.head.bias"}
    if name in head:
        return head[name]
    name = re.sub(r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation", name)
    number = re.search(r"\.(\d+)\.", name)
    bare, _, kind = re.sub(r"^blocks\.\d+\.", "blocks.{}.", name).rpartition(".")
    found = WAN.get(bare, bare).format(*([number[1]] if number else []))
    return f"{found}.{kind}"


def test_the_layout_of_a_release_is_converted(make: Callable[..., Bench], tmp_path: Path) -> None:
    made = make("wan-t2v")
    weights = others(made)
    wanted = drawn_with(made, weights)
    file = tmp_path / "wan.safetensors"
    named = {f"model.diffusion_model.{released(name)}": value for name, value in weights.items()}
    assert "model.diffusion_model.blocks.0.self_attn.q.weight" in named
    save_file(named, file)
    assert torch.equal(make("wan-t2v", weights=str(file)).draw(2).latents, wanted)


def test_what_does_not_fit_is_named(make: Callable[..., Bench], tmp_path: Path) -> None:
    weights = others(make("flux1"))
    first, file = next(iter(weights)), tmp_path / "a.safetensors"
    without = {name: value for name, value in weights.items() if name != first}
    for changed, sentence in (
        (without, f"lacks a weight that FluxTransformer2DModel needs, the first {first}"),
        (weights | {"more.weight": torch.zeros(2)}, "holds a weight that its config.json has no place for, the first more"),
        (weights | {first: torch.ones(3)}, f"holds a weight of another shape than its config.json says: {first} is [3]"),
        ({f"{first}.lora_A.weight": torch.zeros(2)}, "holds adapters, such as"),
        (weights | {first: weights[first].to(torch.int8)}, f"holds {first} of torch.int8, which is packed"),
        ({"nothing.weight": torch.zeros(2)}, "is of no layout that diffusers converts for FluxTransformer2DModel"),
    ):
        save_file(changed, file)
        with pytest.raises(UserError, match=re.escape(f"model.weights: {file} {sentence}")):
            make("flux1", weights=str(file))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"^model\.weights: .*a\.safetensors"):
        make("flux1", weights=str(file))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"a\.gguf is no \.safetensors file, and no other is read"):
        make("flux1", weights=str(tmp_path / "a.gguf"))
    with pytest.raises(UserError, match="unknown transformer 'second'; there is transformer and transformer_2"):
        make("wan-t2v", weights={"second": str(file)})


def test_a_file_for_each_transformer_is_written_as_it_is_read(make: Callable[..., Bench], tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    config = TypeAdapter(Flux1Config).validate_python({"path": str(tmp_path), "weights": {"transformer": str(file)}})
    assert config.model_dump(mode="json")["weights"] == {"transformer": str(file)}
    assert config.single_files == {"transformer": file}
