"""The figures of an iteration: means over losses, seconds, and memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import RunError
from flowfactory.experience import Loss


class UpdateMetrics:
    """Means and maxima over the losses of an update, kept where they were computed: no device is waited for on the way."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._maxima: dict[str, Tensor] = {}
        self._cuts: set[str] = set()
        self._ratios: list[Tensor] = []  # of each loss that has some: how many, their sum, and that of their squares
        self._roles: dict[str, UpdateMetrics] = {}
        self._unchecked: list[tuple[Tensor, list[str]]] = []  # whether a loss is finite and which of its terms are

    def add(self, loss: Loss) -> None:
        """Take in one loss. RunError: it has no value a sample."""
        if loss.values.dim() != 1:
            raise RunError(f"a loss has shape {list(loss.values.shape)}; yield one value a sample, [b]")
        self._note(loss)
        self.count += len(loss.values)
        for name, value in {"loss": loss.values, **loss.terms, **loss.metrics, **loss.cuts}.items():
            self.add_samples(name, value.detach())
        self._cuts |= set(loss.cuts)
        if loss.ratios is not None:
            ratios = loss.ratios.detach().double()
            self._ratios.append(torch.stack([ratios.new_tensor(len(ratios)), ratios.sum(), ratios.square().sum()]))
        for name, value in loss.extremes.items():
            most = value.detach().max().double()
            # fmax: what is not a number is not the largest
            self._maxima[name] = torch.fmax(self._maxima[name], most) if name in self._maxima else most

    def add_beside(self, loss: Loss) -> None:
        """Take in the metrics of a loss that is no part of the mean."""
        self._note(loss)
        for name, value in loss.metrics.items():
            self.add_samples(name, value.detach())

    def _note(self, loss: Loss) -> None:
        """Note whether the loss and its terms are finite, for :meth:`check_finite`."""
        sound = [value.detach().isfinite().all().to(loss.values.device) for value in (loss.values, *loss.terms.values())]
        self._unchecked.append((torch.stack(sound), list(loss.terms)))

    def add_samples(self, name: str, values: Tensor) -> None:
        """Take in a figure of samples, ``values`` [b], that no loss brings."""
        total = values.double().sum()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + len(values)

    def add_step(self, figures: Mapping[str, Tensor]) -> None:
        """Take in figures of an optimizer step, each one number and the same on all ranks."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
            self._counts[name] = self._counts.get(name, 0) + 1

    def check_finite(self) -> None:
        """RunError: a loss that was taken in since the last time is not finite; names its term. Waits for the device once."""
        taken, self._unchecked = self._unchecked, []
        if not taken:
            return
        flags = iter(torch.cat([sound for sound, _ in taken]).tolist())
        for _, names in taken:
            whole, *terms = [next(flags) for _ in range(1 + len(names))]
            if not whole:
                bad = [name for name, sound in zip(names, terms, strict=True) if not sound]
                raise RunError("the loss is not finite" + (f": its term {bad[0]!r} is not" if bad else ""))

    def of_role(self, name: str) -> UpdateMetrics:
        """Those of a role beside the policy, which :meth:`metrics` has under ``<name>/``."""
        return self._roles.setdefault(name, UpdateMetrics())

    def finish_first_update(self) -> None:
        """Keep the cuts so far as those of the iteration's first update: of samples as they were drawn, or nearly so."""
        for name in self._cuts:
            self._sums[f"{name}/first_update"] = self._sums[name]
            self._counts[f"{name}/first_update"] = self._counts[name]

    def metrics(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """The mean of every metric, the maximum of every extreme, over all ranks.

        And ``effective_sample_size``, the share (Σr)² / (n Σr²) of the n samples that as many of equal ratios r would be.
        """
        sums, counts = defaultdict[str, float](float), defaultdict[str, int](int)
        maxima: dict[str, float] = {}
        own = {name: float(total) for name, total in self._sums.items()}
        mine = {name: max(-math.inf, float(most)) for name, most in self._maxima.items()}
        ratios = torch.stack(self._ratios).sum(0).tolist() if self._ratios else [0.0, 0.0, 0.0]
        moments = [0.0, 0.0, 0.0]
        for others, samples, most, weighed in ranks.gather((own, self._counts, mine, ratios)):
            moments = [own + other for own, other in zip(moments, weighed, strict=True)]
            for name, total in others.items():
                sums[name] += total
                counts[name] += samples[name]
            maxima |= {name: max(maxima.get(name, -math.inf), value) for name, value in most.items()}
        means = {name: sums[name] / counts[name] for name in sums if counts[name]}
        found = means | maxima | _effective_sample_size(*moments)
        for role, own_metrics in self._roles.items():
            found |= {f"{role}/{name}": value for name, value in own_metrics.metrics(ranks).items()}
        return found


def _effective_sample_size(count: float, total: float, squares: float) -> dict[str, float]:
    """Of ratios by their count, their sum and that of their squares; empty where there are none, or none but zeros."""
    return {"effective_sample_size": total**2 / (count * squares)} if 0 < squares < math.inf else {}


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
