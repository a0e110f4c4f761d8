"""Small nets that optimizers step, in one process or, run by torchrun, on ranks that share the weights.

    torchrun … optimizer_shards.py FOLDER

goes on from FOLDER/one/<optimizer>, writes FOLDER/ranks/<optimizer> on the way, and the weights it ends with to
FOLDER/<optimizer>.pt.
"""

from __future__ import annotations

import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flowfactory.config.optimizers import OptimizerConfig
from flowfactory.config.schema import Optimizer as Chosen
from flowfactory.distributed.process_group import leave_process_group
from flowfactory.training import optimizers

NAMES = ("adamw", "adamw8bit", "lion", "lion8bit")
HALF, STEPS = 10, 20
CHOSEN: TypeAdapter[OptimizerConfig] = TypeAdapter(Chosen)


def chosen(name: str) -> OptimizerConfig:
    return CHOSEN.validate_python({"name": name, "weight_decay": 0.1})


def even() -> nn.Module:
    """Blocks of 256 elements that two shards cut nowhere, last shards that are short, and empty ones."""
    torch.manual_seed(1)
    widths = (256, 97, 32, 128, 3, 1)  # weights of 24832, 3104, 4096, 384 and 3 elements
    return nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))


def cut() -> nn.Module:
    """A weight whose second shard of two begins within a block."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(100, 65))


def train(net: nn.Module, optimizer: optimizers.Optimizer, start: int, end: int) -> None:
    for step in range(start, end):
        torch.manual_seed(100 + step)
        given = torch.randn(8, next(iter(net.parameters())).shape[1])
        optimizer.zero_grad()
        net(given).sin().square().mean().backward()
        optimizer.step(1e-2 * (1 - step / STEPS))


def built(name: str, net: nn.Module) -> optimizers.Optimizer:
    return optimizers.build(chosen(name), dict(net.named_parameters()))


def save(net: nn.Module, optimizer: optimizers.Optimizer, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there may be no process group
        dcp.save({"net": net.state_dict(), "optimizer": optimizer.state()}, checkpoint_id=folder)


def load(net: nn.Module, optimizer: optimizers.Optimizer, folder: Path) -> None:
    state = {"net": net.state_dict(), "optimizer": optimizer.state()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder)
    optimizer.load_state(state["optimizer"])


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in net.named_parameters()
    }


def gathered(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    shared, replicated = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    for name in NAMES:
        found = {}
        for label, mesh in {"shared": shared, "replicated": replicated}.items():
            net = fully_shard(even(), mesh=mesh)
            optimizer = built(name, net)
            train(net, optimizer, 0, HALF)
            if mesh is shared:
                save(net, optimizer, folder / "ranks" / name)
                found["empty shards"] = gathered(sum(not p.to_local().numel() for p in net.parameters()))
                found["steps"] = gathered({float(value) for key, value in optimizer.state().items() if key.endswith("/step")})
            train(net, optimizer, HALF, STEPS)
            found[label] = weights(net)
        net = fully_shard(even(), mesh=shared)
        optimizer = built(name, net)
        load(net, optimizer, folder / "one" / name)
        train(net, optimizer, HALF, STEPS)
        found["resumed"] = weights(net)
        if "8bit" in name:
            net = fully_shard(cut(), mesh=shared)
            optimizer = built(name, net)
            train(net, optimizer, 0, HALF)
            save(net, optimizer, folder / "cut" / name)
            again = fully_shard(cut(), mesh=shared)
            resumed = built(name, again)
            load(again, resumed, folder / "cut" / name)
            for each, by in ((net, optimizer), (again, resumed)):
                train(each, by, HALF, STEPS)
            found["cut"], found["cut, resumed"] = weights(net), weights(again)
        if dist.get_rank() == 0:
            torch.save(found, folder / f"{name}.pt")
    dist.barrier()
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
