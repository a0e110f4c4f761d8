"""Whether whole weights fit a card: estimated once for a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory.config.schema import RunConfig
from flowfactory.runs.estimate import room
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.estimate.result import GIB

Load = Callable[..., RunConfig]
FULL = {"model": {"name": "net", "train": "full"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_estimate_is_of_whole_weights_and_made_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = load(FULL), list[str]()
    found = room.find_room(config, said.append, 2, 2 * GIB)
    whole = estimate(load({**FULL, "distributed": {"shard": 1}}), 2, cuda=True)
    assert whole.needed > estimate(config, 2, cuda=True).needed, "weights that are divided take less"
    assert found == room.judge(room.Whole(whole.needed, list(whole.unknown)), 2 * GIB)
    assert found.enough
    assert len(said) == 1
    monkeypatch.setattr(room, "_estimate", lambda *_: pytest.fail("estimated again"))
    assert room.find_room(load({**FULL, "output": {"dir": "elsewhere"}, "seed": 1}), said.append, 2, 2 * GIB) == found
    assert not room.find_room(config, said.append, 2, GIB).enough
    assert len(said) == 1


def test_another_config_or_number_of_ranks_is_estimated_anew(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def count(config: RunConfig, ranks: int) -> room.Whole:
        asked.append((config.training.batch_size, ranks))
        return room.Whole(GIB, [])

    monkeypatch.setattr(room, "_estimate", count)
    for size, ranks in ((2, 2), (2, 2), (4, 2), (2, 4), (4, 2)):
        room.find_room(load({**FULL, "training": {"batch_size": size}}), lambda _: None, ranks, 4 * GIB)
    assert asked == [(2, 2), (4, 2), (2, 4)]


def test_what_cannot_be_estimated_is_divided(load: Load, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def fail(*_: object) -> int:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(room, "_estimate", fail)
    found = room.find_room(load(FULL), lambda _: None, 2, 80 * GIB)
    assert found == room.Room(False, "what whole ones take cannot be estimated (NotImplementedError)")
    assert not (cache / "estimates").exists()
    monkeypatch.setattr(room, "_estimate", lambda *_: room.Whole(GIB, []))
    assert room.find_room(load(FULL), lambda _: None, 2, 80 * GIB).enough


def test_a_damaged_file_is_made_anew(load: Load, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(room, "_estimate", lambda *_: room.Whole(GIB, ["taste"]))
    first = room.find_room(load(FULL), lambda _: None, 2, 80 * GIB)
    (file,) = (cache / "estimates").iterdir()
    for damaged in ("[[[", "3", '{"needed": "many", "unknown": []}', '{"needed": 3}'):
        file.write_text(damaged)
        assert room.find_room(load(FULL), lambda _: None, 2, 80 * GIB) == first


def test_a_tenth_of_a_card_is_left_and_more_beside_rewards_of_unknown_size() -> None:
    assert room.judge(room.Whole(72 * GIB, []), 80 * GIB).enough
    assert not room.judge(room.Whole(73 * GIB, []), 80 * GIB).enough
    assert not room.judge(room.Whole(49 * GIB, ["taste"]), 80 * GIB).enough
    found = room.judge(room.Whole(48 * GIB, ["taste"]), 80 * GIB)
    assert found == room.Room(True, "48.0 GiB of a card's 80.0 GiB would be needed for whole ones, beside what taste takes")
