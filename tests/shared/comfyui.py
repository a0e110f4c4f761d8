"""What ComfyUI does with a file of adapters, by its public definition.

``load_lora`` and ``model_lora_keys_unet`` of comfy/lora.py: which names of layers it knows; ``…_to_diffusers`` of
comfy/utils.py: which rows of its own weights they are; comfy/weight_adapter/lora.py: what is added to them. Its models have
the weights of the original releases, so that diffusers' converters of those say whether the tables here are true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from saved import stored
from torch import Tensor, nn

from flowfactory import Policy
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.origin import find_origin


class Place(NamedTuple):
    """A weight of ComfyUI's model, the rows of it from ``start`` on, and whether their halves are the other way round."""

    weight: str
    start: int = 0
    swapped: bool = False


Names = Mapping[str, str]
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# layers of diffusers whose weights lie one under the other in one of ComfyUI's
FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "flux1": {
        "double_blocks.{}.img_attn.qkv": tuple(f"transformer_blocks.{{}}.{name}" for name in QKV),
        "double_blocks.{}.txt_attn.qkv": tuple(f"transformer_blocks.{{}}.{name}" for name in ADDED),
        "single_blocks.{}.linear1": tuple(f"single_transformer_blocks.{{}}.{name}" for name in (*QKV, "proj_mlp")),
    },
    "flux2": {
        "double_blocks.{}.img_attn.qkv": tuple(f"transformer_blocks.{{}}.{name}" for name in QKV),
        "double_blocks.{}.txt_attn.qkv": tuple(f"transformer_blocks.{{}}.{name}" for name in ADDED),
    },
    "sd3": {
        "joint_blocks.{}.x_block.attn.qkv": tuple(f"transformer_blocks.{{}}.{name}" for name in QKV),
        "joint_blocks.{}.x_block.attn2.qkv": tuple(f"transformer_blocks.{{}}.attn2.to_{name}" for name in "qkv"),
        "joint_blocks.{}.context_block.attn.qkv": tuple(f"transformer_blocks.{{}}.{name}" for name in ADDED),
    },
    "z-image": {
        f"{part}.{{}}.attention.qkv": tuple(f"{part}.{{}}.attention.to_{name}" for name in "qkv")
        for part in ("layers", "noise_refiner", "context_refiner")
    },
}
FLUX = {
    "transformer_blocks.{}.attn.to_out.0": "double_blocks.{}.img_attn.proj",
    "transformer_blocks.{}.attn.to_add_out": "double_blocks.{}.txt_attn.proj",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
DIRECT: dict[str, Names] = {
    "flux1": FLUX
    | {
        "transformer_blocks.{}.norm1.linear": "double_blocks.{}.img_mod.lin",
        "transformer_blocks.{}.norm1_context.linear": "double_blocks.{}.txt_mod.lin",
        "transformer_blocks.{}.ff.net.0.proj": "double_blocks.{}.img_mlp.0",
        "transformer_blocks.{}.ff.net.2": "double_blocks.{}.img_mlp.2",
        "transformer_blocks.{}.ff_context.net.0.proj": "double_blocks.{}.txt_mlp.0",
        "transformer_blocks.{}.ff_context.net.2": "double_blocks.{}.txt_mlp.2",
        "single_transformer_blocks.{}.norm.linear": "single_blocks.{}.modulation.lin",
        "single_transformer_blocks.{}.proj_out": "single_blocks.{}.linear2",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    },
    "flux2": FLUX
    | {
        "transformer_blocks.{}.ff.linear_in": "double_blocks.{}.img_mlp.0",
        "transformer_blocks.{}.ff.linear_out": "double_blocks.{}.img_mlp.2",
        "transformer_blocks.{}.ff_context.linear_in": "double_blocks.{}.txt_mlp.0",
        "transformer_blocks.{}.ff_context.linear_out": "double_blocks.{}.txt_mlp.2",
        "single_transformer_blocks.{}.attn.to_qkv_mlp_proj": "single_blocks.{}.linear1",
        "single_transformer_blocks.{}.attn.to_out": "single_blocks.{}.linear2",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
    },
    "sd3": {
        "transformer_blocks.{}.attn.to_out.0": "joint_blocks.{}.x_block.attn.proj",
        "transformer_blocks.{}.attn2.to_out.0": "joint_blocks.{}.x_block.attn2.proj",
        "transformer_blocks.{}.attn.to_add_out": "joint_blocks.{}.context_block.attn.proj",
        "transformer_blocks.{}.ff.net.0.proj": "joint_blocks.{}.x_block.mlp.fc1",
        "transformer_blocks.{}.ff.net.2": "joint_blocks.{}.x_block.mlp.fc2",
        "transformer_blocks.{}.ff_context.net.0.proj": "joint_blocks.{}.context_block.mlp.fc1",
        "transformer_blocks.{}.ff_context.net.2": "joint_blocks.{}.context_block.mlp.fc2",
        "transformer_blocks.{}.norm1.linear": "joint_blocks.{}.x_block.adaLN_modulation.1",
        "transformer_blocks.{}.norm1_context.linear": "joint_blocks.{}.context_block.adaLN_modulation.1",
        "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    "z-image": {
        **{
            f"{part}.{{}}.attention.to_out.0": f"{part}.{{}}.attention.out"
            for part in ("layers", "noise_refiner", "context_refiner")
        },
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    },
    "krea2": {
        **{
            f"{theirs}.{{}}.{layer}": f"{ours}.{{}}.{name}"
            for theirs, ours in (
                ("transformer_blocks", "blocks"),
                ("text_fusion.layerwise_blocks", "txtfusion.layerwise_blocks"),
                ("text_fusion.refiner_blocks", "txtfusion.refiner_blocks"),
            )
            for layer, name in (
                *(("attn.to_q", "attn.wq"), ("attn.to_k", "attn.wk"), ("attn.to_v", "attn.wv"), ("attn.to_out.0", "attn.wo")),
                *(("attn.to_gate", "attn.gate"), ("ff.gate", "mlp.gate"), ("ff.up", "mlp.up"), ("ff.down", "mlp.down")),
            )
        },
        "img_in": "first",
        "time_embed.linear_1": "tmlp.0",
        "time_embed.linear_2": "tmlp.2",
        "time_mod_proj": "tproj.1",
        "text_fusion.projector": "txtfusion.projector",
        "txt_in.linear_1": "txtmlp.1",
        "txt_in.linear_2": "txtmlp.3",
        "final_layer.linear": "last.linear",
    },
    "wan": {
        **{
            f"blocks.{{}}.{theirs}.{layer}": f"blocks.{{}}.{ours}.{name}"
            for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
            for layer, name in (
                *(("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o")),
                *(("add_k_proj", "k_img"), ("add_v_proj", "v_img")),
            )
        },
        "blocks.{}.ffn.net.0.proj": "blocks.{}.ffn.0",
        "blocks.{}.ffn.net.2": "blocks.{}.ffn.2",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
        "proj_out": "head.head",
    },
}
# of FLUX all that Chroma has, and what takes the place of what FLUX makes of times and guidance
FUSED["chroma"] = FUSED["flux1"]
DIRECT["chroma"] = {
    **{name: place for name, place in DIRECT["flux1"].items() if "norm" not in name and "time_text_embed" not in name},
    "distilled_guidance_layer.layers.{}.linear_1": "distilled_guidance_layer.layers.{}.in_layer",
    "distilled_guidance_layer.layers.{}.linear_2": "distilled_guidance_layer.layers.{}.out_layer",
}
SWAPPED = {"flux1": ("norm_out.linear",), "flux2": ("norm_out.linear",), "sd3": ("norm_out.linear",)}
# names beside its own that it knows layers by; of FLUX.2, those that it has known from the first
ALIASES: dict[str, tuple[str, ...]] = {
    "flux1": (r"transformer\.(.+)",),
    "chroma": (r"transformer\.(.+)",),
    "flux2": (r"transformer\.((?:transformer_blocks\..+\.attn\.|norm_out|x_embedder|context_embedder|proj_out).*)",),
    "sd3": (r"transformer\.(.+)",),
    "qwen-image": (r"transformer\.(.+)",),
    "z-image": (r"transformer\.(.+)", r"diffusion_model\.(.+)"),
    "krea2": (),
    "wan": (),
}


def linear_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weight of each linear layer, by the layer's name."""
    return {name: layer.weight.detach() for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def places(weights: Mapping[str, Tensor], model: str) -> dict[str, Place]:
    """Where ComfyUI's model of the kind ``model`` has each of the layers of diffusers'."""
    last = max((int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks.")), default=-1)
    swapped = {*SWAPPED.get(model, ()), *([f"transformer_blocks.{last}.norm1_context.linear"] if model == "sd3" else [])}
    found = {}
    for layer in weights:
        number = re.search(r"(?<=\.)\d+(?=\.)", layer)
        pattern = layer if number is None else re.sub(r"(?<=\.)\d+(?=\.)", "{}", layer, count=1)
        index = number[0] if number else ""
        if layer in DIRECT.get(model, {}):  # whose number is no block's
            pattern = layer
        for fused, parts in FUSED.get(model, {}).items():
            if pattern in parts:
                above = [weights[part.format(index)] for part in parts[: parts.index(pattern)]]
                found[layer] = Place(fused.format(index), sum(len(weight) for weight in above))
                break
        else:
            name = DIRECT.get(model, {}).get(pattern, pattern)
            found[layer] = Place(name.format(index), swapped=layer in swapped)
    return found


def to_comfyui(weights: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """ComfyUI's weights of the same model."""
    where = places(weights, model)
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for layer, place in where.items():
        value = _swap(weights[layer]) if place.swapped else weights[layer]
        parts.setdefault(place.weight, []).append((place.start, value))
    return {name: torch.cat([value for _, value in sorted(rows, key=lambda row: row[0])]) for name, rows in parts.items()}


def load(file: Path, module: nn.Module, model: str) -> None:
    """Add the adapters in ``file`` to the weights of diffusers' ``module``, as ComfyUI adds them to its own.

    A name in the file that ComfyUI does not know fails the test; ComfyUI warns of it and goes on.
    """
    adapters, weights = load_file(file), linear_weights(module)
    where, read = places(weights, model), set()
    own = to_comfyui(weights, model)
    for name in sorted({key.rsplit(".lora_", 1)[0] for key in adapters}):
        alpha, up, down = (adapters.get(f"{name}.{part}") for part in ("alpha", "lora_B.weight", "lora_A.weight"))
        assert up is not None
        assert down is not None
        change = (1.0 if alpha is None else float(alpha) / len(down)) * (up @ down)
        target = _find(name, where, own, model)
        own[target.weight][target.start : target.start + len(change)] += _swap(change) if target.swapped else change
        read |= {f"{name}.{part}" for part in ("alpha", "lora_B.weight", "lora_A.weight")}
    assert set(adapters) <= read, f"lora key not loaded: {sorted(set(adapters) - read)[0]}"
    with torch.no_grad():
        for layer, place in where.items():
            rows = own[place.weight][place.start : place.start + len(weights[layer])]
            module.get_submodule(layer).weight.copy_(_swap(rows) if place.swapped else rows)


def _find(name: str, where: Mapping[str, Place], own: Mapping[str, Tensor], model: str) -> Place:
    if (weight := name.removeprefix("diffusion_model.")) != name and weight in own:
        return Place(weight)
    for alias in ALIASES[model]:
        if (found := re.fullmatch(alias, name)) and found[1] in where:
            return where[found[1]]
    raise AssertionError(f"lora key not loaded: {name}")


def _swap(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2)
    return torch.cat([second, first])


class Lenient(dict[str, Any]):
    """The weights of a release, with something small in the place of those that are no linear layer's."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, torch.zeros(6, 1))


def check_against_diffusers(weights: Mapping[str, Tensor], model: str, convert: Callable[..., dict[str, Tensor]]) -> None:
    """diffusers' converter of the original release makes the same of ComfyUI's weights as they were made of."""
    own = to_comfyui(weights, model)
    biases = {f"{name}.bias": weight[:, 0] for name, weight in own.items()}
    found = convert(Lenient({f"{name}.weight": weight for name, weight in own.items()} | biases))
    for layer, weight in weights.items():
        assert torch.equal(found[f"{layer}.weight"], weight), layer


def check_names(policy: Policy, model: Any, kind: str, fresh: nn.Module, folder: Path) -> None:
    """ComfyUI adds to each layer of ``fresh``, the transformer as it was, what its adapter in ``policy`` adds."""
    with stored(policy) as modules:
        (file,) = write_formatted(modules, folder, "comfyui", model, find_origin(model), "adapters")
    load(folder / file, fresh, kind)
    (trained,) = policy.modules.values()
    changed = linear_weights(fresh)
    adapted = {name: layer for name, layer in trained.named_modules() if isinstance(layer, Linear)}
    assert set(adapted) == set(changed)
    for name, layer in adapted.items():
        torch.testing.assert_close(changed[name], layer.base_layer.weight + layer.get_delta_weight("default"), msg=name)
