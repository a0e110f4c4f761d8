"""What is read of a file that somebody else made."""

import os
import time
from pathlib import Path

import pytest

from flowfactory.untrusted_files import Refused, parse_json, read_bytes, read_json


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_bytes(path, 10, tmp_path) == b"x" * 10
    with pytest.raises(Refused, match="larger than"):
        read_bytes(path, 9)


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(Refused, match="is no file"):
            read_bytes(path, 100)
    with pytest.raises((Refused, IsADirectoryError)):
        read_bytes(tmp_path, 100)


@pytest.mark.parametrize("name", ["../secret", "link", "folder/secret"])
def test_what_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("mine")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    with pytest.raises(Refused, match="leads out"):
        read_bytes(inside / name, 100, inside)


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}")
    (tmp_path / "b").symlink_to("a")
    assert read_json(tmp_path / "b", 100, tmp_path) == {}


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"{", b"\xff", b""])
def test_json_that_is_none_or_too_deep_is_refused(text: bytes) -> None:
    with pytest.raises(Refused, match=r"^is (no JSON|nested)"):
        parse_json(text)


def test_a_file_that_is_longer_than_its_size_is_read_to_its_end() -> None:
    """As those of /proc are, and one that is appended to meanwhile."""
    path = Path("/proc/self/status")
    assert path.stat().st_size == 0
    assert read_bytes(path, 10**6).startswith(b"Name:")
    assert b"Threads:" in read_bytes(path, 10**6)
    with pytest.raises(Refused, match="is larger than"):
        read_bytes(path, 100)


def test_a_hole_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(2**40)
    begun = time.monotonic()
    with pytest.raises(Refused, match="is larger than"):
        read_bytes(tmp_path / "hole", 2**39)
    assert time.monotonic() - begun < 1


def test_a_link_to_itself_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((OSError, Refused)):
        read_bytes(tmp_path / "loop", 10, within=tmp_path)
