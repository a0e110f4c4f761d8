"""A rank of a Wan transformer whose weights all train, divided under bf16: the dtypes that forwards see, and the gradients."""

from __future__ import annotations

import copy
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from flowfactory.distributed.process_group import leave_process_group
from flowfactory.distributed.ranks import Ranks
from flowfactory.distributed.sharding import full_tensor
from flowfactory.policy import blocks
from flowfactory.policy.float32_islands import is_island, keep_in_float32

NAMES = ("WanTransformerBlock",)


def made(checkpointing: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    module: nn.Module = WanTransformer3DModel(**sizes, freq_dim=16, ffn_dim=16, num_layers=2, cross_attn_norm=True).eval()
    keep_in_float32(module)
    blocks.checkpoint_blocks(module, NAMES, checkpointing)
    return module


def learned(module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    source = torch.Generator().manual_seed(1)
    video, text = (torch.randn(*shape, generator=source) for shape in ((2, 4, 2, 4, 4), (2, 3, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(video, torch.tensor([3.0, 700.0]), text, return_dict=False)[0]
    out.float().square().sum().backward()
    return out.detach(), {name: full_tensor(p.grad) for name, p in module.named_parameters() if p.grad is not None}


def seen_dtypes(module: nn.Module) -> dict[str, str]:
    """Of each weight as a forward has it, which is looked at where its own module runs, or the block around it."""
    found: dict[str, str] = {}

    def look(prefix: str, part: nn.Module, *_: Any) -> None:
        own = part.named_parameters(recurse=False)
        found.update({f"{prefix}.{name}".lstrip("."): str(parameter.dtype).removeprefix("torch.") for name, parameter in own})

    for name, part in module.named_modules():
        part.register_forward_pre_hook(partial(look, name))  # after that of fully_shard, which gathers
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, count, rank, init_device_mesh("cpu", (count,), mesh_dim_names=("shard",)))
    result = {}
    for checkpointing in ("none", "blocks"):
        whole = made(checkpointing)
        divided = copy.deepcopy(whole)
        ranks.shard_module(divided, blocks.find_blocks(divided, NAMES), torch.bfloat16, partial(is_island, divided))
        dtypes = seen_dtypes(divided)
        (expected, gradients), (found, summed) = learned(whole), learned(divided)
        apart = {
            name: float((summed[name] / count - value).norm() / value.norm().clamp_min(1e-12))
            for name, value in gradients.items()
        }
        islands = {name for name, _ in whole.named_parameters() if is_island(whole, name)}
        result[checkpointing] = {
            "same": torch.equal(found, expected),
            "apart": max(apart.values()),
            "gradients": sorted(summed) == sorted(gradients),
            "exact": sorted({dtypes[name] for name in islands}),
            "rounded": sorted({kind for name, kind in dtypes.items() if name not in islands}),
            "islands": len(islands),
        }
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(result))
    dist.barrier()
    leave_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
