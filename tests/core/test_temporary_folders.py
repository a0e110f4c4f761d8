"""Folders that go with their process, however it ends."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfactory.temporary_folders import remove_abandoned, temporary_folder

HOLD = """
import time
from flowfactory.temporary_folders import temporary_folder
with temporary_folder() as folder:
    (folder / "0-0.json").touch()
    print(folder, flush=True)
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def holder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process, and the folder that it holds."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


def age(path: Path) -> None:
    os.utime(path, times=(time.time() - 90_000,) * 2)


def test_it_is_its_owners_and_gone_after_the_block(tmp_path: Path) -> None:
    with temporary_folder() as folder, temporary_folder() as other:
        assert folder.parent == tmp_path
        assert folder != other
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "a").touch()
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_process_goes_a_day_after_it_was_killed(holder: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = holder
    age(folder)
    remove_abandoned()
    assert (folder / "0-0.json").exists(), "a run may take days"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    age(folder)
    remove_abandoned()
    assert not folder.exists()


def test_a_young_one_stays(holder: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = holder
    process.kill()
    process.wait(30)
    remove_abandoned()
    assert folder.exists()


def test_what_others_named_so_stays(tmp_path: Path) -> None:
    with temporary_folder() as folder:
        ours = folder.name.rpartition("-")[0]
    kept = [tmp_path / name for name in ("flowfactory-notes", f"{ours}-other-host-abcd1234", "flowfactory-")]
    for path in kept:
        path.mkdir()
    (target := tmp_path / "target").mkdir()
    link = tmp_path / f"{ours}-abcd1234"
    link.symlink_to(target)
    for path in (*kept, target):
        age(path)
    remove_abandoned()
    assert all(path.exists() for path in (*kept, link))
