from __future__ import annotations

import io
import os
import signal

from rich.console import Console

from flowfactory.runs.stop_request import ANSWER, stop_request
from flowfactory.runs.terminal import Terminal


class Interrupted(io.StringIO):
    """What is printed, with a Ctrl+C that comes as the first line is written."""

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.startswith("iteration 1"):
            os.kill(os.getpid(), signal.SIGINT)
        return count


def test_a_line_that_is_being_printed_as_somebody_stops_the_run_is_printed_once() -> None:
    screen = Interrupted()
    terminal = Terminal(Console(file=screen, width=200))
    with stop_request(terminal.say) as asked:
        terminal.show("iteration 1/3")
        assert asked.is_set()
    assert screen.getvalue().splitlines() == ["iteration 1/3", ANSWER]
