"""A rank: does the jobs of a file in turn, and leaves behind what it was told. saving.py JOBS.json"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowfactory.config.loading import validate
from flowfactory.distributed.process_group import join_process_group
from flowfactory.distributed.ranks import Ranks
from flowfactory.distributed.sharding import local_shard
from flowfactory.errors import RunError, UserError
from flowfactory.runs.checkpoints import save
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.train import train
from flowfactory.training.setup import Run, prepare_run


def trains(config: Any, ranks: Ranks, resume: bool = False) -> list[str]:
    said: list[str] = []
    if not resume:
        torch.manual_seed(ranks.rank)  # to be found again
    try:
        train(config, resume, say=said.append, ranks=ranks)
    except UserError as error:
        said.append(f"error: {error}")
    return said


def opened(config: Any, ranks: Ranks) -> tuple[Run, Checkpoints]:
    run = prepare_run(config, trackers=False, ranks=ranks)
    run.assembly.hooks.run_started(run.info, run.policy)
    return run, Checkpoints(config.output.dir / "checkpoints", ranks, config)


def is_killed(config: Any, ranks: Ranks) -> list[str]:
    """One checkpoint is saved, and of a second the last rank's part is never complete."""
    run, checkpoints = opened(config, ranks)
    checkpoints.save(1, run.policy, run.learner)
    checkpoints.finish()
    if ranks.rank == ranks.count - 1:
        save.write_part = lambda *_: time.sleep(600)  # type: ignore[assignment]
    checkpoints.save(2, run.policy, run.learner)
    assert checkpoints.poll() == []
    (config.output.dir / f"under-way-{ranks.rank}").touch()
    time.sleep(600)
    raise AssertionError("nobody killed it")


def has_a_full_disk(config: Any, ranks: Ranks) -> list[str]:
    """The last rank may write no file for a while."""
    run, checkpoints = opened(config, ranks)
    told = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in (1, 2, 3):
        full = number == 2 and ranks.rank == ranks.count - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 if full else before[0], before[1]))
        try:
            checkpoints.save(number, run.policy, run.learner)
            while checkpoints.poll() == []:
                time.sleep(0.01)
            told.append(f"saved {number}")
        except RunError as error:
            told.append(str(error))
    return told


def is_spoiled(config: Any, ranks: Ranks) -> list[str]:
    """The last rank's part of a weight, and then of a moment, is not finite."""
    run, checkpoints = opened(config, ranks)
    told = []
    for state in (run.policy.state(), run.learner.state()):
        name = next(name for name in state if name.endswith(("0.weight", "0.weight/exp_avg_sq")))
        own = local_shard(state[name])
        kept = own.clone()
        if ranks.rank == ranks.count - 1:
            own.flatten()[-1] = torch.inf
        try:
            run.learner.check_weights()
        except RunError as error:
            told.append(str(error))
        checkpoints.save(len(told), run.policy, run.learner)
        checkpoints.finish()
        try:
            checkpoints.restore(run.policy, run.learner)
        except UserError as error:
            told.append(str(error))
        own.copy_(kept)
    run.learner.check_weights()
    return told


JOBS: dict[str, Callable[..., list[str]]] = {
    "train": trains,
    "killed": is_killed,
    "full disk": has_a_full_disk,
    "spoiled": is_spoiled,
}


def main() -> None:
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with join_process_group(validate(jobs[0]["config"])) as ranks:
        for job in jobs:
            config = validate(job.pop("config"))
            told = JOBS[job.pop("do")](config, ranks, **job)
            (config.output.dir / f"told-{ranks.rank}.json").write_text(json.dumps(told))
            ranks.barrier()


if __name__ == "__main__":
    assert os.environ["OMP_NUM_THREADS"] == "1"
    main()
