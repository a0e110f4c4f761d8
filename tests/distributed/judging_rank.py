"""A rank that judges made-up media, in rounds, by rewards of all kinds: judging_rank.py OUT CONTEXT, which writes into OUT."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from flowfactory import ComponentConfig, Prompt, Samples, hookimpl
from flowfactory.config.schema import DistributedConfig
from flowfactory.data.batches import make_batch, split_whole_groups
from flowfactory.distributed.context import make_context
from flowfactory.distributed.partition import split_with_padding
from flowfactory.distributed.process_group import leave_process_group
from flowfactory.distributed.ranks import Ranks
from flowfactory.rewards import Rewards
from flowfactory.training.judging import Judging
from flowfactory.training.rollouts import RankRollout
from flowfactory.types import Trajectory

MEMBERS, BATCH_SIZE = 4, 3
# the third prompt and the sixth are for one reward alone, and for none
PROMPTS = [Prompt(f"{i}", i, {"rewards": [["light"], []][i // 3 - 1]} if i in (3, 6) else {}) for i in range(11)]


class Config(ComponentConfig):
    kind: str
    timeout: float | None = None
    concurrent: bool | None = None

    def build(self, label: str) -> Light | Place:
        return Light(label) if self.kind == "light" else Place(label, self.kind)


class Light:
    """Each picture by itself."""

    pointwise = True

    def __init__(self, label: str) -> None:
        self.label, self.judged = label, 0

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        self.judged += len(samples.prompts)
        return {self.label: samples.media.flatten(1).double().mean(1)}


class Place:
    """The place in the group, which is to be whole."""

    def __init__(self, label: str, kind: str) -> None:
        self.label, self.judged = label, 0
        self.pointwise = kind  # no True, so that it counts as one that compares

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        self.judged += len(samples.prompts)
        groups, counts = torch.unique_consecutive(samples.groups, return_counts=True)
        assert set(counts.tolist()) == {MEMBERS}
        assert len(set(groups.tolist())) == len(groups)
        light = samples.media.flatten(1).mean(1).view(-1, MEMBERS)
        return {self.label: (light.argsort(1).argsort(1) + light).flatten()}


def judge(ranks: Ranks, judges: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    rewards = Rewards(
        {
            "place": Config(kind="place"),
            "light": Config(kind="light"),
            "aside": Config(kind="aside", concurrent=True),
            "bright": Config(kind="light", timeout=100),
        }
    )
    batch = make_batch(PROMPTS, MEMBERS)
    everything = torch.rand(len(batch.keys), 3, 5, 5, generator=torch.Generator().manual_seed(0))
    judging = Judging(rewards, batch, ranks, judges, None)
    workers = ranks.workers
    for rows in split_whole_groups(batch, BATCH_SIZE * workers.count):
        held = split_with_padding(range(len(rows)), workers.count)
        media = everything[[rows[i] for i in held[workers.rank]]]
        judging.add(RankRollout(Trajectory(media, media, torch.zeros(2)), held), rows)
    scores = judging.scores()
    managers = {executor.label: executor._component._component for executor in rewards._executors}
    return scores, {label: getattr(reward, "judged") for label, reward in managers.items()}  # noqa: B009


def main() -> None:
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        dist.init_process_group("gloo")
    rank = int(os.environ.get("RANK", "0"))
    ranks = Ranks(rank, count, context=make_context(DistributedConfig(context=int(sys.argv[2])), rank, count))
    found = {judges: judge(ranks, judges) for judges in {1, ranks.workers.count}}
    torch.save(found, Path(sys.argv[1]) / f"{count}-{ranks.rank}.pt")
    if count > 1:
        leave_process_group()


if __name__ == "__main__":
    main()
