"""A rank: trains every config of a file in turn, and leaves the weights of each behind. together.py CONFIGS.json OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from flowfactory import Policy, RunInfo, hookimpl
from flowfactory.config import validate
from flowfactory.distributed import join, whole
from flowfactory.loop import train


class Last:
    """The policy of the last run."""

    policy: Policy

    @hookimpl
    def run_started(self, run: RunInfo, policy: Policy) -> None:
        self.policy = policy


def main() -> None:
    torch.set_num_threads(1)
    configs = [validate(raw) for raw in json.loads(Path(sys.argv[1]).read_text())]
    with join(configs[0]) as ranks:
        for config in configs:
            last = Last()
            train(config, observers=[last], say=lambda sentence: None, ranks=ranks)
            weights = {key: whole(parameter.detach()) for key, parameter in last.policy.parameters.items()}
            if ranks.leads:
                save_file(weights, config.output.dir / "weights.safetensors")


if __name__ == "__main__":
    main()
