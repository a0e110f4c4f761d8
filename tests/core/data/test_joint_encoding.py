"""Three ranks that encode together, each a process of its own; encoding_rank.py is what each does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowfactory.data.shared_disk import deal

ALL = list(range(1, 101))
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "file").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("encoding_rank.py")
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), str(port), folder], stderr=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_each_rank_encodes_its_part_and_finds_the_others(found: Found) -> None:
    asked = [rank["shared"]["asked"] for rank in found]
    assert asked == [[*range(1, 33), *range(97, 101)], list(range(33, 65)), list(range(65, 97))]
    for rank in found:
        assert (rank["shared"]["count"], rank["shared"]["right"]) == (100, True)
        assert rank["shared"]["again"] == {"count": 0, "asked": [], "right": True}


def test_how_far_all_ranks_are_is_told(found: Found) -> None:
    told = found[0]["shared"]["told"]
    assert {total for _, total in told} == {100}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == 100


def test_ranks_that_share_no_disk_encode_apart(found: Found) -> None:
    one, other, two = (rank["apart"]["asked"] for rank in found)
    assert sorted(one + two) == ALL
    assert one
    assert two
    assert other == ALL
    assert all(rank["apart"]["right"] for rank in found)


def test_where_nothing_can_be_written_each_rank_encodes_all_and_holds_it(found: Found) -> None:
    assert [rank["unwritable"] for rank in found] == [{"count": 100, "asked": ALL, "right": True}] * 3


def test_a_folder_that_only_another_rank_cannot_write_to_is_told_of_once_by_the_leading_rank(found: Found) -> None:
    assert all(rank["one_unwritable"]["right"] for rank in found)
    said = found[0]["one_unwritable"]["said"]
    (line,) = (line for line in said if "cannot be written to" in line)
    assert line.startswith("warning: on rank 1, /")
    assert line.endswith("kept in memory alone; make room there, or choose another folder with FLOWFACTORY_CACHE")


def test_an_entry_that_goes_meanwhile_is_encoded_again_by_one_rank_for_all(found: Found) -> None:
    assert sum(len(rank["lost"]["asked"]) for rank in found) == 2
    assert all(rank["lost"]["right"] for rank in found)


def test_what_one_rank_cannot_encode_is_an_error_of_all(found: Found) -> None:
    assert [rank["fails"] for rank in found] == [{"error": "no 40: too long"}] * 3
    assert [rank["fails_in_turn"] for rank in found] == [{"error": "no 40: too long"}] * 3


def test_ranks_wait_as_long_as_something_is_done_and_no_longer(found: Found) -> None:
    assert [rank["takes_long"]["done"] for rank in found] == [[0, 15, 0]] * 3
    told = "rank 1 has done nothing for 0.0333333 minutes while others waited for it; look at what it wrote, or raise "
    assert [rank["takes_long"]["error"] for rank in found] == [f"{told}distributed.timeout", None, f"{told}distributed.timeout"]
    assert [rank["takes_long"]["kind"] for rank in found] == ["lost", None, "lost"], "all are to start again"


def test_what_is_dealt_is_all_in_batches_that_do_not_depend_on_the_ranks() -> None:
    places = list(range(0, 500, 3))
    for count in (1, 2, 5, 8):
        parts = [deal(places, place, count, 32) for place in range(count)]
        assert sorted(one for part in parts for one in part) == places
        batches = [tuple(part[start : start + 32]) for part in parts for start in range(0, len(part), 32)]
        assert sorted(batches) == [tuple(places[start : start + 32]) for start in range(0, len(places), 32)]
