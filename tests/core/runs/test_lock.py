"""Real processes that want one run directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flowfactory.errors import RunError, UserError
from flowfactory.runs import facts, lock
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.holder import Holder
from flowfactory.runs.lock import LOCK, held

Start = Callable[..., subprocess.Popen[str]]
SLOW = {"rewards": {"bright": {"name": "bright", "seconds": 0.1}}, "training": {"iterations": 6}}
WORKER = """
import sys, time
from pathlib import Path
from flowfactory.errors import UserError
from flowfactory.runs.lock import held
print("ready", flush=True)
for line in sys.stdin:
    folder, when = line.rsplit(maxsplit=1)
    while time.time() < float(when):
        pass
    try:
        with held(Path(folder), print):
            print("won", flush=True)
            sys.stdin.readline()
    except UserError as error:
        print(error, flush=True)
        sys.stdin.readline()
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [tell(worker) for worker in started] == ["ready\n"] * 3
    yield started
    for worker in started:
        worker.communicate(timeout=60)


def tell(worker: subprocess.Popen[str], line: str | None = None) -> str:
    """What the worker says next, after it was told ``line``."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    return worker.stdout.readline()


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def leave(folder: Path, **changes: Any) -> bytes:
    """A lock that another process left in ``folder``."""
    folder.mkdir(exist_ok=True)
    content = replace(Holder.this_process(folder), **changes).as_json(indent=1).encode()
    (folder / LOCK).write_bytes(content)
    return content


@pytest.mark.parametrize("left_behind", [False, True], ids=["free", "left behind"])
def test_of_those_who_want_a_run_directory_at_once_exactly_one_gets_it(
    workers: list[subprocess.Popen[str]], tmp_path: Path, left_behind: bool
) -> None:
    gone = ended_process()
    for i in range(20):
        folder = tmp_path / f"a run {i}"
        if left_behind:
            leave(folder, pid=gone)
        when = time.time() + 0.01
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{folder} {when}\n")
            worker.stdin.flush()
        said = [tell(worker) for worker in workers]
        winner = said.index("won\n")
        others = [line for line in said if line != "won\n"]
        assert len(others) == 2
        assert all(line.startswith(f"{folder} is in use by process {workers[winner].pid} on ") for line in others)
        assert [tell(worker, "") for worker in workers] == ["done\n"] * 3
        assert list(folder.iterdir()) == []


def test_without_hard_links_there_is_one_owner_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as exFAT does

    monkeypatch.setattr(os, "link", refuse)
    gone = ended_process()
    for pid in (None, gone):
        if pid:
            leave(tmp_path, pid=pid)
        with held(tmp_path, print):
            assert Holder.read((tmp_path / LOCK).read_bytes()).pid == os.getpid()  # type: ignore[union-attr]
            with pytest.raises(UserError, match="is in use by process"), held(tmp_path, print):
                pass
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"pid": None}, {"started": "1"}], ids=["its process is gone", "its number went on"])
def test_what_a_killed_process_of_this_system_left_is_taken_over_at_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    leave(tmp_path, **{"pid": ended_process(), "started": "1"} | {k: v for k, v in changes.items() if v})
    began = time.monotonic()
    with held(tmp_path, pytest.fail):
        pass
    assert time.monotonic() - began < 1


def test_a_claim_whose_process_was_killed_while_taking_over_is_taken_over_too(tmp_path: Path) -> None:
    gone = ended_process()
    first = leave(tmp_path, pid=gone)
    claim = tmp_path / f".{lock._token(first)}{lock.TAKEN}"
    claim.write_bytes(replace(Holder.this_process(tmp_path), pid=gone).as_json(indent=1).encode())
    with held(tmp_path, pytest.fail):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("chain", ["circle of one", "circle of two", "long"])
def test_claims_without_an_end_cost_one_line(tmp_path: Path, chain: str) -> None:
    gone = ended_process()
    first = leave(tmp_path, pid=gone)
    others = [replace(Holder.this_process(tmp_path), pid=gone).as_json(indent=1).encode() for _ in range(1000)]
    contents = {"circle of one": [first, first], "circle of two": [first, others[0], first], "long": [first, *others]}[chain]
    for before, content in pairwise(contents):
        (tmp_path / f".{lock._token(before)}{lock.TAKEN}").write_bytes(content)
    told = rf"^{tmp_path / LOCK}: cannot be taken; delete it if nobody runs there$"
    began = time.monotonic()
    with pytest.raises(UserError, match=told), held(tmp_path, pytest.fail):
        pass
    assert time.monotonic() - began < 5
    (tmp_path / LOCK).unlink()
    with held(tmp_path, pytest.fail):
        pass


def test_a_process_that_cannot_be_looked_at_lives_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1.0)
    leave(tmp_path, system="another", host="node7", pid=os.getpid())
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    said: list[str] = []
    try:
        told = rf"is in use by process \d+ on node7, since .*delete {tmp_path / LOCK}$"
        with pytest.raises(UserError, match=told), held(tmp_path, said.append):
            pass
    finally:
        over.set()
        thread.join()
    with held(tmp_path, said.append):
        pass
    assert len(said) == 2
    assert said[0].endswith("; waiting 1 seconds for a sign of it")


def test_nobody_waits_for_what_was_left_elsewhere_long_ago(tmp_path: Path) -> None:
    leave(tmp_path, system="another")
    long_ago = time.time() - 3600
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    with held(tmp_path, pytest.fail):
        pass


def test_the_holders_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with held(tmp_path, print) as mine:
        facts.begin(tmp_path / facts.FACTS, mine.token)
        seen = set()
        until = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < until:
            seen.add((tmp_path / LOCK).stat().st_mtime_ns)
        assert len(seen) == 3
        (tmp_path / LOCK).unlink()  # by hand, though the run goes on
        while not (tmp_path / LOCK).exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / LOCK).exists()


def test_a_copy_of_a_run_directory_in_use_is_free(tmp_path: Path) -> None:
    with held(tmp_path / "a", print):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        with held(tmp_path / "b", pytest.fail):
            pass
        with pytest.raises(UserError, match="is in use"), held(tmp_path / "a", print):
            pass


def test_a_run_that_lost_its_directory_ends(tmp_path: Path) -> None:
    with held(tmp_path, print) as mine:
        facts.begin(tmp_path / facts.FACTS, mine.token)
        mine.require()
        other = leave(tmp_path, host="node7", pid=5)
        with pytest.raises(RunError, match=rf"^{tmp_path} was taken over by process 5 on node7, since .*"):
            mine.require()
    assert (tmp_path / LOCK).read_bytes() == other  # which is not ours to remove


def test_what_another_run_leaves_behind_tells_a_deleted_lock_from_a_lost_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    folder = tmp_path / "run"
    with held(folder, print) as mine:
        facts.begin(folder / facts.FACTS, mine.token)
        (folder / LOCK).unlink()
        mine.require()  # somebody deleted it
        facts.record_end(folder / facts.FACTS, "finished")  # as a run does that has it meanwhile
        time.sleep(0.1)
        (folder / LOCK).unlink(missing_ok=True)
        time.sleep(0.1)
        assert not (folder / LOCK).exists()
        with pytest.raises(RunError, match=rf"^{folder} was taken over by another run, which has ended; this run leaves"):
            mine.require()
        shutil.rmtree(folder)
        with pytest.raises(RunError, match=rf"^{folder} is gone; leave a run directory where it is until its run has ended$"):
            mine.require()
    assert not folder.exists()


def test_a_run_that_wakes_up_when_another_has_finished_in_its_directory_ends_and_changes_nothing(
    config_file: Callable[..., Path], start: Start, tmp_path: Path
) -> None:
    path, out = config_file(SLOW | {"output": {"trackers": ["tensorboard"], "checkpoint_every": 1}}), tmp_path / "run"
    elsewhere = ["unshare", "-rpf", "--mount-proc"]
    if subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespaces here")
    asleep = start("run", path, "--out", out)
    wait_for_checkpoint(asleep, out)
    asleep.send_signal(signal.SIGSTOP)
    try:
        long_ago = time.time() - 3600
        os.utime(out / LOCK, (long_ago, long_ago))
        command = [*elsewhere, sys.executable, "-m", "flowfactory", "run", path, "--out", out, "--resume"]
        subprocess.run(command, capture_output=True, check=True)
        before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    finally:
        asleep.send_signal(signal.SIGCONT)
    _, err = asleep.communicate(timeout=60)
    told = f"stopped: {out} was taken over by another run, which has ended; this run leaves it alone\n"
    assert (asleep.returncode, err) == (1, told)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert [record["iteration"] for record in RunDirectory(out).records(pytest.fail)] == [*range(7)]


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    until = time.monotonic() + 60
    while not (out / "checkpoints").is_dir() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")], ids=["fifo", "folder", "link"])
def test_what_is_no_lock_costs_one_line(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / LOCK)
    with pytest.raises(UserError, match=rf"^{tmp_path / LOCK}: .*; delete it if nobody runs there$"), held(tmp_path, print):
        pass


def test_a_second_run_is_refused_and_a_killed_ones_lock_is_not_in_the_way(
    config_file: Callable[..., Path], start: Start, invoke: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path, out = config_file(SLOW), tmp_path / "run"
    first = start("run", path, "--out", out)
    directory = RunDirectory(out)
    wait_for_checkpoint(first, out)
    first.send_signal(signal.SIGSTOP)
    try:
        before = [file.read_bytes() for file in (directory.config, directory.metrics, directory.facts)]
        for arguments in ((), ("--resume",)):
            code, said, told = invoke("run", path, "--out", out, "--set", "training.iterations=9", *arguments)
            assert (code, said, told.count("\n")) == (2, "", 1)
            assert told.startswith(f"error: {out} is in use by process {first.pid} on ")
        assert [file.read_bytes() for file in (directory.config, directory.metrics, directory.facts)] == before
    finally:
        first.kill()
        first.communicate()
    assert (out / LOCK).exists()
    code, _, told = invoke("run", path, "--out", out, "--resume")
    assert (code, told) == (0, "")
    assert [record["iteration"] for record in directory.records()] == [*range(7)]
    assert not (out / LOCK).exists()
