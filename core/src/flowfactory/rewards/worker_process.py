"""A process that holds a reward and answers one request after the other; what it does to itself is not done to others."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowfactory.discovery.source_places import describe_exception
from flowfactory.distributed.hangup import outlive_readers, stop_signals
from flowfactory.distributed.rank_process import PARENT, die_with_parent
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.process_family import ProcessFamily, lead_session
from flowfactory.types import Samples

Make = Callable[[], tuple[Any, Callable[[Samples], Any]]]
"""What a worker calls in its process, once: what it says when it is ready, and what answers requests."""

PIECE = 2**16
LONGEST = 10_000  # characters of what a reward raises
WATCH = 0.1  # seconds between two looks at whether a process that is asked lives
REAPED = 10.0  # seconds that a killed process may take to be gone; one that a driver holds takes longer


class WorkerDied(RunError):
    """The process is not there any more."""


class WorkerLate(WorkerDied):
    """The process took too long, and was killed."""


class UnexpectedError(RunError):
    """What a reward raised without meaning to say something with it."""


class WorkerProcess:
    """The process in which ``make`` makes what answers; it ends with this one, and is not told who asks this one to stop.

    own_session: what it starts is ended with it, and not with the session of this process.
    """

    def __init__(self, make: Make, own_session: bool = False) -> None:
        self._make, self._own_session = make, own_session
        self._process: BaseProcess | None = None
        self._family: ProcessFamily | None = None
        self._end: Connection | None = None

    def begin(self) -> None:
        """Start it, and do not wait until it is ready."""
        context = multiprocessing.get_context("spawn")
        self._end, there = context.Pipe()
        process = context.Process(target=_work, args=(there, os.getpid(), self._own_session, self._make))
        with _deaf_children():
            process.start()
        self._process, self._family = process, ProcessFamily(process)
        atexit.register(self._family.kill)  # before multiprocessing would wait for what ignores its SIGTERM
        weakref.finalize(self, self._family.kill)
        there.close()  # so that its death is the end of the file here

    def wait_ready(self, seconds: float | None = None) -> Any:
        """What it says when it is ready. UserError, RunError: what it raised. WorkerDied: also where it takes ``seconds``."""
        with self._watched(seconds):
            return self._receive()

    def ask(self, samples: Samples, seconds: float | None = None) -> Any:
        """Its answer. UserError, RunError: as :meth:`wait_ready`."""
        assert self._end is not None
        media = np.ascontiguousarray(samples.media.detach().float().cpu().numpy())
        nothing = torch.empty(0)
        rest = replace(samples, media=nothing, groups=nothing)
        with self._watched(seconds):
            if self._end.poll():  # what was there before its request is no answer to it
                raise _died()
            try:
                # as arrays: tensors would go through shared memory, of which containers have little
                self._end.send((media.shape, samples.groups.cpu().numpy(), rest))
                for piece in _pieces(media):
                    self._end.send_bytes(piece)
            except OSError as error:
                raise _died() from error
            return self._receive()

    def is_alive(self) -> bool:
        """Whether it is there, and was not killed."""
        return self._family is not None and self._family.lives() and self._end is not None and not self._end.closed

    def kill(self) -> str | None:
        """End it with what it started, and say how it ended by itself, in a few words; None where it did not."""
        assert self._process is not None
        assert self._family is not None
        killed = not self._family.wait(0.5)  # one that died closed its pipe a little before
        self._family.kill()
        self._family.wait(REAPED)
        atexit.unregister(self._family.kill)
        if self._end is not None:
            self._end.close()
        if killed or self._process.exitcode is None:
            return None
        if self._process.exitcode >= 0:
            return f"ended with exit code {self._process.exitcode}"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-self._process.exitcode).name}"
        return f"was ended by signal {-self._process.exitcode}"

    def _receive(self) -> Any:
        assert self._end is not None
        try:
            kind, value = self._end.recv()
        except Exception as error:  # whatever a reward wrote to a pipe that is not its own is no answer either
            raise _died() from error
        if kind is not None:
            raise kind(value)
        return value

    @contextmanager
    def _watched(self, seconds: float | None) -> Iterator[None]:
        """Have a read or a write come to an end where the process does, or after ``seconds``, when all of it is killed.

        What it started may hold the other end of the pipe, which then does not end with it.
        """
        assert self._family is not None
        assert self._end is not None
        done = threading.Event()
        late = threading.Event()

        def watch(family: ProcessFamily = self._family, end: Connection = self._end) -> None:
            latest = None if seconds is None else time.monotonic() + seconds
            while not done.wait(WATCH if latest is None else min(WATCH, max(0.0, latest - time.monotonic()))):
                if latest is not None and time.monotonic() >= latest:
                    late.set()
                    family.kill()
                if late.is_set() or not family.lives():
                    _shut(end)
                    return

        watcher = threading.Thread(target=watch, daemon=True, name="watch of a worker")
        watcher.start()
        try:
            yield
        except WorkerDied as error:
            if late.is_set():
                raise WorkerLate(f"it took more than {seconds:g} seconds") from error
            raise
        finally:
            done.set()
            watcher.join()  # before anybody closes what it may shut


def _shut(end: Connection) -> None:
    """Have reads of ``end`` find its end, after what was sent, and writes fail; on Windows a process has no forks."""
    if hasattr(socket, "AF_UNIX"):
        with suppress(OSError), socket.socket(fileno=os.dup(end.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)


def _died() -> WorkerDied:
    return WorkerDied("one of its workers died; look for what killed it, most likely a lack of memory")


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile are not told of Ctrl+C, from their first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which is started with the first of them, and unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(end: Connection, parent: int, own_session: bool, make: Make) -> None:
    """What a worker does until it is killed with its parent."""
    os.environ[PARENT] = str(parent)
    die_with_parent()
    if own_session:
        lead_session()
    # for whoever asked, who finishes what was begun; schedulers tell all processes
    outlive_readers()
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            ready, answer = make()
        except BaseException as error:
            end.send(_told(error))
            return
        end.send((None, ready))
        mine = os.getpid()
        while True:
            told = _answer(answer, _receive_samples(end))
            if os.getpid() != mine:  # a fork that came back, whose answer would be taken for that to the next request
                os._exit(0)
            end.send(told)


def _receive_samples(end: Connection) -> Samples:
    shape, groups, rest = end.recv()
    samples: Samples = rest
    media = np.empty(shape, np.float32)
    for piece in _pieces(media):
        end.recv_bytes_into(piece)
    return replace(samples, media=torch.from_numpy(media), groups=torch.from_numpy(groups))


def _pieces(media: NDArray[np.float32]) -> Iterator[memoryview]:
    """The bytes of ``media`` as they lie in memory, in what a pipe takes at once: many times as fast as pickled whole."""
    view = media.reshape(-1).view(np.uint8).data
    return (view[i : i + PIECE] for i in range(0, len(view), PIECE))


def _answer(answer: Callable[[Samples], Any], samples: Samples) -> tuple[type[Exception] | None, Any]:
    try:
        return None, answer(samples)
    except BaseException as error:  # sys.exit and KeyboardInterrupt too: they are about one request
        return _told(error)


def _told(error: BaseException) -> tuple[type[Exception], str]:
    kind, sentence = _classify(error)
    return kind, sentence if len(sentence) <= LONGEST else sentence[:LONGEST] + "…"


def _classify(error: BaseException) -> tuple[type[Exception], str]:
    if isinstance(error, UserError | UnexpectedError | WorkerDied):  # a reward may have workers of its own
        return type(error), str(error)
    if isinstance(error, RunError) and (error.__cause__ is None or isinstance(error.__cause__, RunError | UserError)):
        return RunError, str(error)
    return UnexpectedError, str(error) if isinstance(error, RunError) else describe_exception(error)
