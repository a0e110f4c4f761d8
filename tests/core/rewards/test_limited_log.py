from __future__ import annotations

import logging
import time

import pytest

from flowfactory.cli.output import warn
from flowfactory.rewards.serving import limited_log
from flowfactory.rewards.serving.limited_log import LimitedLog


def log(handler: LimitedLog, text: str, error: Exception | None = None) -> None:
    told = (type(error), error, None) if error else None
    handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "%s", (text,), told))  # type: ignore[arg-type]


def test_what_moves_cursors_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    log(LimitedLog(warn), "\x1b[2Jgone\r\x07 \u202e…")
    assert capsys.readouterr().err == r"warning: \x1b[2Jgone\r\x07 \u202e…" + "\n"


def test_an_error_is_one_line_without_its_traceback() -> None:
    lines: list[str] = []
    log(LimitedLog(lines.append), "Exception in ASGI application\n", OSError("no space\nleft"))
    assert lines == ["warning: Exception in ASGI application: OSError: no space left"]


def test_lines_beyond_the_limit_are_counted_and_the_next_window_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_log, "WINDOW", 0.5)
    lines: list[str] = []
    handler = LimitedLog(lines.append)
    for i in range(50):
        log(handler, str(i))
    assert lines == [f"warning: {i}" for i in range(20)]
    time.sleep(1)
    assert lines[20:] == ["warning: 30 more lines were left out within 0.5 s"]
    log(handler, "again")
    assert lines[21:] == ["warning: again"]
