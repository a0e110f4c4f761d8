"""The hooks of a tracker, for any service; what goes wrong with a service is told once, and training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flowfactory.discovery.source_places import describe_exception
from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import Interrupted
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.types import RunInfo

FIRST_WAIT, LONGEST_WAIT = 60.0, 3600.0
"""Seconds after which a service that failed is tried again; each time twice as many, since trying may take long itself."""


class Service(Protocol):
    """Where a tracker passes things on to. Any exception is told as a warning, but for a UserError of :meth:`check`."""

    def check(self) -> None:
        """UserError: what the service needs of its user is missing, or is refused. One that does not answer is passed over."""

    def start(self, run: RunInfo) -> None:
        """Open it; where the run is resumed, go on with what it had before."""

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """Pass on what an iteration told, and what its evaluation drew, if there was one."""

    def end(self, how: str) -> None:
        """Close it; the run has ``finished``, was ``stopped``, or has ``failed``."""


class Tracker:
    """Passes what a run tells on to ``service``."""

    def __init__(self, name: str, service: Service, media: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._service, self._media, self._clock = name, service, media, clock
        self._run: RunInfo | None = None
        self._started = self._warned = False
        self._samples: Sequence[EvaluatedSample] = ()
        self._again, self._wait = 0.0, FIRST_WAIT

    @hookimpl
    def prepare_tracker(self) -> None:
        """Ask the service whether it would take what is sent."""
        self._service.check()

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        """Open the service."""
        self._run = run
        self._attempt(lambda: None)

    @hookimpl
    def evaluation_finished(self, samples: Sequence[EvaluatedSample]) -> None:
        """Keep what was drawn for the iteration that it belongs to."""
        self._samples = samples if self._media else ()

    @hookimpl
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Pass the figures on, and what was drawn, if there is something: before training there may be nothing."""
        samples, self._samples = self._samples, ()
        if metrics or samples:
            self._attempt(lambda: self._service.log(iteration, metrics, samples))

    @hookimpl
    def run_finished(self) -> None:
        """Close the service."""
        self._end("finished")

    @hookimpl
    def run_failed(self, error: BaseException) -> None:
        """Close the service, where it was opened."""
        self._end("stopped" if isinstance(error, Interrupted) else "failed")

    def _end(self, how: str) -> None:
        if not self._started:
            return
        self._started = False
        try:
            self._service.end(how)
        except (Exception, SystemExit) as error:
            self._warn(error, "what it had not passed on yet is in metrics.jsonl")

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do ``action`` with the service open, unless it has failed a short while ago."""
        if self._run is None or self._clock() < self._again:
            return
        try:
            if not self._started:
                self._service.start(self._run)
                self._started = True
            action()
            self._wait = FIRST_WAIT
        except (Exception, SystemExit) as error:
            self._again, self._wait = self._clock() + self._wait, min(2 * self._wait, LONGEST_WAIT)
            self._warn(error, "training goes on, and it is tried again at times; what it misses is in metrics.jsonl")

    def _warn(self, error: BaseException, told: str) -> None:
        if not self._warned and self._run is not None:
            self._run.say(f"warning: {self._name}: {describe_exception(error)}; {told}")
        self._warned = True
