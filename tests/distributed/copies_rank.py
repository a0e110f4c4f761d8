"""What a rank of test_copies.py does: updates on two copies that two ranks each hold together, against those of one process."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowfactory.config.component import LoraTraining
from flowfactory.config.schema import DistributedConfig, TrainingConfig
from flowfactory.distributed.mesh import Room, settle
from flowfactory.distributed.process_group import join_process_group
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.distributed.sharding import full_tensor
from flowfactory.experience import Loss
from flowfactory.policy.policy import Policy
from flowfactory.testing.tiny_checkpoints import flux_transformer
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.types import Evaluation, Trainable

NAMES = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
WIDTH, TOKENS, ROUNDS, MINUTES = 32, 4, 3, 7
KINDS: dict[str, Any] = {"full": "full", "lora": LoraTraining.model_validate({"lora": {"rank": 2, "alpha": 4}})}


class Collectives:
    """Counts what the ranks do together, by its name and how many ranks take part."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        for name in ("all_reduce", "all_gather", "all_gather_object"):
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.counts[f"{name} of {dist.get_world_size(kwargs.get('group'))}"] += 1
            return function(*args, **kwargs)

        return call


def made(kind: str, ranks: Ranks) -> tuple[nn.Module, Policy, Learner]:
    torch.manual_seed(0)
    module: nn.Module = flux_transformer(8, (1, 1), (2, 16), WIDTH, WIDTH, axes_dims_rope=(4, 6, 6)).eval()
    trainable = Trainable({"transformer": module}, KINDS[kind], ("to_q", "to_v"), NAMES, "", guided=False)
    policy = Policy(trainable, lambda step: Evaluation(step.latents), torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    training = TrainingConfig.model_validate({"max_grad_norm": 1e9, "optimizer": {"lr": 1e-3, "eps": 1e-3}})
    policy.distribute(ranks, training)
    return module, policy, Learner(policy, training, ranks)


def losses(module: nn.Module, rows: list[int]) -> Iterator[Loss]:
    """One of each sample."""
    for row in rows:
        source = torch.Generator().manual_seed(row)
        given = {
            "hidden_states": torch.randn(1, TOKENS, 8, generator=source),
            "encoder_hidden_states": torch.randn(1, 5, WIDTH, generator=source),
            "pooled_projections": torch.randn(1, WIDTH, generator=source),
            "timestep": torch.rand(1, generator=source),
        }
        found = module(**given, img_ids=torch.zeros(TOKENS, 3), txt_ids=torch.zeros(5, 3), return_dict=False)[0]
        yield Loss(found.square().mean((1, 2)))


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {name: full_tensor(p.grad) for name, p in policy.parameters.items() if p.grad is not None}


def compare(kind: str, ranks: Ranks, collectives: Collectives) -> dict[str, Any]:
    every = list(range(ranks.count * ROUNDS))
    module, policy, learner = made(kind, ALONE)
    norm = learner.backward(losses(module, every), UpdateMetrics())
    expected = gradients(policy)
    module, policy, learner = made(kind, ranks)
    collectives.counts.clear()
    own_norm = learner.backward(losses(module, every[ranks.rank :: ranks.count]), UpdateMetrics())
    counts = dict(collectives.counts)
    found = gradients(policy)
    apart = torch.cat([(found[name] - grad).flatten() for name, grad in expected.items()]).norm()
    learner.apply()
    return {
        "names": sorted(found) == sorted(expected),
        "apart": float(apart) / norm,
        "norm": own_norm / norm,
        "counts": counts,
        "left": len(gradients(policy)),
    }


def settled(ranks: Ranks) -> dict[str, Any]:
    """What auto comes to on two nodes with two ranks each, where whole weights fit one card of 10 bytes and not one of 9."""
    asked: list[tuple[int, int]] = []

    def find_room(count: int, card: int) -> Room:
        asked.append((count, card))
        return Room(card > 9, f"a card has {card}")

    said: list[str] = []
    here = Ranks(ranks.rank, ranks.count, ranks.rank % 2)
    found = [
        settle(DistributedConfig.model_validate({}), here, 2, 10 - (ranks.rank == small), find_room, said.append)
        for small in (3, None)
    ]
    return {"sizes": [(chosen.replicate, chosen.shard) for chosen in found], "asked": asked, "said": said}


def main() -> None:
    torch.set_num_threads(1)
    collectives = Collectives()
    options = {"shard": 2, "replicate": 2, "timeout": MINUTES}
    config: Any = SimpleNamespace(distributed=DistributedConfig.model_validate(options), device="cpu")
    with join_process_group(config) as ranks:
        assert ranks.mesh is not None
        assert ranks.replicas is not None
        groups = (ranks.mesh.get_group(), ranks.replicas)
        found: dict[str, Any] = {kind: compare(kind, ranks, collectives) for kind in KINDS}
        found["minutes"] = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60 for group in groups]
        found["settled"] = settled(ranks)
        found["members"] = [dist.get_process_group_ranks(group) for group in groups]
        every = ranks.gather(found)
        if ranks.leads:
            Path(sys.argv[1]).write_text(json.dumps(every))


main()
