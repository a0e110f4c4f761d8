"""What thousands of small tensors cost in a checkpoint, beside the same bytes in a few large ones, as JSON.

    python benchmarks/checkpoints.py [--out benchmarks/results]

Two policies of adapters with the same number of bytes, with AdamW's moments: one of 2,000 factors, one of 20. Checkpoints are
saved in turn, and what counts is the ratio: a cost that follows the bytes is the same for both. `blocked` is the time that
training waits, `thread` the processor time of the thread that writes, without the disk's; the least of each over the rounds.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from report import argument_parser, machine, write_results
from torch import nn

from flowfactory.config.component import LoraTraining
from flowfactory.config.loading import validate
from flowfactory.config.schema import RunConfig, TrainingConfig
from flowfactory.distributed.ranks import Ranks
from flowfactory.policy import Policy
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.testing import two_parameter
from flowfactory.training.learner import Learner
from flowfactory.types import Evaluation, Step, Trainable

WIDTH, ROUNDS = 64, 7
SHAPES = {"many": (1000, 8), "few": (10, 800)}
"""Adapted layers, and the rank of their two factors."""


class Measured:
    """A policy of adapters, its optimizer, and the owner of its checkpoints."""

    def __init__(self, layers: int, rank: int, config: RunConfig, folder: Path) -> None:
        module = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        training = LoraTraining.model_validate({"lora": {"rank": rank}})
        made = Trainable({"transformer": module}, training, tuple(map(str, range(layers))), (), "none", guided=False)
        self.policy = Policy(made, _never, torch.device("cpu"))
        self.learner = Learner(self.policy, TrainingConfig())
        self.checkpoints = Checkpoints(folder, Ranks(), config)

    def save(self, number: int) -> dict[str, float]:
        """Seconds that the caller waits, and of processor time of the thread that writes."""
        begin = time.perf_counter()
        self.checkpoints.save(number, self.policy, self.learner)
        blocked = time.perf_counter() - begin
        self.checkpoints.finish()
        return {"blocked": blocked, "thread": sum(CLOCK)}


CLOCK: list[float] = []


def clocked(run: Any) -> Any:
    """``run`` of a thread, whose processor time is added to CLOCK."""

    def measured(thread: threading.Thread) -> None:
        run(thread)
        CLOCK.append(time.thread_time())

    return measured


def _never(step: Step) -> Evaluation:
    raise AssertionError(step)


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    threading.Thread.run = clocked(threading.Thread.run)  # type: ignore[method-assign]
    found: dict[str, dict[str, list[float]]] = {name: {"blocked": [], "thread": []} for name in SHAPES}
    with tempfile.TemporaryDirectory() as name:
        config = validate(two_parameter.settings(Path(name), {"name": "nft"}))
        made = {key: Measured(*shape, config, Path(name) / key) for key, shape in SHAPES.items()}
        for number in range(ROUNDS):
            for key, measured in made.items():
                CLOCK.clear()
                for figure, seconds in measured.save(number).items():
                    found[key][figure].append(seconds)
        size = {
            key: sum(file.stat().st_size for file in (Path(name) / key / "000000").rglob("*") if file.is_file()) for key in made
        }
    least = {key: {figure: round(min(seconds), 4) for figure, seconds in told.items()} for key, told in found.items()}
    result = {
        "machine": machine(),
        "tensors": {key: 2 * layers for key, (layers, _) in SHAPES.items()},
        "bytes": size,
        "seconds": least,
        "first": {key: {figure: round(seconds[0], 4) for figure, seconds in told.items()} for key, told in found.items()},
        "many_by_few": {figure: round(least["many"][figure] / least["few"][figure], 2) for figure in ("blocked", "thread")},
    }
    print(write_results(arguments.out / "checkpoints.json", result), end="")


if __name__ == "__main__":
    main()
