"""What a rank of test_blocks.py does: the gradients of sharded blocks against those of one process, to a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flowfactory.config.component import LoraConfig
from flowfactory.distributed.process_group import leave_process_group
from flowfactory.policy import blocks, lora, quantization
from flowfactory.testing.tiny_checkpoints import flux_transformer

NAMES = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
WIDTH, BATCH, TOKENS = 32, 4, 16
CASES = {
    "nf4": ("nf4", "blocks", False),
    "int8": ("int8", "every-2", False),
    "whole": (None, "blocks", False),
    "compiled": ("int8", "blocks", True),
}


def transformer(kind: str | None, setting: str, fast: bool) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = flux_transformer(8, (1, 1), (2, 16), WIDTH, WIDTH, axes_dims_rope=(4, 6, 6)).eval()
    if kind:
        quantization.quantize_blocks(module, NAMES, kind, torch.float32)
    lora.add_adapters(module, LoraConfig(rank=4, alpha=8), ("to_q", "to_k", "to_v", "to_out.0", "proj_mlp"), seed=1)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    blocks.checkpoint_blocks(module, NAMES, setting)
    if fast:
        blocks.compile_blocks(module, NAMES[1:])  # of one class: each graph takes many seconds
    return module


def forward(module: nn.Module, rows: slice) -> Tensor:
    source = torch.Generator().manual_seed(2)
    given: dict[str, Any] = {
        "hidden_states": torch.randn(BATCH, TOKENS, 8, generator=source)[rows],
        "encoder_hidden_states": torch.randn(BATCH, 5, WIDTH, generator=source)[rows],
        "pooled_projections": torch.randn(BATCH, WIDTH, generator=source)[rows],
        "timestep": torch.rand(BATCH, generator=source)[rows],
    }
    result: Tensor = module(**given, img_ids=torch.zeros(TOKENS, 3), txt_ids=torch.zeros(5, 3), return_dict=False)[0]
    return result


def gradients(module: nn.Module, rows: slice) -> dict[str, Tensor]:
    forward(module, rows).square().mean().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def compare(case: str) -> dict[str, Any]:
    expected = gradients(transformer(*CASES[case]), slice(None))
    module = transformer(*CASES[case])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*blocks.find_blocks(module, NAMES), module):
        fully_shard(part, mesh=mesh)
    share = BATCH // dist.get_world_size()
    rows = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    with torch.no_grad():  # sampling first, as a run does
        drawn = forward(module, rows)
    found = gradients(module, rows)
    weight: Any = module.get_submodule("transformer_blocks.0.attn.to_q").base_layer.weight  # type: ignore[union-attr]
    size, apart = (
        torch.cat([grad.flatten() for grad in each]) for each in (expected.values(), [found[n] - expected[n] for n in expected])
    )
    return {
        "names": sorted(found) == sorted(expected) and len(found) > 0,
        "apart": float(apart.norm() / size.norm()),
        "replayed": float((forward(module, rows).detach() - drawn).abs().max()),
        "sharded": isinstance(weight, DTensor),
        "share": weight.to_local().numel() * weight.element_size() / WIDTH**2,
        "blocks": len(blocks.find_blocks(module, NAMES)),
    }


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {case: compare(case) for case in sys.argv[2:]}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()
    leave_process_group()


main()
