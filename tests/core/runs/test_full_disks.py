"""A disk that is full, or only reads: one line, and what was there is still there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_disk import on_read_only_disk, on_small_disk

from flowfactory.runs.directory import RunDirectory

Figures = Callable[[RunDirectory], list[dict[str, Any]]]
FILLER = """
import os, shutil
from pathlib import Path
from flowfactory import ComponentConfig, hookimpl


class FillerConfig(ComponentConfig):
    \"\"\"Leaves no room on the disk after iteration ``at``, but for a few bytes.\"\"\"

    at: int = 2

    def build(self, label):
        return Filler(self.at)


class Filler:
    def __init__(self, at):
        self.at = at

    @hookimpl
    def run_started(self, run):
        self.directory = run.directory

    @hookimpl
    def iteration_finished(self, iteration):
        if iteration == self.at:
            with open(self.directory.parent / "filler", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass


@hookimpl
def register_components(register):
    register("tracker", "filler", FillerConfig)
"""


def run(before: Sequence[str], *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*before, *map(str, command)], capture_output=True, text=True, timeout=300, check=False)


FLOWFACTORY = (sys.executable, "-m", "flowfactory")


@pytest.mark.parametrize(
    ("evaluation", "what"), [({"every": 0}, "run/metrics.jsonl"), ({"every": 1}, "run/samples/training/000002000.png")]
)
def test_a_disk_that_fills_up_ends_a_run_by_one_line_after_which_it_resumes(
    config_file: Callable[..., Path],
    toy: Path,
    tmp_path: Path,
    invoke: Callable[..., tuple[int, str, str]],
    evaluation: dict[str, int],
    what: str,
) -> None:
    (tmp_path / "filler.py").write_text(FILLER)
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    changes = {
        "plugins": [str(toy), "filler.py"],
        "output": {"trackers": ["filler"], "checkpoint_every": 100},
        "training": {"iterations": 20},
        "evaluation": evaluation,
    }
    path = config_file(changes)
    arguments = (*FLOWFACTORY, "run", path, "--out", disk / "run")
    script = '"$@"; code=$?; cp -r "$0/run" "$0/../kept"; exit $code'
    done = run(on_small_disk(disk, "256k"), "sh", "-c", script, disk, *arguments)
    assert done.returncode == 1
    told = f"stopped: {disk / what} cannot be written (No space left on device); make room, and continue with --resume; "
    assert done.stderr == f"{told}there is no checkpoint yet\n"
    lines = (kept / "metrics.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    assert [json.loads(line)["iteration"] for line in lines.splitlines()][:3] == [0, 1, 2]
    assert sorted(file.name for file in kept.glob(".*")) == []
    code, _, err = invoke(
        "run", kept / "config.yaml", "--resume", "--set", "output.trackers=[]", "--set", "training.iterations=4"
    )
    assert (code, err) == (0, "")
    assert len(RunDirectory(kept).records(pytest.fail)) == 5


def test_a_disk_that_is_full_from_the_start_is_a_mistake_of_one_line(config_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = 'head -c 1M /dev/zero > "$0/filler" 2> "$0/../ignored"; exec "$@"'
    before = [*on_small_disk(tmp_path / "disk", "64k"), "sh", "-c", script, str(tmp_path / "disk")]
    done = run(before, *FLOWFACTORY, "run", config_file(), "--out", tmp_path / "disk/run")
    told = f"error: output.dir: {tmp_path / 'disk/run'} cannot be written to: No space left on device; "
    told += "make room, or choose another --out\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_cache_for_which_there_is_no_room_costs_the_run_nothing(config_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    before = on_small_disk(tmp_path / "cache", "4k")
    done = run(before, *FLOWFACTORY, "run", config_file(), "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(f"warning: {tmp_path / 'cache/conditions'} cannot be written to (No space left on device)") == 1


ONE_AFTER_THE_OTHER = """
import sys
from flowfactory.cli.main import main
for line in sys.stdin:
    sys.argv = ["flowfactory", *line.split()]
    try:
        main()
    except SystemExit as error:
        print("code", error.code)
"""


def test_what_reads_a_run_directory_says_in_one_line_that_it_cannot_write_there(
    trained: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    directory = trained()
    page = directory.path / "report.html"
    page.write_text("what was there\n")
    run_path = str(directory.path)
    commands = [
        f"report {run_path}",
        f"report {run_path} --out {tmp_path / 'page.html'}",
        f"sample {run_path} red",
        f"sample {run_path} red --out {tmp_path / 'drawn'}",
        f"export {run_path} {run_path}/exported",
        f"run {run_path}/config.yaml --resume",
    ]
    before = on_read_only_disk(directory.path)
    done = subprocess.run(
        [*before, sys.executable, "-c", ONE_AFTER_THE_OTHER],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines() == [
        f"error: {page} cannot be written: Read-only file system; write the page elsewhere with --out FILE",
        f"error: {run_path}/samples/drawn cannot be written to: Read-only file system; choose another folder with --out",
        f"error: {run_path}/exported cannot be written: Read-only file system; choose another folder",
        f"error: output.dir: {run_path} cannot be written to: Read-only file system; "
        "see that it can be written to, or choose another --out",
    ]
    assert done.stdout.splitlines() == [
        *("code 2", str(tmp_path / "page.html"), "code 0", "code 2"),
        *(str(tmp_path / "drawn/000.png"), "code 0", "code 2", "code 2"),
    ]
    assert "<title>Run run" in (tmp_path / "page.html").read_text()
    assert page.read_text() == "what was there\n"


def test_a_report_or_an_export_for_which_there_is_no_room_leaves_what_was_there(
    trained: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    directory, disk = trained({"model": {"name": "net", "train": "full"}}), tmp_path / "disk"
    disk.mkdir()
    script = 'head -c 1M /dev/zero > "$0/filler" 2> /dev/null; "$@"; code=$?; ls -A "$0"; exit $code'
    before = [*on_small_disk(disk, "64k"), "sh", "-c", script, str(disk)]
    report = run(before, *FLOWFACTORY, "report", directory.path, "--out", disk / "page.html")
    assert (report.returncode, report.stdout) == (2, "filler\n")
    assert f"error: {disk / 'page.html'} cannot be written: No space left on device; choose another --out\n" in report.stderr
    export = run(before, *FLOWFACTORY, "export", directory.path, disk / "out")
    assert (export.returncode, export.stdout) == (1, "filler\n")
    assert f"stopped: {disk / 'out'} cannot be written (No space left on device); make room, or choose another folder\n" in (
        export.stderr
    )
    assert os.listdir(disk) == []
