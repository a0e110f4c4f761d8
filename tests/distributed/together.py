"""A rank: trains every config of a file in turn, and leaves the weights of each behind. together.py CONFIGS.json OUT

What is computed in bf16 has the dtypes that CUDA's autocast gives.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

from flowfactory import Policy, RunInfo, hookimpl
from flowfactory.config.loading import validate
from flowfactory.distributed.mesh import make_ranks
from flowfactory.distributed.process_group import join_process_group
from flowfactory.distributed.sharding import full_tensor, local_shard
from flowfactory.runs.estimate.stand_ins import cuda_autocast
from flowfactory.runs.train import train


class Last:
    """The policy of the last run."""

    policy: Policy

    @hookimpl
    def run_started(self, run: RunInfo, policy: Policy) -> None:
        self.policy = policy


def main() -> None:
    torch.set_num_threads(1)
    configs = [validate(raw) for raw in json.loads(Path(sys.argv[1]).read_text())]
    # off-loading wants a group even of one
    with join_process_group(next((config for config in configs if config.distributed.offload), configs[0])) as group:
        for config in configs:
            ranks = make_ranks(config, group.rank, group.count, group.local)
            last = Last()
            with cuda_autocast() if config.training.precision == "bf16" else nullcontext():
                train(config, observers=[last], say=lambda sentence: None, ranks=ranks)
            parameters = last.policy.parameters
            shard = 1 if ranks.mesh is None else ranks.mesh["shard"].size()
            assert all(local_shard(p).shape[0] < p.shape[0] for p in parameters.values() if p.shape[0] > shard > 1), (
                "not divided"
            )
            weights = {key: full_tensor(parameter.detach()).cpu() for key, parameter in parameters.items()}
            if ranks.leads:
                save_file(weights, config.output.dir / "weights.safetensors")


if __name__ == "__main__":
    main()
