from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowfactory import hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.flat_iterations import count_flat
from flowfactory.runs.train import train

Load = Callable[..., RunConfig]


class Switch:
    """Rewards are flat from the iteration after ``begin`` to ``end``."""

    def __init__(self, file: Path, begin: int, end: int = 10**9) -> None:
        self.file, self.begin, self.end = file, begin, end

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        if self.begin <= iteration < self.end:
            self.file.touch()
        else:
            self.file.unlink(missing_ok=True)


@pytest.fixture
def attempt(load: Load, tmp_path: Path) -> Callable[..., tuple[list[str], str, list[str]]]:
    """Trains with rewards that are flat for a while: what was warned of, the error, the checkpoints."""

    def run(switch: tuple[int, ...], resume: bool = False, **training: Any) -> tuple[list[str], str, list[str]]:
        file, said = tmp_path / "flat", list[str]()
        config = load(
            {
                "rewards": {"bright": {"name": "bright", "flat_while": str(file)}},
                "prompts": {"heldout": None},
                "training": {"iterations": 9, **training},
                "output": {"checkpoint_every": 100},
            }
        )
        try:
            train(config, resume, [Switch(file, *switch)], said.append)
            error = ""
        except RunError as raised:
            error = str(raised)
        saved = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("0*"))
        return [sentence for sentence in said if sentence.startswith("warning: in iteration")], error, saved

    return run


Attempt = Callable[..., tuple[list[str], str, list[str]]]


def test_groups_that_lose_their_spread_are_warned_of_once_and_end_the_run_after_the_patience(
    attempt: Attempt, tmp_path: Path
) -> None:
    warned, error, saved = attempt((2,), patience_flat=3)
    assert warned == [
        "warning: in iteration 3 rewards do not differ within any group (all of 'bright' are near 0.8125), so nothing is "
        "learned from them; they differed up to iteration 2: if pictures are worse now, lower training.optimizer.lr; "
        "after 3 such iterations in a row the run stops"
    ]
    assert error == (
        "rewards have not differed within any group for 3 iterations (all of 'bright' are near 0.8125), so nothing is learned "
        "from them; they differed up to iteration 2: if pictures are worse now, lower training.optimizer.lr; "
        "look at the pictures and at the reward, or continue with --resume --set training.patience_flat=null; "
        f"the last checkpoint is {tmp_path / 'run/checkpoints/000005'}"
    )
    assert saved == ["000005"]
    assert [record["iteration"] for record in RunDirectory(tmp_path / "run").records()] == [0, 1, 2, 3, 4, 5]


def test_iterations_with_a_spread_between_them_are_not_in_a_row(attempt: Attempt, tmp_path: Path) -> None:
    warned, error, saved = attempt((2, 4), patience_flat=3)
    assert (len(warned), error, saved) == (1, "", ["000009"])
    assert count_flat(RunDirectory(tmp_path / "run").records()[:5]) == 2


def test_without_patience_the_run_goes_on(attempt: Attempt) -> None:
    warned, error, saved = attempt((2,), patience_flat=None)
    assert (len(warned), error, saved) == (1, "", ["000009"])


def test_a_resumed_run_goes_on_counting_and_may_have_another_patience(attempt: Attempt, tmp_path: Path) -> None:
    warned, error, saved = attempt((2,), iterations=4, patience_flat=3)
    assert (len(warned), error, saved) == (1, "", ["000004"])  # the last iteration ends it anyway
    warned, error, saved = attempt((2,), resume=True, patience_flat=3)
    assert len(warned) == 1
    assert error.startswith("rewards have not differed within any group for 3 iterations")
    assert saved == ["000004", "000005"]
    warned, error, saved = attempt((2, 6), resume=True, patience_flat=None)
    assert (error, saved) == ("", ["000005", "000009"])
    assert count_flat(RunDirectory(tmp_path / "run").records()) == 0


@pytest.mark.parametrize("patience", [None, 1, 10])
def test_a_last_iteration_without_a_spread_is_warned_of_and_is_no_error(attempt: Attempt, patience: int | None) -> None:
    warned, error, saved = attempt((2,), iterations=3, patience_flat=patience)
    assert [sentence.partition(" (")[0] for sentence in warned] == [
        "warning: in iteration 3 rewards do not differ within any group"
    ]
    assert (error, saved) == ("", ["000003"])


def test_rewards_that_come_to_cancel_are_named(load: Load, tmp_path: Path) -> None:
    file, said = tmp_path / "flat", list[str]()
    rewards = {
        "bright": {"name": "bright", "flat_while": str(file)},
        "glow": {"name": "bright", "weight": 2.0},
        "gloom": {"name": "bright", "scale": -2.0},
        "watched": {"name": "bright", "weight": 0.0},
    }
    config = load({"rewards": rewards, "prompts": {"heldout": None}, "training": {"iterations": 3}})
    train(config, False, [Switch(file, 1)], said.append)
    told = "all of 'bright' are near 0.8125, what 'glow' differs by is cancelled by the others, or below advantages.min_range, "
    assert any(told in sentence for sentence in said)
