from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory.config.schema import RunConfig
from flowfactory.runs.report.run_files import read_run
from flowfactory.runs.report.verdict import facts_of
from flowfactory.runs.train import train

Load = Callable[..., RunConfig]
Invoke = Callable[..., tuple[int, str, str]]


def resumed(load: Load, **training: object) -> list[str]:
    """What a run of two iterations says when it is resumed; and what it says of its learning rate at all."""
    said: list[str] = []
    train(load({"training": {**training, "iterations": 2}}), say=lambda _: None)
    train(load({"training": training}), resume=True, say=said.append)
    return said


@pytest.mark.parametrize(("iterations", "more"), [(1, "more than"), (2, "as many as")])
def test_a_run_that_has_its_iterations_already_says_that_nothing_is_left_to_do(
    load: Load, tmp_path: Path, invoke: Invoke, iterations: int, more: str
) -> None:
    said = resumed(load, iterations=iterations)
    run = load().output.dir
    told = f"has 2 iterations already, which is {more} training.iterations {iterations}: nothing is left to do"
    assert said[-1] == f"{run} {told}"
    progress = "2 of 2" if iterations == 2 else "2"
    assert invoke("doctor", run)[1].startswith(f"{run}: {progress} iterations, ")
    assert dict(facts_of(read_run(run, print)))["iterations"] == progress
    assert progress.replace(" of ", "/") in invoke("runs", run)[1].splitlines()[1].split()


def test_a_decay_that_is_stretched_over_more_iterations_is_warned_of(load: Load) -> None:
    def rate(step: int, steps: int) -> float:
        return 0.02 * 0.5 * (1 + math.cos(math.pi * step / steps))

    (told,) = [sentence for sentence in resumed(load, iterations=4, decay="cosine") if "training.decay" in sentence]
    assert told == (
        "warning: training.decay: cosine reaches over all iterations, which are 4 now: the learning rate was "
        f"{rate(3, 4):.3g} in iteration 2, and goes on at {rate(4, 8):.3g}"
    )


@pytest.mark.parametrize("training", [{"iterations": 4}, {"iterations": 3, "decay": "constant"}])
def test_a_learning_rate_that_goes_on_as_it_was_is_not_spoken_of(load: Load, training: dict[str, object]) -> None:
    assert not [sentence for sentence in resumed(load, **training) if "learning rate" in sentence or "left to do" in sentence]
