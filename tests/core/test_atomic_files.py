"""Files that appear whole, and what a killed writer leaves."""

import os
import stat
import time
from pathlib import Path

import pytest

from flowfactory.atomic_files import make_temporary_folder, remove_leftovers, replacing, write_atomically


def test_a_file_appears_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half" + chr(0xD800))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_two_names_are_the_same_and_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "a") as temporary:
            names.add(temporary.name)
            assert not temporary.is_symlink()
            temporary.write_text("x")
    assert len(names) == 20
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("private", [True, False])
def test_a_private_file_is_its_owners_before_and_after(tmp_path: Path, private: bool) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a", private) as temporary:
            modes = [stat.S_IMODE(temporary.stat().st_mode)]
        modes.append(stat.S_IMODE((tmp_path / "a").stat().st_mode))
    finally:
        os.umask(before)
    assert modes == ([0o600] * 2 if private else [0o644] * 2)


def age(path: Path, seconds: float = 90_000) -> None:
    os.utime(path, times=(time.time() - seconds,) * 2, follow_symlinks=False)


def test_leftovers_go_after_a_day_and_what_is_being_written_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as old:
        raise KeyboardInterrupt
    old.touch()  # as if it had been killed instead
    folder = make_temporary_folder(tmp_path)
    (folder / "weights").write_bytes(b"x")
    young = make_temporary_folder(tmp_path)
    others = [tmp_path / name for name in ("c.writing", ".notes.writing", ".writing-000002", ".0123456789abcdef.txt")]
    for path in (old, folder, *others):
        path.touch()
        age(path)
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {young, *others}


def test_a_link_of_a_leftovers_name_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").touch()
    link = tmp_path / ".0123456789abcdef.writing"
    link.symlink_to("folder")
    age(link)
    age(tmp_path / "folder")
    remove_leftovers(tmp_path)
    assert not link.is_symlink()
    assert (tmp_path / "folder/mine").exists()


def test_a_temporary_folder_is_its_owners_and_no_two_have_one_name(tmp_path: Path) -> None:
    folders = {make_temporary_folder(tmp_path) for _ in range(20)}
    assert len(folders) == 20
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
