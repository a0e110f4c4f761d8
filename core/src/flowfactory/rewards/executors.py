"""Work beside the thread that draws: in a thread, or in processes of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flowfactory.config.components import parse_component
from flowfactory.distributed.outcome import PARENT, die_with_parent
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.component import RewardComponent, name_errors
from flowfactory.types import Answer, Samples

if TYPE_CHECKING:
    from flowfactory.config.schema import ComponentConfig

T = TypeVar("T")


class WorkerThread:
    """A thread that does one thing after the other; the process does not wait for it at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """The result of ``call(*arguments)``, once those before it are done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"reward {self._name}", daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._queue.put((future, call, arguments))
        return future

    def _work(self) -> None:
        while True:
            future, call, arguments = self._queue.get()
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
            del future, call, arguments  # what was judged is not to wait for what comes next


class WorkerProcesses:
    """``count`` processes that each hold the reward, on the CPU with one thread, and take turns."""

    def __init__(self, label: str, config: ComponentConfig, count: int, plugins: Sequence[Path]) -> None:
        options = config.model_dump(mode="json")
        self._given = (label, options, [str(path) for path in plugins])
        self._threads = [WorkerThread(label) for _ in range(count)]
        self._ends: list[Connection] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._threads)

    def start(self) -> None:
        """Start all and wait until each has its reward. RunError, UserError: what one of them says."""
        context = multiprocessing.get_context("spawn")
        for _ in self._threads:
            here, there = context.Pipe()
            process = context.Process(target=_run_worker, args=(there, os.getpid(), *self._given), daemon=True)
            process.start()
            atexit.register(process.kill)  # before multiprocessing would wait for what ignores its SIGTERM
            weakref.finalize(self, process.kill)
            there.close()  # so that its death is the end of the file here
            self._ends.append(here)
        for end in self._ends:
            _receive(end)

    def submit(self, samples: Samples) -> Future[Answer]:
        """The answer of the next of them."""
        turn = self._turn % len(self)
        self._turn += 1
        return self._threads[turn].submit(_request, self._ends[turn], samples)


def _request(end: Connection, samples: Samples) -> Answer:
    media = samples.media.detach().float().cpu().numpy()
    try:
        # as arrays: tensors would go through shared memory, of which containers have little
        end.send((media, samples.groups.cpu().numpy(), replace(samples, media=_NOTHING, groups=_NOTHING)))
    except OSError as error:
        raise RunError("one of its workers died; look for what killed it, memory above all") from error
    return {label: torch.from_numpy(scores) for label, scores in _receive(end).items()}


_NOTHING = torch.empty(0)


def _receive(end: Connection) -> Any:
    try:
        kind, value = end.recv()
    except (EOFError, OSError) as error:
        raise RunError("one of its workers died; look for what killed it, memory above all") from error
    if kind is not None:
        raise kind(value)
    return value


def _run_worker(end: Connection, parent: int, label: str, options: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """What a worker does until it is killed with its parent."""
    os.environ[PARENT] = str(parent)
    die_with_parent()
    # for the run, which finishes its iteration; schedulers tell all processes
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    alone = {key: value for key, value in options.items() if key not in ("workers", "concurrent", "timeout")}
    try:
        reward = RewardComponent(label, parse_component("reward", alone, [Path(path) for path in plugins]))
        with name_errors(label):
            reward.prepare(torch.device("cpu"))
        end.send((None, None))
        while True:
            media, groups, rest = end.recv()
            samples = replace(rest, media=torch.from_numpy(media), groups=torch.from_numpy(groups))
            with name_errors(label):
                answer = reward.compute(samples)
            end.send((None, {name: _array(scores) for name, scores in answer.items()}))
    except (EOFError, BrokenPipeError):
        return
    except (RunError, UserError) as error:
        end.send((type(error), str(error).removeprefix(f"reward {label!r}: ")))
    except Exception as error:
        end.send((RunError, f"{type(error).__name__}: {error}"))


def _array(scores: Tensor | Future[Tensor]) -> Any:
    found = scores.result() if isinstance(scores, Future) else scores
    return found.detach().float().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
