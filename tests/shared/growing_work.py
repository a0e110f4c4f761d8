"""How the work of a run grows with its size, in operations and not in seconds, on the two-parameter model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowfactory.config import loading
from flowfactory.runs.train import train
from flowfactory.testing import two_parameter
from flowfactory.training.iteration import collect_rollouts, iterate
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import prepare_run
from flowfactory.training.update import split_updates

GRPO = {"name": "grpo", "clip_range": 0.2}
SDE = {"name": "flow-sde", "noise_level": 0.7}


class Work(NamedTuple):
    """Calls of functions, and elements of the tensors that operations made."""

    calls: int
    elements: int


class _Elements(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


def count_work(act: Callable[[], object]) -> Work:
    """What ``act`` takes of this thread."""
    calls = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    with _Elements() as elements:
        sys.setprofile(note)
        try:
            act()
        finally:
            sys.setprofile(before)
    return Work(calls, elements.count)


def slope(sizes: Sequence[int], work: Sequence[float]) -> float:
    """The power of the size that ``work`` grows by, less what it takes at any size; ``sizes`` double from one to the next.

    Steps of less than a thousandth of it all are none.
    """
    assert all(later == 2 * size for size, later in pairwise(sizes))
    steps = [max(later - now, 1e-3 * work[-1]) for now, later in pairwise(work)]
    return math.log2(steps[-1] / steps[0]) / (len(steps) - 1)


Measure = Callable[[Callable[[], object]], Any]


def one_iteration(folder: Path, measure: Measure, algorithm: dict[str, Any] = GRPO, **sections: Any) -> Any:
    """What the second iteration of a run takes, as ``measure`` has it."""
    run = prepare_run(_config(folder, algorithm, **sections))
    run.assembly.hooks.run_started(run.info, run.policy)
    iterate(run, 0)
    return measure(lambda: iterate(run, 1))


def _config(folder: Path, algorithm: dict[str, Any], prompts: int = 3, **sections: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    raw = two_parameter.settings(folder, algorithm, **sections)
    Path(raw["prompts"]["train"]).write_text("".join(f"{i} {'a' * (i % 7)}\n" for i in range(prompts)))
    return loading.validate(raw)


def samples(folder: Path, size: int, measure: Measure) -> Any:
    """Of 4 groups of ``size`` samples."""
    sampling = {"groups": 4, "group_size": size, "steps": 2, "dynamics": SDE}
    return one_iteration(folder, measure, sampling=sampling, training={"recompute_log_prob": True})


def pieces(folder: Path, size: int, measure: Measure) -> Any:
    """Of dividing 4 groups of ``size`` samples into optimizer steps and pieces for a forward, without the forwards."""
    sampling = {"groups": 4, "group_size": size, "steps": 2, "dynamics": SDE, "batch_size": 64}
    run = prepare_run(_config(folder, GRPO, sampling=sampling))
    run.assembly.hooks.run_started(run.info, run.policy)
    pool = collect_rollouts(run, 0, Timer(run.policy.device))

    def deal() -> None:
        for rows in split_updates(pool.experience.groups, size, 0, 0, 0):
            for _ in pool.micro_batches([[row] for row in rows], 1):
                pass

    return measure(deal)


def whole_groups(folder: Path, size: int, measure: Measure) -> Any:
    """Of dividing ``size`` groups into optimizer steps, and into pieces of whole groups."""
    run = prepare_run(_config(folder, GRPO, sampling={"groups": size, "steps": 2, "dynamics": SDE, "batch_size": 64}))
    run.assembly.hooks.run_started(run.info, run.policy)
    experience = collect_rollouts(run, 0, Timer(run.policy.device)).experience

    def deal() -> None:
        list(split_updates(experience.groups, size, 0, 0, 0))
        list(experience.group_batches())

    return measure(deal)


def groups(folder: Path, size: int, measure: Measure) -> Any:
    """Of ``size`` groups of 4 samples, which the algorithm compares, with an optimizer step for each 4 groups."""
    algorithm = {"name": "dgpo", "timesteps": {"name": "uniform", "count": 1}}
    sampling = {"groups": size, "group_size": 4, "steps": 2}
    return one_iteration(folder, measure, algorithm, sampling=sampling, training={"updates": size // 4})


def tensors(folder: Path, size: int, measure: Measure) -> Any:
    """Of 16 samples with ``size`` recorded steps."""
    return one_iteration(folder, measure, sampling={"steps": size, "dynamics": SDE, "group_size": 8})


def prompts(folder: Path, size: int, measure: Measure) -> Any:
    """Of a start with ``size`` encoded prompts, and an iteration."""
    config = _config(folder, GRPO, size, sampling={"dynamics": SDE})

    def start() -> None:
        run = prepare_run(config)
        run.assembly.hooks.run_started(run.info, run.policy)
        iterate(run, 0)

    start()  # which encodes
    return measure(start)


def iterations(folder: Path, size: int, measure: Measure) -> Any:
    """Of a run of ``size`` iterations."""
    sampling, output = {"dynamics": SDE, "steps": 3}, {"checkpoint_every": 10**6}
    config = _config(folder, GRPO, sampling=sampling, training={"iterations": size}, output=output)
    return measure(lambda: train(config, say=lambda _: None))


CASES: dict[str, tuple[Callable[[Path, int, Measure], Any], int]] = {
    "samples": (samples, 8),
    "pieces": (pieces, 16),
    "groups": (groups, 8),
    "whole groups": (whole_groups, 32),
    "tensors": (tensors, 4),
    "prompts": (prompts, 64),
    "iterations": (iterations, 2),
}
"""What grows, and its smallest size worth a look."""
