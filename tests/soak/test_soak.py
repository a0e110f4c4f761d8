"""What holds for a few seconds, and for as long as `nox -s soak` takes: nothing grows, and no kill loses anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kills import LORA, kill_and_resume
from long_run import Figures, rising, train_for_long
from rank_kills import kill_ranks_and_launchers

MIB = 2**20
MEASUREMENTS = 40
Option = Callable[[str], int]


def test_a_short_run_holds_what_it_held(tmp_path: Path) -> None:
    measured = train_for_long(tmp_path, iterations=40, measurements=20)
    assert measured.problems() == []
    assert len(measured.run) >= 8


def test_a_few_killed_runs_are_resumed_bitwise(tmp_path: Path) -> None:
    tally = kill_and_resume(tmp_path, count=4, iterations=4, seed=1)
    assert tally.trouble == []
    assert tally.killed.total() >= 3


def test_what_grows_is_found() -> None:
    def figures(**growing: float) -> list[Figures]:
        base = {"memory": 500 * MIB, "descriptors": 30, "threads": 8, "processes": 2, "temporary": 1, "files": 20}
        return [
            Figures(i, **{name: int(value + i * growing.get(name, 0)) for name, value in base.items()})
            for i in range(MEASUREMENTS)
        ]

    assert rising(figures()) == []
    assert rising(figures(descriptors=-0.5)) == []
    assert rising(figures(memory=MIB / 4)) == []
    assert rising(figures(memory=2 * MIB)) == ["memory rose from 529.0 MiB to 569.0 MiB"]
    for name, said in {
        "descriptors": "descriptors",
        "threads": "threads",
        "processes": "processes",
        "temporary": "temporary files",
        "files": "files of the run",
    }.items():
        (problem,) = rising(figures(**{name: 0.1}))
        assert problem.startswith(f"{said} rose from ")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_long_run_holds_what_it_held(tmp_path: Path, option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    measured = train_for_long(tmp_path, option("--iterations"), MEASUREMENTS)
    with capsys.disabled():
        print(f"\n{measured.table()}")
    assert measured.problems() == []


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_runs_are_resumed_bitwise(tmp_path: Path, option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    kills = option("--kills")
    tally = kill_and_resume(tmp_path, kills, iterations=6, seed=option("--kill-seed"), train=LORA)
    with capsys.disabled():
        print(f"\n{tally.table()}")
    assert tally.trouble == []
    assert tally.killed.total() >= 0.8 * kills  # the others were over before their instant


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_runs_that_lose_a_rank_or_the_launcher_are_resumed_bitwise(
    tmp_path: Path, option: Option, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = kill_ranks_and_launchers(tmp_path, option("--rank-kills"), option("--kill-seed"))
    with capsys.disabled():
        print(f"\n{tally.table()}")
    assert tally.trouble == []
