"""The figures of an iteration: means over losses, seconds, and memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import RunError
from flowfactory.experience import Loss


class UpdateMetrics:
    """Means and maxima over the losses of an update."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._maxima: dict[str, float] = {}
        self._cuts: set[str] = set()

    def add(self, loss: Loss) -> None:
        """Take in one loss. RunError: it is not finite."""
        if loss.values.dim() != 1:
            raise RunError(f"a loss has shape {list(loss.values.shape)}; yield one value a sample, [b]")
        if not loss.values.isfinite().all():
            terms = [name for name, term in loss.terms.items() if not term.isfinite().all()]
            raise RunError("the loss is not finite" + (f": its term {terms[0]!r} is not" if terms else ""))
        self.count += len(loss.values)
        for name, value in {"loss": loss.values, **loss.terms, **loss.metrics, **loss.cuts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach().double().sum())
            self._counts[name] = self._counts.get(name, 0) + len(value)
        self._cuts |= set(loss.cuts)
        for name, value in loss.extremes.items():
            self._maxima[name] = max(self._maxima.get(name, -math.inf), float(value.detach().max()))

    def finish_first_update(self) -> None:
        """Keep the cuts so far as those of the iteration's first update: of samples as they were drawn, or nearly so."""
        for name in self._cuts:
            self._sums[f"{name}/first_update"] = self._sums[name]
            self._counts[f"{name}/first_update"] = self._counts[name]

    def metrics(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """The mean of every metric, the maximum of every extreme, over all ranks."""
        sums, counts = defaultdict[str, float](float), defaultdict[str, int](int)
        maxima: dict[str, float] = {}
        for others, samples, most in ranks.gather((self._sums, self._counts, self._maxima)):
            for name, total in others.items():
                sums[name] += total
                counts[name] += samples[name]
            maxima |= {name: max(maxima.get(name, -math.inf), value) for name, value in most.items()}
        return {name: sums[name] / counts[name] for name in sums if counts[name]} | maxima


class Timer:
    """Seconds by what they were spent on; work that ``device`` still has to do counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        key = f"seconds/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most that the device's allocator held, or on a CPU that the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
