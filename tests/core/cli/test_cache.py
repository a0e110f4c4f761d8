"""``flowfactory cache``: what it shows, and what it deletes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory.data.cache_folder import CacheFolder

Invoke = Callable[..., tuple[int, str, str]]
DAY = 86400


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    """The user's cache, with entries that were used now, 10 and 40 days ago."""
    found = CacheFolder(tmp_path / "cache")
    for number, days in enumerate((0, 10, 40)):
        key = f"{number:040x}"
        found.write(key, b"x" * 1000)
        os.utime(found.path / key[:2] / f"{key}.safetensors", times=(time.time() - days * DAY,) * 2)
    return found


def rows(out: str) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return dict(cells)


@pytest.mark.parametrize("typed", [["cache"], ["cache", "show"]])
def test_it_shows_what_is_there(typed: list[str], folder: CacheFolder, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", "50GB")
    oldest, *_, newest = sorted(file.used for file in folder.entries())
    code, out, err = invoke(*typed)
    assert (code, err) == (0, "")
    assert rows(out) == {
        "folder": str(folder.path),
        "entries": "3",
        "size": "3.0 KB",
        "limit": "50.0 GB",
        "first to go, last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(oldest)),
        "last to go, last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(newest)),
        "runs under way that need entries": "0",
        "unfinished files": "0",
    }


@pytest.mark.parametrize(
    ("limit", "size"),
    [("3KB", "3.0 KB"), ("2999B", "3.0 KB, more than the limit: the next run that encodes prompts makes room")],
)
def test_a_size_beyond_the_limit_is_told_of(
    limit: str, size: str, folder: CacheFolder, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", limit)
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = invoke("cache")
    assert (code, rows(out)["size"], err) == (0, size, "")


KILLED = """
import os, signal, sys
from pathlib import Path
from flowfactory.data.cache_folder import CacheFolder
folder = CacheFolder(Path(sys.argv[1]))
folder.need([sys.argv[2]])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("typed", [["cache"], ["cache", "clear", "--yes"], ["cache", "clear", "--older-than", "400d"]])
def test_the_leases_of_killed_runs_go_and_those_under_way_are_counted(
    typed: list[str], folder: CacheFolder, invoke: Invoke
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, folder.root, "0" * 40], check=False, timeout=60)
    (left,) = folder.path.glob(".*.needed")
    folder.need(["1" * 40])
    assert invoke(*typed)[0] == 0
    assert not left.exists()
    assert len(list(folder.path.glob(".*.needed"))) == 1
    assert rows(invoke("cache")[1])["runs under way that need entries"] == "1"


def test_a_cache_that_is_not_there_yet_is_empty(invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke("cache")
    assert (code, err, rows(out)["entries"]) == (0, "", "0")
    assert invoke("cache", "clear") == (0, f"deleted 0 entries (0 B) in {tmp_path / 'cache/conditions'}\n", "")
    assert not (tmp_path / "cache").exists()


def test_clearing_deletes_all_entries_and_nothing_else(folder: CacheFolder, invoke: Invoke) -> None:
    others = [folder.root / "thesis.tex", folder.path / "model.safetensors"]
    for path in others:
        path.touch()
    assert invoke("cache", "clear", "--yes") == (0, f"deleted 3 entries (3.0 KB) in {folder.path}\n", "")
    assert sorted(path for path in folder.path.rglob("*") if path.is_file()) == others[1:]
    assert others[0].exists()


@pytest.mark.parametrize(("given", "left"), [("30d", 2), ("240h", 1), ("9d", 1), ("0d", 0), ("400d", 3)])
def test_clearing_what_is_old_leaves_the_rest(given: str, left: int, folder: CacheFolder, invoke: Invoke) -> None:
    assert invoke("cache", "clear", "--older-than", given, "--yes")[0] == 0
    assert len(folder.entries()) == left


def test_where_nobody_can_be_asked_nothing_is_deleted(
    folder: CacheFolder, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        told = f"error: cache clear: nobody is there to be asked about 3 entries (3.0 KB) in {folder.path}; add --yes\n"
        assert invoke("cache", "clear") == (2, "", told)
    assert len(folder.entries()) == 3


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 0), (b"n\n", 3), (b"\n", 3), (b"\x04", 3)])
def test_on_a_terminal_it_asks(answer: bytes, left: int, folder: CacheFolder) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfactory", "cache", "clear"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(ours, answer)
        out, err = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert b"Traceback" not in err
    assert (b"nothing was deleted" in out) == bool(left)
    assert len(folder.entries()) == left


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("cache shwo", "flowfactory cache has no command 'shwo'; did you mean 'show'?"),
        ("cache clear --older-than 3x", "--older-than 3x: write a number of days or hours, such as 30d or 12h"),
        ("cache clear --older-than", "--older-than needs a value after it"),
        ("cache clear --all", "flowfactory cache clear has no option --all; there is --help, --older-than, --yes"),
        ("cache clear now", "flowfactory cache clear takes no 'now'; see flowfactory cache clear --help"),
    ],
)
def test_typed_wrong_it_is_one_line(typed: str, sentence: str, invoke: Invoke) -> None:
    assert invoke(*typed.split()) == (2, "", f"error: {sentence}\n")


@pytest.mark.parametrize("typed", [["cache"], ["cache", "clear", "--yes"]])
def test_a_file_in_its_place_is_one_line(typed: list[str], invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    told = f"error: {tmp_path / 'cache/conditions'} cannot be read: Not a directory; choose another with FLOWFACTORY_CACHE\n"
    assert invoke(*typed) == (2, "", told)


def test_a_size_that_is_none_is_one_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", "lots")
    told = "error: FLOWFACTORY_CACHE_SIZE: got 'lots'; write a size with its unit, such as 50GB\n"
    assert invoke("cache") == (2, "", told)


def test_whoever_samples_or_evaluates_is_warned_of_a_cache_that_anyone_can_change(
    folder: CacheFolder, invoke: Invoke, config_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = config_file({"training": {"iterations": 1}, "evaluation": {"every": 1}})
    assert invoke("run", config, "--out", tmp_path / "run")[0] == 0
    folder.root.chmod(0o1777)
    drawn, scored = invoke("sample", tmp_path / "run", "a cat"), invoke("eval", tmp_path / "run")
    for code, _, err in (drawn, scored):
        assert code == 0
        assert err.startswith(f"warning: everyone on this machine can change the cache {folder.root}, ")
        assert err.count("\n") == 1
    assert Path(drawn[1].strip()).is_file()  # and nothing else is printed
    assert "checkpoint" in json.loads(scored[1])
