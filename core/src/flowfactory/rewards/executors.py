"""Where a reward is computed: in the thread that draws, in a thread of its own, or in worker processes."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import EXECUTION_OPTIONS, parse_component
from flowfactory.distributed.partition import split_evenly
from flowfactory.errors import RunError
from flowfactory.rewards.calls import RewardComponent
from flowfactory.rewards.errors import name_errors, unnamed_errors
from flowfactory.rewards.worker_process import WorkerProcess
from flowfactory.rl.groups import rows_by_group
from flowfactory.types import Answer, Samples

T = TypeVar("T")


@dataclass(frozen=True)
class PendingAnswers:
    """The rows that a reward was asked about, in pieces, and its answers, that may be on their way."""

    rows: Sequence[Sequence[int]]
    answers: Sequence[Answer | Future[Answer]]
    timeout: float | None


class RewardExecutor:
    """One reward: its component, here, in a thread or in processes of its own."""

    def __init__(self, label: str, config: ComponentConfig, plugins: Sequence[Path] = ()) -> None:
        self.label = label
        self.holds_weights = config.weight_bytes() != {}
        self._ready = False
        self._component = RewardComponent(label, config)
        self._timeout: float | None = getattr(config, "timeout", None)
        workers: int = getattr(config, "workers", 0)
        self._workers = WorkerProcesses(label, config, workers, plugins) if workers else None
        wanted = getattr(config, "concurrent", None)
        concurrent = self._component.concurrent if wanted is None else bool(wanted)
        self.runs_concurrently = concurrent or bool(workers)
        # without a thread of its own, what never answers could not be given up
        self._thread = WorkerThread(label) if not workers and (concurrent or self._timeout is not None) else None

    @property
    def pointwise(self) -> bool:
        """Whether it scores each sample by itself."""
        return self._component.pointwise

    def prepare(self, device: torch.device) -> None:
        """See RunSpecs.prepare_reward; once."""
        if self._ready:
            return
        with name_errors(self.label):
            if self._workers:
                self._workers.start()
            else:
                self._component.prepare(device)
        self._ready = True

    def submit(self, samples: Samples) -> PendingAnswers:
        """Begin with the samples that the label applies to."""
        rows = [i for i, metadata in enumerate(samples.metadata) if applies(self.label, metadata)]
        if not rows:
            return PendingAnswers([], [], self._timeout)
        if self._workers:
            units = [[row] for row in rows] if self.pointwise else rows_by_group(rows, samples.groups)
            pieces = [piece for piece in split_evenly(units, len(self._workers)) if piece]
            return PendingAnswers(pieces, [self._workers.submit(samples.rows(piece)) for piece in pieces], self._timeout)
        mine = samples if len(rows) == len(samples.prompts) else samples.rows(rows)
        with name_errors(self.label):
            answer = self._thread.submit(self._component.compute, mine) if self._thread else self._component.compute(mine)
            return PendingAnswers(
                [rows], [answer if self.runs_concurrently else wait_for(answer, self._timeout)], self._timeout
            )


def applies(label: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a prompt is judged by the reward ``label``: where its metadata lists ``rewards``, those alone."""
    return label in metadata["rewards"] if "rewards" in metadata else True


def is_there(value: Any) -> bool:
    """Whether ``value``, a future or a mapping that may hold some, need not be waited for."""
    if isinstance(value, Future):
        return value.done()
    return not isinstance(value, Mapping) or all(map(is_there, value.values()))


def wait_for(value: Any, timeout: float | None) -> Any:
    """``value``, or what it is the future of. RunError: it did not come within ``timeout`` seconds."""
    if not isinstance(value, Future):
        return value
    if not wait([value], timeout).done:
        raise RunError(f"no scores within {timeout:g} seconds; raise its timeout, or look at what holds it up")
    return value.result()


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

    def wait_idle(self, seconds: float) -> None:
        """Wait until all that was submitted is done, at most ``seconds``: a thread with tensors is not to outlive torch."""
        if self._thread is not None:
            with suppress(TimeoutError):
                self.submit(lambda: None).result(seconds)

    def _work(self) -> None:
        while True:
            future, call, arguments = self._queue.get()
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                with suppress(InvalidStateError):  # it was cancelled: whoever waited for it gave up
                    future.set_exception(error)
            del future, call, arguments  # what was judged is not to wait for what comes next


class WorkerProcesses:
    """``count`` processes that each hold the reward, on the CPU with one thread, and take turns."""

    def __init__(self, label: str, config: ComponentConfig, count: int, plugins: Sequence[Path]) -> None:
        options = {k: v for k, v in config.model_dump(mode="json").items() if k not in EXECUTION_OPTIONS}
        make = partial(_make_reward, label, options, tuple(plugins))
        self._label = label
        self._workers = [WorkerProcess(make) for _ in range(count)]
        self._threads = [WorkerThread(label) for _ in range(count)]
        self._turn = 0

    def __len__(self) -> int:
        return len(self._workers)

    def start(self) -> None:
        """Start all and wait until each has its reward. RunError, UserError: what one of them says."""
        for worker in self._workers:
            worker.begin()
        for worker in self._workers:
            with unnamed_errors(self._label):
                worker.wait_ready()

    def submit(self, samples: Samples) -> Future[Answer]:
        """The answer of the next of them."""
        turn = self._turn % len(self)
        self._turn += 1
        return self._threads[turn].submit(self._request, self._workers[turn], samples)

    def _request(self, worker: WorkerProcess, samples: Samples) -> Answer:
        with unnamed_errors(self._label):
            return {label: pickle.loads(scores) for label, scores in worker.ask(samples).items()}


def _make_reward(
    label: str, options: Mapping[str, Any], plugins: Sequence[Path]
) -> tuple[None, Callable[[Samples], dict[str, bytes]]]:
    torch.set_num_threads(1)
    reward = RewardComponent(label, parse_component("reward", options, plugins))
    with name_errors(label):
        reward.prepare(torch.device("cpu"))

    def answer(samples: Samples) -> dict[str, bytes]:
        with name_errors(label):
            return {name: _to_bytes(scores) for name, scores in reward.compute(samples).items()}

    return None, answer


def _to_bytes(scores: Tensor | Future[Tensor]) -> bytes:
    found = scores.result() if isinstance(scores, Future) else scores
    return pickle.dumps(found.detach().cpu().clone() if isinstance(found, Tensor) else found)  # a view would bring the whole
