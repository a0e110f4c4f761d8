"""What a rank of test_weights.py does: places a checkpoint as a run does, and tells to a JSON file what it has."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from flowfactory import RunError, stored_weights
from flowfactory.config.component import LoraConfig, LoraTraining
from flowfactory.config.schema import TrainingConfig
from flowfactory.distributed.process_group import leave_process_group
from flowfactory.distributed.ranks import Ranks
from flowfactory.models import load_module
from flowfactory.policy.blocks import find_blocks
from flowfactory.policy.policy import Policy
from flowfactory.testing.tiny_checkpoints import flux_transformer
from flowfactory.types import Trainable

BLOCKS = ("FluxTransformerBlock", "FluxSingleTransformerBlock")


def read(folder: Path, dtype: torch.dtype, stays: bool) -> Any:
    kind = type(flux_transformer(8, (1, 1), (2, 16), 32, 32, axes_dims_rope=(4, 6, 6)))
    return load_module(kind, folder, "transformer", stays=stays, dtype=dtype)


def made(module: nn.Module, train: Any, precision: torch.dtype) -> Policy:
    trainable = Trainable({"transformer": module}, train, ("to_q", "proj_mlp"), BLOCKS, "", guided=False)
    evaluate: Any = None
    return Policy(trainable, evaluate, torch.device("cpu"), precision)


def is_there(parameter: Tensor) -> bool:
    """Whether all of it has numbers in this process."""
    return not isinstance(parameter, DTensor) and not hasattr(parameter, stored_weights.STORED)


def compare(folder: Path, train: Any, dtype: torch.dtype, ranks: Ranks) -> dict[str, Any]:
    """The weights after they are divided, against those of a module that was read whole; the most blocks there were at once."""
    expected = made(read(folder, dtype, stays=False), train, dtype).modules["transformer"].state_dict()
    module = read(folder, dtype, stays=True)
    policy = made(module, train, dtype)
    blocks, place, most = find_blocks(module, BLOCKS), stored_weights.place, [0]

    def counted(part: nn.Module) -> None:
        place(part)
        frozen = [[own for name, own in block.named_parameters() if "lora_" not in name] for block in blocks]
        most.append(sum(any(map(is_there, own)) for own in frozen))

    stored_weights.place = counted
    policy.distribute(ranks, TrainingConfig.model_validate({"iterations": 1, "compile": False}))
    stored_weights.place = place
    found = module.state_dict()
    own = {name: value.full_tensor() for name, value in found.items() if isinstance(value, DTensor)}
    return {
        "sharded": len(own) == len(expected) > 0,
        "same": all(own[name].dtype == value.dtype and torch.equal(own[name], value) for name, value in expected.items()),
        "most": max(most),
        "blocks": len(blocks),
        "held": max(value.to_local().untyped_storage().nbytes() / value.numel() for value in found.values()),
    }


def in_turn(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """When the rank began and ended each kind of work, and what it was told of another's failure."""
    times = {}

    def work(first: bool) -> str:
        times["begins"] = time.monotonic()
        time.sleep(1 if first else 0)
        times["ends"] = time.monotonic()
        return f"{ranks.rank} {first}"

    def fail(first: bool) -> None:
        (folder / f"tried{ranks.rank}").touch()
        raise RunError(f"rank {ranks.rank} cannot") if first else AssertionError("the first could not either")

    found = ranks.in_turn(work)
    told = ""
    try:
        ranks.in_turn(fail)
    except RunError as error:
        told = str(error)
    return {**times, "found": found, "told": told, "tried": (folder / f"tried{ranks.rank}").exists()}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,), mesh_dim_names=("shard",))
    ranks, folder = Ranks(rank, count, rank, mesh), Path(sys.argv[1])
    lora = LoraTraining(lora=LoraConfig(rank=2, alpha=2))
    found: dict[str, Any] = {
        f"{kind} of {stored}": compare(folder / stored, train, torch.float32, ranks)
        for kind, train in (("full", "full"), ("lora", lora))
        for stored in ("float32", "bf16")
    }
    found["lora of bf16 in bf16"] = compare(folder / "bf16", lora, torch.bfloat16, ranks)
    found["in turn"] = in_turn(folder, ranks)
    (folder / f"found{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    leave_process_group()


main()
