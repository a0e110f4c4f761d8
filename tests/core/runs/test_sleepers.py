"""A process that sleeps while another run takes over its directory, and goes on where it was when it wakes up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.checkpoints.manifest import START
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.training.setup import Run


class Sleeper:
    """A lock that is lost right after the question ``asked``, while another run saves the same checkpoint."""

    def __init__(self, run: Run, folder: Path, asked: int, at_once: bool) -> None:
        self._run, self._asked, self._at_once = run, asked, at_once
        self._awake = threading.Event()
        self._theirs = Checkpoints(folder, Ranks(), run.config, require=self._wait)
        self._taker: threading.Thread | None = None
        self.count = 0

    def require(self) -> None:
        self.count += 1
        if self.count > self._asked:
            raise RunError("lost")
        if self.count == self._asked:
            self._taker = threading.current_thread()
            self._theirs.save(1, self._run.policy, self._run.learner)
            if self._at_once:
                self._theirs.finish()

    def _wait(self) -> None:
        if threading.current_thread() is not self._taker and not self._at_once:
            assert self._awake.wait(60)

    def finish_theirs(self) -> None:
        self._awake.set()
        self._theirs.finish()


@pytest.mark.parametrize("at_once", [True, False], ids=["the other has saved", "the other is saving"])
@pytest.mark.parametrize("asked", range(1, 10))
def test_of_a_checkpoint_that_was_being_written_when_its_process_fell_asleep_nothing_is_left(
    prepared: Callable[..., Run], tmp_path: Path, asked: int, at_once: bool
) -> None:
    run, folder = prepared({"model": {"name": "net", "train": "full"}}), tmp_path / "checkpoints"
    run.policy.keep_reference()
    sleeper = Sleeper(run, folder, asked, at_once)
    checkpoints = Checkpoints(folder, Ranks(), run.config, require=sleeper.require)
    with suppress(RunError):
        checkpoints.save(1, run.policy, run.learner)
    if (writing := checkpoints._writing) and writing.whole:  # of which nobody asks what came of it: the run ends elsewhere
        assert writing.whole.exception(60)
    assert sleeper.count >= asked
    sleeper.finish_theirs()
    assert sorted(path.name for path in folder.iterdir()) == ["000001", START]
    assert lookup.find(folder, 1) == folder / "000001"
