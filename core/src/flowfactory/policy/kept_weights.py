"""Weights by value: the present ones, and others kept beside them under names, averaged, and used in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.distributed.sharding import as_shard, local_shard, non_finite
from flowfactory.errors import RunError
from flowfactory.policy import lora
from flowfactory.policy.drawn_graphs import DrawnGraphs
from flowfactory.policy.transformers import Transformers
from flowfactory.policy.without_gradients import without_gradients

REFERENCE = "reference"
"""The name under which the weights that training started from are kept."""
BASE = "base"
"""The name under which weights without adapters are remembered, see :meth:`KeptWeights.keep_base`."""
POLICY = "policy"
"""The name of the weights that draw and are trained: the present ones, but while those of a role are."""
CONFIGURED = ("sampling", "evaluation")
"""The averages that the config itself can ask for."""

Schedule = Callable[[int], float]
"""``decay(iteration)``: see :mod:`flowfactory.config.ema`."""


@dataclass
class _Kept:
    """Weights by value, with a number that equal weights share; the reference of a LoRA run needs no values."""

    version: int
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class _Average:
    """How it moves, and towards whose weights: a role's, or the policy's where it is empty."""

    decay: Schedule
    role: str


def _counted(decay: Schedule) -> str:
    counted: str = getattr(decay, "counted", "iterations")  # any callable is a schedule
    return counted


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w. -]+", name) or name == POLICY:
        raise RunError(f"an average of weights cannot be called {name!r}: use letters, digits, '_', '-', '.' and spaces")


class KeptWeights:
    """The weights of ``transformers``: what is present, and what is kept beside it, on the device or in ``host`` memory."""

    def __init__(self, transformers: Transformers, device: torch.device, host: bool = False, trains: bool = True) -> None:
        self._transformers = transformers
        self.modules, self.lora = transformers.modules, transformers.lora
        self.drawn_graphs = DrawnGraphs()
        self._ranks: Ranks = ALONE
        self._kept: dict[str, _Kept] = {}
        self._averages: dict[str, _Average] = {}
        self._playing = ""  # the role whose weights are present
        self._kept_on = torch.device("cpu") if host else device
        self._versions = count()
        self._start = self._version = next(self._versions)
        self._trains = trains
        self._read_kept: Callable[[str], dict[str, Tensor]] | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return self._transformers.parameters

    def mark_changed(self) -> None:
        """To be called whenever the present weights have changed."""
        self._version = next(self._versions)

    def keep_reference(self) -> None:
        """Remember the weights that training starts from; with new adapters they are the base, and cost nothing."""
        if self._transformers.starts_bare:
            self._kept[REFERENCE] = _Kept(self._start, {})
        else:
            self.keep(REFERENCE)

    def keep_base(self) -> str:
        """Remember the weights without adapters, where there are some, and else those that training starts from; their name.

        With adapters that training started from they are other weights than the reference.
        """
        if not self._transformers.lora:
            self.keep_reference()
            return REFERENCE
        version = self._start if self._transformers.starts_bare else next(self._versions)
        self._kept[BASE] = _Kept(version, {})
        return BASE

    def keep(self, name: str) -> None:
        """Copy the present weights under ``name``; where nothing trains they are read when they are used."""
        if not self._trains:
            return
        copies = {key: own.to(self._kept_on, copy=True) for key, own in self._present().items()}
        self._kept[name] = _Kept(self._version, copies)

    def add_role(self, name: str) -> None:
        """Keep weights under ``name`` to be trained by themselves, see :meth:`playing`.

        They begin as those of :meth:`keep_base`. RunError: the name has what the names of files cannot have.
        """
        _check_name(name)
        self.keep(name)
        if name in self._kept and self._transformers.lora and not self._transformers.starts_bare:
            for key, own in self._kept[name].weights.items():
                if lora.is_second(key):
                    own.zero_()  # so that the adapter adds nothing
            self._kept[name].version = next(self._versions)

    @contextmanager
    def playing(self, role: str) -> Iterator[None]:
        """Within it the weights of ``role`` are the present ones, and train; they are kept as they are left. "": as it is."""
        if not role:
            yield
            return
        kept, version = self._find(role), self._version
        with self._swapped(kept.weights) as policy:
            self._playing, self._version = role, kept.version
            self._kept[POLICY] = _Kept(version, policy)
            try:
                yield
            finally:
                del self._kept[POLICY]
                torch._foreach_copy_(list(kept.weights.values()), [self._present()[key] for key in kept.weights])
                self._playing, kept.version = "", self._version
                self._version = version

    def track_ema(self, name: str, decay: Schedule, role: str = "") -> None:
        """Keep the present weights under ``name``, and move them towards those present after each iteration, or each step.

        Or towards those of ``role``, after each step of its own. RunError: the config has an average of that name, the name
        has what the names of files cannot have, or an average of a role counts iterations.
        """
        if name in CONFIGURED and name in self._averages:
            raise RunError(f"the average of weights called {name!r} is that of {name}.ema; give the algorithm's another name")
        _check_name(name)
        if role and _counted(decay) != "steps":
            raise RunError(f"the average {name!r} of the role {role!r} counts iterations; write counted: steps")
        self.keep(name)
        self._averages[name] = _Average(decay, role)

    def iteration_finished(self, iteration: int) -> None:
        """Move every average that counts iterations; ``iteration`` counts from 0."""
        self._move_averages("iterations", iteration)

    def step_finished(self, step: int) -> None:
        """Move every average that counts optimizer steps; ``step`` counts from 0 since training began."""
        self._move_averages("steps", step)

    def _move_averages(self, counted: str, n: int) -> None:
        for name, average in self._averages.items():
            if average.role == self._playing and _counted(average.decay) == counted:
                self.update_ema(name, average.decay(n))

    @without_gradients
    def update_ema(self, name: str, decay: float) -> None:
        """Kept ``name`` becomes ``decay`` of itself and the rest of the present weights."""
        kept, present = self._find(name), self._present()
        if kept.version == self._version or decay >= 1:
            return
        own = list(kept.weights.values())
        others = [present[key].to(self._kept_on) for key in kept.weights]
        if decay <= 0:
            torch._foreach_copy_(own, others)
            kept.version = self._version
        else:
            torch._foreach_lerp_(own, others, 1 - decay)
            kept.version = next(self._versions)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Within it the weights are those kept as ``name``; None, and weights that are present already, change nothing."""
        if name is None or self._find(name).version == self._version:
            yield
            return
        kept = self._find(name)
        version, self._version = self._version, kept.version
        try:
            with self._swapped(kept.weights) if kept.weights else lora.adapters_disabled(self.modules.values()):
                yield
        finally:
            self._version = version

    @contextmanager
    def placed(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it the weights are ``weights``, by value: this rank's part of each, by the names of the parameters."""
        version, self._version = self._version, next(self._versions)
        try:
            with self._swapped(weights):
                yield
        finally:
            self._version = version

    @contextmanager
    def _swapped(self, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Within it the weights are ``weights``, by value; what was present comes back."""
        present = {key: own.clone() for key, own in self._present().items()}
        # graphs of drawn steps outlive a swap, after which every weight is what it was
        counters: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
        with counters(tuple(self._present().values())) if self.drawn_graphs.held else nullcontext():
            self._copy(weights)
            try:
                yield present
            finally:
                self._copy(present)

    def _find(self, name: str) -> _Kept:
        if name == POLICY and not self._playing:
            return _Kept(self._version, {})
        if name not in self._kept and self._read_kept is not None:
            weights = {key: own.to(self._kept_on) for key, own in self._read_kept(name).items()}
            self._kept[name] = _Kept(next(self._versions), weights)
        if name not in self._kept:
            raise RunError(f"no weights are kept as {name!r}; keep or average them when the run starts")
        return self._kept[name]

    @without_gradients
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        # by value: assigning .data moves nothing under FSDP2, which keeps its own view of the shards
        present = self._present()
        torch._foreach_copy_([present[key] for key in weights], list(weights.values()))

    def _present(self) -> dict[str, Tensor]:
        """This rank's part of the trainable parameters, sharing their memory."""
        return {key: local_shard(parameter.detach()) for key, parameter in self.parameters.items()}

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the kept weights."""
        return tuple(self._kept)

    def state(self) -> dict[str, Tensor]:
        """``present/<parameter>`` and ``kept/<name>/<parameter>``, sharded as they are, to be read and written in place."""
        parameters = self.parameters
        state = {f"present/{key}": parameter.detach() for key, parameter in parameters.items()}
        for name, kept in self._kept.items():
            state |= {f"kept/{name}/{key}": as_shard(own, parameters[key]) for key, own in kept.weights.items()}
        return state

    @property
    def keeps_start(self) -> bool:
        """Whether there is a copy of weights kept as the reference, and they are those that training started from."""
        kept = self._kept.get(REFERENCE)
        return kept is not None and bool(kept.weights) and kept.version == self._start

    def non_finite(self, others: Mapping[str, Tensor] | None = None) -> list[str]:
        """The names in :meth:`state` and ``others`` under which some rank has a number that is not finite; joint work."""
        told = self._ranks.gather(non_finite({**self.state(), **(others or {})}))
        return list(dict.fromkeys(name.removeprefix("present/") for names in told for name in names))

    def reserve(self, names: Collection[str]) -> None:
        """Have weights kept under ``names`` and no others, to be read into; those that are no values stay."""
        self._kept = {name: kept for name, kept in self._kept.items() if not kept.weights or name in names}
        for name in names:
            if name not in self._kept:
                self.keep(name)

    def mark_restored(self, from_start: bool = False) -> None:
        """To be called when :meth:`state` was written in place; ``from_start``: the reference with what training began with."""
        self.mark_changed()
        for kept in self._kept.values():
            if kept.weights:
                kept.version = self._version_of(kept.weights)
        if from_start:
            self._start = self._kept[REFERENCE].version
        for name in self._averages.keys() - self._kept.keys():  # one that the saved run had not begins with its weights
            self.keep(name)

    def mark_read(self, name: str | None, read_kept: Callable[[str], dict[str, Tensor]]) -> None:
        """To be called when the present weights, of what does not train, were written in place.

        They are also those kept as ``name``. What is kept under other names is had from ``read_kept``, once it is used.
        """
        self.mark_changed()
        self._kept = {key: kept for key, kept in self._kept.items() if not kept.weights}
        if name is not None:
            self._kept[name] = _Kept(self._version, {})
        self._read_kept = read_kept

    def _version_of(self, weights: Mapping[str, Tensor]) -> int:
        """The present version if ``weights`` are the present ones, so that a resumed run knows it too; else a new one."""
        present = self._present()
        same = all(torch.equal(value.to(own.device), own) for value, own in ((weights[key], present[key]) for key in weights))
        # every rank has to know, since weights that are the same share a forward
        return next(self._versions) if self._ranks.any(not same) else self._version
