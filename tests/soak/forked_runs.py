"""Runs of the command line in children of a process that has imported all of it: killed at a mark, they cost no import.

forked_runs.py MODULE ... imports these too. It reads one JSON object a line, {"commands": [[argument, ...], ...],
"environment": {}, "log": path, "kill": {"phase": name, "visit": n, "delay": seconds} or null}, and answers with one,
{"code": exit code, negative for a signal, "marks": [[seconds, phase], ...]}. A command whose last argument is there already
is left out, as an export.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Any


def main() -> None:
    import PIL.PngImagePlugin  # noqa: F401
    import torch

    import flowfactory.cli.main
    import flowfactory.runs.export.export
    import flowfactory.runs.report.page
    import flowfactory.runs.terminal
    import flowfactory.runs.train  # noqa: F401

    for name in sys.argv[1:]:
        importlib.import_module(name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run_child(json.loads(line))), flush=True)


def run_child(asked: dict[str, Any]) -> dict[str, Any]:
    """How a child ended that did as it was ``asked``, and what it marked."""
    there, here = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(there)
        be_child(asked, here)
    os.close(here)
    marks, kill, at = [[0.0, "start"]], asked["kill"], None
    visits = {"start": 1}
    if kill and (kill["phase"], kill["visit"]) == ("start", 1):
        at = begun + kill["delay"]
    while True:
        wait = None if at is None else max(0.0, at - time.monotonic())
        if not select.select([there], [], [], wait)[0]:
            os.kill(pid, signal.SIGKILL)
            break
        told = os.read(there, 4096).decode().split()
        if not told:
            break
        for phase in told:
            marks.append([time.monotonic() - begun, phase])
            visits[phase] = visits.get(phase, 0) + 1
            if kill and at is None and (kill["phase"], kill["visit"]) == (phase, visits[phase]):
                at = time.monotonic() + kill["delay"]
    os.close(there)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": code, "marks": [*marks, [time.monotonic() - begun, "gone"]]}


def be_child(asked: dict[str, Any], marks: int) -> None:
    """Do what was asked, and end."""
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(asked["environment"], SOAK_MARKS=str(marks))
    from flowfactory.cli.main import main

    mark_files(marks)
    code: Any = 0
    for command in asked["commands"]:
        if os.path.exists(command[-1]) and command[0] == "export":
            continue
        sys.argv = ["flowfactory", *command]
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        if code:
            break
    os.write(marks, b"end\n")
    sys.stdout.flush()
    os._exit(code)


PLACES = {
    "/cache/": "encoding",
    "/checkpoints/.removing-": "removing-a-checkpoint",
    "/checkpoints/.writing-": "writing-a-checkpoint",
    "/samples/": "evaluation",
    "/out/": "export",
    "/out": "export",
    "metrics.jsonl": "metrics",
    "report.html": "report",
    "config.yaml": "config",
}
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def mark_files(marks: int) -> None:
    """Have a phase marked whenever this process is about to open, rename or remove one of its files."""
    root = os.environ["SOAK_ROOT"]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        path = next((str(a) for a in reversed(arguments[:2]) if isinstance(a, str | os.PathLike) and root in str(a)), None)
        if path is None:
            return
        phase = next((phase for place, phase in PLACES.items() if place in path.removeprefix(root)), None)
        if event == "os.rename" and "/checkpoints/.writing-" in str(arguments[0]):
            phase = "renaming-a-checkpoint"
        if phase:
            os.write(marks, f"{phase}\n".encode())

    sys.addaudithook(hear)


if __name__ == "__main__":
    main()
