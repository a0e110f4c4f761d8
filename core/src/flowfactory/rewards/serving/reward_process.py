"""The reward that is served, in a process of its own, which is ended and started anew where it hangs or dies."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import parse_component
from flowfactory.distributed.mesh import resolve_device
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.scoring import Rewards
from flowfactory.rewards.serving.refusals import RequestRefused
from flowfactory.rewards.worker_process import UnexpectedError, WorkerDied, WorkerLate, WorkerProcess
from flowfactory.types import Samples

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds between two starts that fail, which double

_log = logging.getLogger("flowfactory.serve")


@dataclass(frozen=True)
class Traits:
    """What a reward says of itself when it is ready."""

    pointwise: bool
    device: str


class RewardProcess:
    """The reward ``name``: one request after the other, each within ``timeout`` seconds, or its own ``timeout``."""

    def __init__(self, name: str, config: ComponentConfig, plugins: Sequence[Path], device: str, timeout: float) -> None:
        options = config.model_dump(mode="json")
        self.name = name
        self.timeout: float = options.pop("timeout", None) or timeout
        self._make = partial(_make_rewards, name, options, tuple(plugins), device)
        self._worker = WorkerProcess(self._make, own_session=True)
        self._trouble = ""
        self._failures = 0
        self._next_start = 0.0  # by the monotonic clock
        self._start_seconds = 0.0
        self._closed = False
        self.starts = 0

    def start(self) -> Traits:
        """Read its weights. UserError, RunError: it cannot."""
        begun = time.monotonic()
        traits = self._begin(None)
        self._start_seconds = time.monotonic() - begun
        return traits

    def compute(self, samples: Samples) -> Tensor:
        """The scores [B] of ``samples``, float64. RequestRefused: the reward raised, took too long, or died."""
        self.revive()
        try:
            scores: list[float] = self._worker.ask(samples, self.timeout)
        except WorkerDied as error:
            raise self._recycle(error) from error
        except UnexpectedError as error:
            raise RequestRefused(500, self._name(error)) from error
        except (RunError, UserError) as error:
            raise RequestRefused(422, str(error)) from error
        return torch.tensor(scores, dtype=torch.float64)

    def revive(self) -> None:
        """Start it anew if it is not there. RequestRefused: it does not start, and is left alone for a while, or for good."""
        if self._worker.is_alive():
            return
        if not self._closed and time.monotonic() >= self._next_start:
            if not self._trouble:
                self._recycle(WorkerDied())
            try:
                # what once took so long may take as long again
                self._begin(self.timeout + 2 * self._start_seconds)
            except (RunError, UserError) as error:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
                self._failures += 1
                self._next_start = time.monotonic() + pause
                self._trouble = f"{error}; it is started again in {pause:g} s"
                _log.warning("%s", self._trouble)
            else:
                self._failures, self._trouble = 0, ""
                return
        raise self.unready()

    def close(self) -> None:
        """End it for good: what comes of that is no trouble."""
        self._closed = True
        self._worker.kill()

    def is_ready(self) -> bool:
        """Whether it can be asked."""
        return not self._trouble and self._worker.is_alive()

    def unready(self) -> RequestRefused:
        """What is told of a reward that is not ready."""
        wait = max(1, math.ceil(self._next_start - time.monotonic()))
        return RequestRefused(503, self._trouble or f"reward {self.name!r}: its process ended, and starts anew", wait)

    def _begin(self, seconds: float | None) -> Traits:
        self._worker = WorkerProcess(self._make, own_session=True)
        self.starts += 1
        try:
            self._worker.begin()
        except OSError as error:
            raise RunError(f"reward {self.name!r}: its process cannot be started: {error.strerror}") from error
        try:
            traits: Traits = self._worker.wait_ready(seconds)
        except WorkerLate as error:
            self._worker.kill()
            raise RunError(f"reward {self.name!r}: it was not ready within {seconds:.0f} seconds") from error
        except WorkerDied as error:
            how = self._worker.kill() or "lost one of its own"
            raise RunError(f"reward {self.name!r}: its process {how} before it was ready") from error
        except (RunError, UserError) as error:
            self._worker.kill()
            raise error if not isinstance(error, UnexpectedError) else RunError(self._name(error)) from error
        return traits

    def _name(self, error: UnexpectedError) -> str:
        """What KeyboardInterrupt and its like say has no label yet."""
        label = f"reward {self.name!r}: "
        return label + str(error).removeprefix(label)

    def _recycle(self, error: WorkerDied) -> RequestRefused:
        """End what is left of the process; the answer to whoever asked it."""
        how = self._worker.kill()
        if isinstance(error, WorkerLate):
            status, said = 504, f"no scores within {self.timeout:g} seconds; raise --timeout, or look at what holds it up"
        else:
            what = f"its process {how}" if how else "one of its workers died"
            status, said = 502, f"{what}; look for what ended it, most likely a lack of memory"
        refusal = RequestRefused(status, f"reward {self.name!r}: {said}")
        self._trouble = f"{refusal}; it starts anew"
        if not self._closed:
            _log.warning("%s", self._trouble)
        return refusal


def _make_rewards(
    name: str, options: Mapping[str, Any], plugins: Sequence[Path], device: str
) -> tuple[Traits, Callable[[Samples], list[float]]]:
    where = resolve_device(device)
    rewards = Rewards({name: parse_component("reward", options, plugins)}, plugins)
    rewards.prepare(where)

    def answer(samples: Samples) -> list[float]:
        scores = rewards(replace(samples, media=samples.media.to(where)))[name]
        # as float64, which holds those of every other dtype exactly
        return scores.double().tolist()

    return Traits(rewards.pointwise, str(where)), answer
