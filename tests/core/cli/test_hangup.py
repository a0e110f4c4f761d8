"""A run goes on when whoever reads its output does not, and saves when its terminal is closed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowfactory.distributed.supervisor import StopRequests
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.stop_request import stop_request

ConfigFile = Callable[..., Path]
SLOW = {"rewards": {"bright": {"name": "bright", "seconds": 0.08}}, "training": {"iterations": 9}}


def flowfactory(config: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flowfactory", "run", str(config), "--out", str(out)]
    return subprocess.Popen(command, text=True, **options)


def wait_for(directory: RunDirectory, iteration: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(record["iteration"] >= iteration for record in directory.records()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("closed", "unbuffered"), [("stdout", "1"), ("both", "")])
def test_a_run_goes_on_when_nobody_reads_what_it_says(
    closed: str, unbuffered: str, config_file: ConfigFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        "import sys\nfrom flowfactory import ComponentConfig, hookimpl\n\n\n"
        "class NoisyConfig(ComponentConfig):\n    def build(self, label):\n        return Noisy()\n\n\n"
        "class Noisy:\n    @hookimpl\n    def iteration_finished(self, iteration):\n"
        '        print("to stderr", file=sys.stderr, flush=True)\n\n\n'
        '@hookimpl\ndef register_components(register):\n    register("tracker", "noisy", NoisyConfig)\n'
    )
    plugins = [str(Path(__file__).parents[1] / "toy_plugin.py"), str(noisy)]
    config = config_file({"output": {"trackers": ["noisy"]}, "plugins": plugins})
    with flowfactory(config, tmp_path / "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()  # as head -n 1 does
        if closed == "both":
            process.stderr.close()
        else:
            assert process.stderr.read() == "to stderr\n" * 4
        assert process.wait(120) == 0
    directory = RunDirectory(tmp_path / "run")
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2, 3]
    assert directory.report.exists()


def test_a_run_saves_when_its_terminal_is_closed(config_file: ConfigFile, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = flowfactory(config_file(SLOW), tmp_path / "run", start_new_session=True, preexec_fn=take_terminal, **streams)
    os.close(theirs)
    directory = RunDirectory(tmp_path / "run")
    os.set_blocking(ours, False)
    wait_for(directory, 2, process)
    os.close(ours)  # the kernel sends SIGHUP, and whatever is written now is an error
    process.send_signal(signal.SIGHUP)  # and so does the shell
    assert process.wait(120) == 130
    done = directory.records()[-1]["iteration"]
    assert 2 <= done < 9
    assert lookup.find(directory.checkpoints).name == f"{done:06d}"


def test_under_nohup_nobody_hears_of_a_terminal_that_is_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests, said = StopRequests(), list[str]()
    try:
        with requests.counted(), stop_request(said.append) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.is_set()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert (requests.count, len(said)) == (0, 1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_disk_that_is_full_is_still_an_error() -> None:
    code = "from flowfactory.distributed.hangup import outlive_readers; outlive_readers(); print('told', flush=True)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "No space left" in done.stderr
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "flowfactory", "plugins", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = "stopped: what is printed cannot be written (No space left on device); make room\n"
    assert (done.returncode, done.stderr) == (1, told)
