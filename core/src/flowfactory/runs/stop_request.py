"""A run is asked to stop by a signal, finishes its iteration and saves it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import FrameType

from flowfactory.distributed.hangup import SIGHUP, stop_signals
from flowfactory.distributed.ranks import Ranks
from flowfactory.types import Say

ANSWER = "stopping after this iteration, which is saved; once more to stop at once"


class StopRequest:
    """Set by the first Ctrl+C, SIGTERM or SIGHUP; the second one acts as always, but SIGHUP is only heard once."""

    def __init__(self, say: Say) -> None:
        self._say, self._asked = say, False
        heard = threading.current_thread() is threading.main_thread()  # which alone may set handlers
        self._before = {number: signal.getsignal(number) for number in stop_signals()} if heard else {}
        self._answers = SimpleQueue[str | None]()
        # not the handler itself, which may have interrupted a line that is just being printed, and would print it again
        self._speaker = threading.Thread(target=self._speak, name="stop request", daemon=True)

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._asked

    def open(self) -> None:
        """Hear of the signals, and answer, until :meth:`close`."""
        self._speaker.start()
        self.listen()

    def close(self) -> None:
        """Have the signals act as they did before; what was asked is answered."""
        self.stop_listening()
        self._answers.put(None)
        self._speaker.join()

    def listen(self) -> None:
        """Hear of the signals from now on."""
        for which in self._before:
            signal.signal(which, self._ask)

    def stop_listening(self) -> None:
        """Have the signals act as they did before."""
        for which, handler in self._before.items():
            signal.signal(which, handler)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Within it a signal acts as it did before."""
        self.stop_listening()
        yield
        self.listen()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for which, handler in self._before.items():  # a terminal that is closed sends several
            signal.signal(which, signal.SIG_IGN if which == SIGHUP else handler)
        self._answers.put(ANSWER)

    def _speak(self) -> None:
        while (answer := self._answers.get()) is not None:
            with suppress(OSError):  # the next line of the run meets the same
                self._say(answer)


@contextmanager
def stop_request(say: Say) -> Iterator[StopRequest]:
    """What was asked of this process within it."""
    asked = StopRequest(say)
    asked.open()
    try:
        yield asked
    finally:
        asked.close()


@contextmanager
def stops_at_once(ranks: Ranks) -> Iterator[None]:
    """Within it SIGTERM and SIGHUP are what Ctrl+C is, where nothing is to be saved first: observers hear of the end.

    One of several ranks may be waiting for the others in a call that hears of nothing; it just ends, as always.
    """
    if ranks.count > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    changed = [number for number in stop_signals() if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
