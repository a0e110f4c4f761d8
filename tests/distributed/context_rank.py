"""What a rank of test_context.py does: outputs and gradients of divided tokens against those of one process, to a JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers import Flux2Transformer2DModel, QwenImageTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

from flowfactory.config.component import LoraConfig
from flowfactory.config.schema import DistributedConfig
from flowfactory.distributed.context import make_context
from flowfactory.distributed.process_group import leave_process_group
from flowfactory.distributed.ranks import Ranks
from flowfactory.distributed.sharding import full_tensor
from flowfactory.policy import blocks, lora
from flowfactory.policy.context_parallel import divide_tokens
from flowfactory.testing.tiny_checkpoints import flux_transformer

BATCH, TOKENS, TEXT, WIDTH = 4, 16, 8, 32
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_out")
ROPE = {"axes_dims_rope": (4, 6, 6)}

Inputs = Callable[[Callable[..., Tensor]], dict[str, Any]]


class Kind(NamedTuple):
    """A transformer of four heads, and what it is given, by a source of noise."""

    make: Callable[[], nn.Module]
    inputs: Inputs


def flux_inputs(noise: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "hidden_states": noise(BATCH, TOKENS, 8),
        "encoder_hidden_states": noise(BATCH, TEXT, WIDTH),
        "pooled_projections": noise(BATCH, WIDTH),
        "timestep": noise(BATCH).sigmoid(),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def flux2_inputs(noise: Callable[..., Tensor]) -> dict[str, Any]:
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), torch.zeros(1))
    text = torch.cartesian_prod(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.arange(float(TEXT)))
    given = flux_inputs(noise)
    del given["pooled_projections"]
    return {**given, "img_ids": ids[None], "txt_ids": text[None]}


def qwen_inputs(noise: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "hidden_states": noise(BATCH, TOKENS, 16),
        "encoder_hidden_states": noise(BATCH, TEXT, WIDTH),
        "encoder_hidden_states_mask": torch.arange(TEXT) < torch.tensor([8, 3, 6, 5])[:, None],
        "timestep": noise(BATCH).sigmoid(),
        "img_shapes": [[(1, 4, 4)]] * BATCH,
    }


def wan_inputs(noise: Callable[..., Tensor]) -> dict[str, Any]:
    # of the text as many tokens as there are: no rank has a part of them
    return {
        "hidden_states": noise(BATCH, 4, 2, 4, 8),
        "encoder_hidden_states": noise(BATCH, 7, WIDTH),
        "timestep": 1000 * noise(BATCH).sigmoid(),
    }


def wan_token_times(noise: Callable[..., Tensor]) -> dict[str, Any]:
    given = wan_inputs(noise)
    times = given["timestep"][:, None].repeat(1, TOKENS)
    times[:, : TOKENS // 2] = 0
    return {**given, "timestep": times}


def wan_picture_inputs(noise: Callable[..., Tensor]) -> dict[str, Any]:
    given = wan_inputs(noise)
    # the transformer tells text from the picture by the 512 tokens of text
    text = {"encoder_hidden_states": noise(BATCH, 512, WIDTH), "encoder_hidden_states_image": noise(BATCH, 5, 16)}
    return {**given, **text}


def flux() -> nn.Module:
    return flux_transformer(8, (1, 1), (4, 16), WIDTH, WIDTH, **ROPE)  # type: ignore[no-any-return]


def flux2() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )


def qwen() -> nn.Module:
    sizes = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": WIDTH}
    return QwenImageTransformer2DModel(patch_size=2, in_channels=16, out_channels=4, **sizes, **ROPE)


def wan(clip: bool = False) -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        image_dim=16 if clip else None,
        added_kv_proj_dim=48 if clip else None,
    )


KINDS = {
    "flux": Kind(flux, flux_inputs),
    "flux2": Kind(flux2, flux2_inputs),
    "qwen": Kind(qwen, qwen_inputs),
    "wan": Kind(wan, wan_inputs),
    "wan, a time a token": Kind(wan, wan_token_times),
    "wan, with a picture": Kind(lambda: wan(clip=True), wan_picture_inputs),
}


def transformer(kind: str, way: str) -> nn.Module:
    torch.manual_seed(0)
    module = KINDS[kind].make().eval()
    if way == "lora":
        module.requires_grad_(False)
        lora.add_adapters(module, LoraConfig(rank=4, alpha=8), TARGETS, seed=1)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    if way == "checkpointed":
        blocks.checkpoint_blocks(module, (), "blocks")
    return module


def inputs(kind: str, rows: slice) -> dict[str, Any]:
    source = torch.Generator().manual_seed(2)
    whole = KINDS[kind].inputs(lambda *shape: torch.randn(*shape, generator=source))
    of_all = ("img_ids", "txt_ids")
    return {name: value if name in of_all else value[rows] for name, value in whole.items()}


def gradients(module: nn.Module, kind: str, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """What comes of ``rows``, and the gradient of a loss of it that no two numbers have the same part in."""
    found: Tensor = module(**inputs(kind, rows), return_dict=False)[0]
    weights = torch.randn(BATCH, *found.shape[1:], generator=torch.Generator().manual_seed(3))[rows]
    (found.float() * weights).sum().backward()
    return found.detach().float(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def compare(kind: str, way: str, context: int) -> dict[str, Any]:
    rounded = torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16")
    with rounded:
        drawn, expected = gradients(transformer(kind, way), kind, slice(None))
    count, rank = dist.get_world_size(), dist.get_rank()
    made = make_context(DistributedConfig.model_validate({"context": context}), rank, count)
    assert made is not None
    mesh = dist.init_device_mesh("cpu", (count,), mesh_dim_names=("shard",)) if way == "sharded" else None
    ranks = Ranks(rank, count, mesh=mesh, context=made)
    module = transformer(kind, way)
    divide_tokens(module, made)
    if mesh is not None:
        ranks.shard_module(module, blocks.find_blocks(module), torch.float32)
    workers = ranks.workers
    share = BATCH // workers.count
    rows = slice(workers.rank * share, (workers.rank + 1) * share)
    with rounded:
        mine, found = gradients(module, kind, rows)
        with torch.no_grad():
            replayed = module(**inputs(kind, rows), return_dict=False)[0].float()
    if mesh is None:
        ranks.sum_in_place([found[name] for name in sorted(found)])
    apart = {name: full_tensor(found[name]) - expected[name] for name in found}
    size = {name: float(gradient.norm()) for name, gradient in expected.items()}
    return {
        "names": sorted(found) == sorted(expected) and len(found) > 3,
        "output": float((mine - drawn[rows]).abs().max() / drawn.abs().max()),
        # of all together, and of each weight by itself, but for those whose gradient is nothing but rounding
        "apart": float(torch.cat([x.flatten() for x in apart.values()]).norm()) / sum(x * x for x in size.values()) ** 0.5,
        "each": max(float(x.norm()) / size[name] for name, x in apart.items() if size[name] > 1e-3 * max(size.values())),
        "same": len({round(float(each), 12) for each in ranks.gather(float(mine.double().sum())) if each}) <= workers.count,
        "replayed": float((replayed - mine).abs().max()),
    }


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [compare(*case) for case in json.loads(sys.argv[2])]
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()
    leave_process_group()


main()
