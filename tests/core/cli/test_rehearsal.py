"""In processes of their own: PyTorch's threads, and what a test captures, are not to be forked."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import os, signal, sys
from flowfactory.cli.rehearsal import rehearse

def task():
    print("done")
    print("warned", file=sys.stderr)
    sys.modules["left behind"] = sys
    {end}

print("before,", end=" ")
print(rehearse(task), "left behind" in sys.modules)
"""


def rehearsed(end: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", START.format(end=end)], capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    return done.stdout, done.stderr


def test_what_is_done_is_printed_once_and_leaves_nothing_else() -> None:
    assert rehearsed("") == ("before, done\nTrue False\n", "warned\n")
    assert rehearsed("print('\\ud800'.encode(errors='backslashreplace').decode())")[0] == "before, done\n\\ud800\nTrue False\n"


@pytest.mark.parametrize(
    "end", ["1 / 0", "sys.exit(0)", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.stdout.fileno()"]
)
def test_of_what_goes_wrong_nothing_is_seen(end: str) -> None:
    assert rehearsed(end) == ("before, False False\n", "")


def test_nothing_is_tried_beside_other_threads() -> None:
    threads = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    script = START.format(end="").replace('print("before', f'import threading; {threads}\nprint("before')
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("before, False False\n", "")
