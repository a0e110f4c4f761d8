"""The folder of the cache: whose its files are, which of them go, and what somebody else may have put there."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from other_user import GROUP, OTHER, USER, common_folder, run_as

from flowfactory.data.cache_folder import LARGEST_ENTRY, CacheFolder, default_folder, format_size, read_limit
from flowfactory.errors import UserError

KEYS = [f"{number:040x}" for number in range(8)]
OPEN = "import sys; from pathlib import Path; from flowfactory.data.cache_folder import *; told = [];"
OPEN += "folder = CacheFolder(Path(sys.argv[1]), 0, told.append); key = '0' * 40\n"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def age(path: Path, seconds: float) -> None:
    os.utime(path, times=(time.time() - seconds,) * 2, follow_symlinks=False)


def file_of(folder: CacheFolder, key: str) -> Path:
    return folder.path / key[:2] / f"{key}.safetensors"


@contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def test_the_folder_is_the_environments_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("FLOWFACTORY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg/flowfactory"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home/.cache/flowfactory"


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    code = "[os.environ.pop(name, None) for name in ('HOME', 'XDG_CACHE_HOME', 'FLOWFACTORY_CACHE')]\n"
    code += "try: print(flowfactory.data.cache_folder.default_folder())\nexcept Exception as error: print(repr(error))"
    sentence = "the cache has no place: this user has no home folder; set FLOWFACTORY_CACHE to a folder"
    assert run_as(OTHER, code) == f"{UserError(sentence)!r}\n"


def test_a_folder_in_the_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", "~nobody123/x")
    with pytest.raises(UserError) as caught:
        default_folder()
    assert str(caught.value) == (
        "FLOWFACTORY_CACHE: got '~nobody123/x'; there is no home folder for ~nobody123, write the whole path"
    )


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("50GB", 50 * 10**9),
        ("1.5 tb", 1500 * 10**9),
        ("2GiB", 2 * 2**30),
        ("10m", 10**7),
        ("0GB", 0),
        ("", None),
        ("700 B", 700),
        (".5 GiB", 2**29),
    ],
)
def test_the_limit_is_a_size_with_a_unit(written: str, size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", written)
    assert read_limit() == size


@pytest.mark.parametrize(
    "written",
    [
        "50",
        "-5GB",
        "much",
        "1e3GB",
        "5 bananas",
        "50Gbit",
        "10,000MB",
        "10,5GB",
        "10.000.000MB",
        "5_000MB",
        "nan",
        "GB",
        "9" * 400 + "GB",
    ],
)
def test_another_limit_is_one_line(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", written)
    with pytest.raises(UserError) as caught:
        read_limit()
    assert str(caught.value) == f"FLOWFACTORY_CACHE_SIZE: got {written!r}; write a size with its unit, such as 50GB"


def test_without_a_limit_it_takes_a_tenth_of_the_disk_and_64_gb_at_most(tmp_path: Path) -> None:
    blocks = os.statvfs(tmp_path)
    assert CacheFolder(tmp_path / "not/there/yet").limit == min(64 * 10**9, blocks.f_blocks * blocks.f_frsize // 10)
    assert format_size(64 * 10**9) == "64.0 GB"


@pytest.mark.parametrize("bits", [0o000, 0o022, 0o077])
def test_what_is_made_is_its_owners_alone(tmp_path: Path, bits: int) -> None:
    folder = CacheFolder(tmp_path / "new")
    with umask(bits):
        folder.write(KEYS[0], b"x")
    file = file_of(folder, KEYS[0])
    assert [mode(path) for path in (folder.root, folder.path, file.parent, file)] == [0o700, 0o700, 0o700, 0o600]


@pytest.mark.parametrize("bits", [0o000, 0o077])
@pytest.mark.parametrize(
    ("given", "entry"), [(0o700, 0o600), (0o711, 0o600), (0o750, 0o640), (0o755, 0o644), (0o2775, 0o664), (0o1777, 0o644)]
)
def test_an_entry_is_for_whom_a_folder_is_that_was_there(tmp_path: Path, given: int, entry: int, bits: int) -> None:
    folder = CacheFolder(tmp_path)
    tmp_path.chmod(given)
    with umask(bits):
        folder.write(KEYS[0], b"x")
    file = file_of(folder, KEYS[0])
    assert (mode(folder.path), mode(file.parent), mode(file)) == (given, given, entry)
    tmp_path.chmod(0o700)


def test_a_group_shares_what_each_of_it_writes() -> None:
    with common_folder() as there:
        (there / "cache").mkdir()
        if os.geteuid() == 0:
            os.chown(there / "cache", 0, GROUP)
        (there / "cache").chmod(0o2775)
        write = OPEN + "import os; os.umask(0o077); folder.write(key, sys.argv[2].encode()); print(folder.read(key), told)"
        assert run_as(USER, write, there / "cache", "one") == "b'one' []\n"
        assert run_as(OTHER, write, there / "cache", "two") == "b'two' []\n"
        age(file := CacheFolder(there / "cache").entries()[0].path, 7200)
        run_as(USER, OPEN + "folder.note_use(key)", there / "cache")  # another wrote it
        assert time.time() - file.stat().st_mtime < 60
        age(file, 7200)
        run_as(USER, OPEN + "folder.evict()", there / "cache")
        assert not file.exists()


def test_a_folder_that_cannot_be_written_to_is_read_and_told_of_once() -> None:
    with common_folder() as there:
        shared = CacheFolder(there)
        there.chmod(0o755)
        shared.write("0" * 40, b"theirs")
        age(shared.entries()[0].path, 7200)
        told = run_as(
            USER,
            OPEN + "new = '1' * 40; print(folder.read(key)); folder.write(new, b'x'); folder.write(new, b'x'); folder.evict()\n"
            "print(folder.read(new), folder.note_use(key), len(folder.entries())); print(*told, sep=chr(10))",
            there,
        ).splitlines()
        assert told[:2] == ["b'theirs'", "None True 1"]
        assert told[2:] == [
            f"warning: {shared.path} cannot be written to (Permission denied): what is encoded now is kept in memory alone; "
            "make room there, or choose another folder with FLOWFACTORY_CACHE"
        ]


def test_what_is_for_its_owner_is_missing_for_others() -> None:
    with common_folder() as there:
        CacheFolder(there / "cache").write("0" * 40, b"mine")
        assert run_as(USER, OPEN + "print(folder.read(key))", there / "cache") == "None\n"


def lead_out(path: Path, elsewhere: Path) -> None:
    (elsewhere / "secret").write_bytes(b"secret")
    path.symlink_to(elsewhere / "secret")


def make_huge(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_ENTRY + 1)  # a hole, which takes no room


ODD: dict[str, Callable[[Path, Path], object]] = {
    "pipe": lambda path, _: os.mkfifo(path),
    "link out": lead_out,
    "device": lambda path, _: path.symlink_to("/dev/zero"),
    "loop": lambda path, _: path.symlink_to(path),
    "dangling": lambda path, _: path.symlink_to("nowhere"),
    "huge": make_huge,
}


@pytest.mark.parametrize("kind", ODD)
def test_something_else_than_a_file_of_the_folder_is_missing_and_replaced(kind: str, tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "cache")
    folder.write(KEYS[1], b"y")
    ODD[kind](file_of(folder, KEYS[0]), tmp_path)
    begun = time.monotonic()
    assert folder.read(KEYS[0]) is None
    assert time.monotonic() - begun < 1
    folder.write(KEYS[0], b"x")
    assert folder.read(KEYS[0]) == b"x"
    assert not (tmp_path / "secret").exists() or (tmp_path / "secret").read_bytes() == b"secret"


def test_a_folder_in_an_entrys_place_stays_and_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    folder = CacheFolder(tmp_path, say=told.append)
    file_of(folder, KEYS[0]).mkdir(parents=True)
    assert folder.read(KEYS[0]) is None
    folder.write(KEYS[0], b"x")
    folder.write(KEYS[0], b"x")
    folder.write(KEYS[1], b"y")
    assert told == [
        f"warning: {file_of(folder, KEYS[0])} is another user's, or no file: it cannot be replaced, and stands for a prompt "
        "that is encoded each time; delete it, or choose another folder with FLOWFACTORY_CACHE"
    ]
    assert folder.read(KEYS[1]) == b"y"
    assert len(list(file_of(folder, KEYS[0]).parent.iterdir())) == 2


def test_anothers_entry_in_a_shared_folder_is_left_out_alone() -> None:
    with common_folder() as there:
        (there / "cache").mkdir()
        (there / "cache").chmod(0o1777)
        write = (
            OPEN + "import os; os.umask(0); new = '1' * 40; folder.write(key, b'x'); folder.write(new, sys.argv[2].encode())\n"
        )
        write += "print(folder.read(key), folder.read(new), len(told))"
        assert run_as(OTHER, OPEN + "folder.write(key, b'planted')", there / "cache") == ""
        assert run_as(USER, write, there / "cache", "mine") == "b'planted' b'mine' 1\n"


def test_a_folder_behind_a_link_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/conditions").symlink_to(tmp_path / "large disk")
    folder = CacheFolder(tmp_path / "cache")
    folder.write(KEYS[0], b"x")
    assert folder.read(KEYS[0]) == b"x"
    assert len(folder.entries()) == 1


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    told: list[str] = []
    folder = CacheFolder(tmp_path, 250, told.append)
    for hours, key in enumerate(KEYS[:5], 2):
        folder.write(key, b"x" * 100)
        age(file_of(folder, key), hours * 3600)
    assert folder.note_use(KEYS[4])  # the oldest, until now
    folder.evict()
    assert {file.path.stem for file in folder.entries()} == {KEYS[0], KEYS[4]}
    folder.evict()
    assert len(folder.entries()) == 2
    assert told == []


def test_two_that_make_room_at_once_delete_no_more_than_one(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path)
    for number in range(600):
        folder.write(key := f"{number:040x}", b"x")
        age(file_of(folder, key), 10_000 + number)
    code = "import sys; from pathlib import Path; from flowfactory.data.cache_folder import CacheFolder\n"
    code += "folder = CacheFolder(Path(sys.argv[1]), 200, print); print(flush=True); sys.stdin.read(1); folder.evict()"
    both = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.close()  # now
    assert [process.wait(60) for process in both] == [0, 0]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.read() == ""
        process.stdout.close()
    assert {file.path.stem for file in folder.entries()} == {f"{number:040x}" for number in range(200)}


def test_what_is_in_use_stays_beyond_the_limit_and_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    folder = CacheFolder(tmp_path, 150, told.append)
    for key in KEYS[:3]:
        folder.write(key, b"x" * 100)
    age(file_of(folder, KEYS[0]), 7200)
    folder.evict()
    assert {file.path.stem for file in folder.entries()} == set(KEYS[1:3])
    assert told == [
        f"warning: {folder.path} holds 200 B that is in use or another user's, more than its limit of 150 B; "
        "it is kept; raise FLOWFACTORY_CACHE_SIZE"
    ]


def test_a_clock_that_is_ahead_keeps_nothing_for_ever(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 0)
    folder.write(KEYS[0], b"x")
    age(file_of(folder, KEYS[0]), -10 * 86400)
    folder.evict()
    assert folder.entries() == []


def test_only_what_is_ours_goes(tmp_path: Path) -> None:
    """In a folder that FLOWFACTORY_CACHE names by mistake."""
    folder = CacheFolder(tmp_path, 0)
    folder.path.mkdir()
    kept = [tmp_path / "thesis.tex", *(folder.path / name for name in ("model.safetensors", f"{KEYS[0]}.bin", ".bashrc", "a"))]
    for path in kept:
        path.write_bytes(b"x" * 100)
    link = file_of(folder, KEYS[0])
    folder.write(KEYS[1], b"x")
    link.symlink_to(tmp_path / "thesis.tex")
    (folder.path / f"{KEYS[2]}.safetensors").mkdir()
    for path in (*kept, link, *folder.path.rglob("*")):
        age(path, 90_000)
    folder.evict()
    folder.remove_leftovers()
    assert not file_of(folder, KEYS[1]).exists()
    assert link.is_symlink()
    assert all(path.exists() for path in (*kept, folder.path / f"{KEYS[2]}.safetensors"))


def test_a_write_that_was_killed_leaves_what_goes_after_a_day(tmp_path: Path) -> None:
    code = OPEN + "import os, signal; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); folder.write(key, b'x')"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    folder = CacheFolder(tmp_path)
    (left,) = file_of(folder, KEYS[0]).parent.iterdir()
    assert mode(left) == 0o600
    assert folder.read("0" * 40) is None
    former = folder.path / f".{'a' * 40}.k3j_w0q8"  # as an earlier version named them
    former.touch()
    folder.remove_leftovers()
    assert len(folder.leftovers()) == 2, "they may be being written"
    for path in folder.leftovers():
        age(path, 90_000)
    folder.remove_leftovers()
    assert [path for path in folder.path.rglob("*") if path.is_file()] == []


def test_several_processes_write_the_same_entries_and_each_is_whole(tmp_path: Path) -> None:
    code = OPEN + "for n in range(300): folder.write(f'{n % 3:040x}', sys.argv[2].encode() * 50_000)\nassert not told"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), text]) for text in "ab"]
    folder, seen = CacheFolder(tmp_path, 0), set()
    while any(writer.poll() is None for writer in writers):
        folder.evict()  # which deletes nothing of what is in use
        for key in KEYS[:3]:
            seen.add(folder.read(key))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {None, b"a" * 50_000, b"b" * 50_000}
    assert len(folder.entries()) == 3
    assert folder.leftovers() == []


def test_a_disk_that_takes_no_more_is_told_of_once(tmp_path: Path) -> None:
    told: list[str] = []
    folder = CacheFolder(tmp_path, say=told.append)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for key in KEYS:
            folder.write(key, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(told) == 1
    assert [path for path in folder.path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("given", "warned"), [(0o777, True), (0o1777, True), (0o775, False), (0o755, False), (0o700, False)])
def test_a_folder_that_anyone_can_change_is_warned_of(given: int, warned: bool, tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(given)
    assert os.environ["FLOWFACTORY_CACHE"] == str(tmp_path / "cache")
    CacheFolder.from_environment(told.append)
    expected = (
        f"warning: everyone on this machine can change the cache {tmp_path / 'cache'}, and with it what is trained on; "
        f"run chmod -R o-w {tmp_path / 'cache'}, or choose another folder with FLOWFACTORY_CACHE"
    )
    assert told == ([expected] if warned else [])


def test_anothers_folder_that_nobody_chose_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from flowfactory.data.cache_folder import *; CacheFolder.from_environment(print)"
    with common_folder() as there:
        (there / "flowfactory").mkdir(mode=0o755)
        monkeypatch.setenv("XDG_CACHE_HOME", str(there))
        monkeypatch.setenv("FLOWFACTORY_CACHE", "")
        assert run_as(USER, code) == ""  # root may do so anyway
        if os.geteuid() == 0:
            os.chown(there / "flowfactory", OTHER, GROUP)
        assert run_as(USER, code).startswith(
            f"warning: the user with the number {OTHER} can change the cache {there}/flowfactory"
        )
        monkeypatch.setenv("FLOWFACTORY_CACHE", str(there / "flowfactory"))
        assert run_as(USER, code) == ""
