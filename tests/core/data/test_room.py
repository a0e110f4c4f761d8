"""Whether there is room for what a run encodes is judged, and told, before hours go into it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowfactory.data import cache_folder
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.room import judge_room, spare_memory
from flowfactory.errors import UserError

GB = 10**9


@pytest.mark.parametrize(
    ("needed", "free", "memory", "fits"),
    [(80, 100, 0, True), (100, 100, 0, True), (120, 100, 20, False), (121, 100, 20, None), (5, 0, 5, False), (6, 0, 5, None)],
)
def test_what_the_disk_does_not_take_is_for_the_memory(needed: int, free: int, memory: int, fits: bool | None) -> None:
    assert judge_room(needed, free, memory) is fits


def test_ranks_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = spare_memory()
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert spare_memory() == pytest.approx(alone / 8, rel=0.3)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of a disk with 100 GB free, of a machine with 10 GB of memory to spare."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * GB, total=1000 * GB))
    monkeypatch.setattr(cache_folder, "spare_memory", lambda: 10 * GB)
    return []


def test_what_fits_is_told_and_what_nearly_fits_is_warned_of(told: list[str], tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 1000 * GB, told.append)
    where = f"in {tmp_path / 'conditions'}, where 100.0 GB are free"
    folder.announce(20_000, 84 * GB)
    folder.announce(25_000, 105 * GB)
    assert told == [
        f"encoding 20,000 prompts, which take about 84.0 GB {where}",
        f"warning: encoding 25,000 prompts, which take about 105.0 GB; not all fits {where}, and the rest is kept in memory; "
        "make room, or choose another folder with FLOWFACTORY_CACHE",
    ]


def test_what_fits_nowhere_is_refused(told: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        CacheFolder(tmp_path, 1000 * GB, told.append).announce(72_000, 300 * GB)
    assert str(caught.value) == (
        f"encoding 72,000 prompts, which take about 300.0 GB, which do not fit in {tmp_path / 'conditions'}, where 100.0 GB "
        "are free; make room, or choose another folder with FLOWFACTORY_CACHE"
    )
    assert told == []


def test_where_nothing_can_be_written_the_memory_alone_counts(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = CacheFolder(tmp_path / "file", 1000 * GB, told.append)
    assert not folder.write("a" * 40, b"x")
    folder.announce(2000, 8 * GB)
    assert told[1:] == ["encoding 2,000 prompts, which take about 8.0 GB in memory"]
    with pytest.raises(UserError, match="which do not fit in memory; make room, or choose another folder"):
        folder.announce(20_000, 84 * GB)


def test_a_limit_that_is_less_than_the_run_needs_is_told_of_once(told: list[str], tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 50 * GB, told.append)
    folder.announce(20_000, 84 * GB)
    folder.warn_of_limit(84 * GB)
    assert told[1:] == [
        f"warning: the prompts of this run take about 84.0 GB in {tmp_path / 'conditions'}, more than its limit of 50.0 GB; "
        "they are kept while it runs, and may be encoded again later; raise FLOWFACTORY_CACHE_SIZE"
    ]


def test_where_nothing_can_be_written_no_limit_is_told_of(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = CacheFolder(tmp_path / "file", 0, told.append)
    folder.write("a" * 40, b"x")
    folder.announce(20, GB, "pictures to learn from")
    folder.warn_of_limit(GB)
    assert [sentence.partition(" (")[0] for sentence in told] == [
        f"warning: {tmp_path / 'file/conditions'} cannot be written to",
        "encoding 20 pictures to learn from, which take about 1.0 GB in memory",
    ]
