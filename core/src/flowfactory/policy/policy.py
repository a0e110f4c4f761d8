"""The model as an algorithm sees it: its present weights, and others kept beside them by value."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.distributed.sharding import as_shard, local_shard, non_finite, unsharded
from flowfactory.errors import RunError
from flowfactory.policy import lora
from flowfactory.policy.comparing import Ahead, At, Comparisons, Place
from flowfactory.policy.drawn_graphs import DrawnGraphs
from flowfactory.policy.merging import Merging
from flowfactory.policy.transformers import Transformers
from flowfactory.policy.velocity_sizes import VelocitySizes
from flowfactory.policy.without_gradients import without_gradients
from flowfactory.types import Evaluation, Step, Trainable

if TYPE_CHECKING:
    from flowfactory.config.schema import TrainingConfig

REFERENCE = "reference"
"""The name under which the weights that training started from are kept."""
CONFIGURED = ("sampling", "evaluation")
"""The averages that the config itself can ask for."""

Schedule = Callable[[int], float]
"""``decay(iteration)``: see :mod:`flowfactory.config.ema`."""


@dataclass
class _Kept:
    """Weights by value, with a number that equal weights share; the reference of a LoRA run needs no values."""

    version: int
    weights: dict[str, Tensor]


class Policy:
    """Owner of the weights.

    ``parameters`` are the trainable ones by name. ``evaluate`` is one differentiable forward. Other weights are *kept*
    under a name (a copy by value), *averaged* towards the present ones, and *used* within a context.
    """

    def __init__(
        self,
        trainable: Trainable,
        evaluate: Callable[[Step], Evaluation],
        device: torch.device,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
        host: bool = False,
        quantize: str | None = None,
        trains: bool = True,
    ) -> None:
        self._merging = Merging()
        self._transformers = Transformers(trainable, precision, seed, quantize, trains, device, self._merging)
        self.modules, self.lora, self.adapted = self._transformers.modules, self._transformers.lora, self._transformers.adapted
        self.start = self._transformers.start
        self._ahead = Ahead()
        self._evaluate, self._drops_graphs = evaluate, False
        self.velocity_sizes = VelocitySizes()  # of forwards with a gradient
        self.drawn_graphs, self._takes_drawn = DrawnGraphs(), False
        self.device, self._precision = device, precision
        self._ranks, self._whole_to_sample, self._autocast = ALONE, False, True
        self._kept: dict[str, _Kept] = {}
        self._averages: dict[str, Schedule] = {}
        self._kept_on = torch.device("cpu") if host else device
        self._versions = count()
        self._start = self._version = next(self._versions)
        self._trains = trains
        self._read_kept: Callable[[str], dict[str, Tensor]] | None = None

    def distribute(self, ranks: Ranks, training: TrainingConfig, whole_to_sample: bool = False) -> None:
        """See :meth:`Transformers.distribute`."""
        self._ranks, self._whole_to_sample, self._autocast = ranks, whole_to_sample, training.autocast
        self._transformers.distribute(ranks, training)

    def stop_compiling(self) -> bool:
        """See :meth:`Transformers.stop_compiling`."""
        return self._transformers.stop_compiling()

    @property
    def has_experts(self) -> bool:
        """Whether there are several transformers, of which a sample goes through one."""
        return len(self._transformers.all) > 1

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return self._transformers.parameters

    def parts(self) -> dict[str, str]:
        """See :meth:`Transformers.parts`."""
        return self._transformers.parts()

    @contextmanager
    def sampling_weights(self, name: str | None, stored_as: str | None = None) -> Iterator[None]:
        """Within it the weights are those kept as ``name``, as they are to draw: forwards have no gradients.

        stored_as: a copy in fewer bits computes, see :class:`DrawingLayers`.
        """
        with self.using(name), self._transformers.drawing_layers.in_place(stored_as, self._version), self.precision():
            if self._whole_to_sample and self._ranks.mesh is not None:
                with unsharded([*self._transformers.all.values()]):
                    yield
            else:
                yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it adapters may be added to the weights where that rounds them, for forwards without gradients.

        In float32 they always are, which is exact up to the rounding of any product: see :mod:`.adapted_linear`.
        """
        before, self._merging.allowed = self._merging.allowed, True
        try:
            yield
        finally:
            self._merging.allowed = before

    def precision(self) -> AbstractContextManager[object]:
        """The context every forward runs in, sampling and training alike."""
        if self._precision == torch.float32 or not self._autocast:
            return nullcontext()
        return torch.autocast(self.device.type, self._precision)

    def evaluate(self, step: Step) -> Evaluation:
        """One forward of the present weights at ``step``, differentiable."""
        if self._takes_drawn and torch.is_grad_enabled() and (drawn := self.drawn_graphs.take(step)) is not None:
            self.velocity_sizes.add(drawn.velocity)
            return drawn
        with self.precision():
            found = self._evaluate(replace(step, conditions=step.conditions.under(step.guidance)))
        if torch.is_grad_enabled() and not self._drops_graphs:
            self.velocity_sizes.add(found.velocity)
        return found.detach() if self._drops_graphs else found

    @contextmanager
    def dropping_graphs(self) -> Iterator[None]:
        """Within it what is evaluated is what training evaluates, but its graph is dropped at once, with its memory."""
        # not torch.no_grad, under which torch.compile and some kernels compute the same forward otherwise
        self._drops_graphs = True
        try:
            yield
        finally:
            self._drops_graphs = False

    @contextmanager
    def learning_from_drawn_graphs(self) -> Iterator[None]:
        """Within it a step that is held with the graph that drew it is not computed again. RunError: some are left over."""
        self._takes_drawn = True
        try:
            yield
            self.drawn_graphs.check_empty()
        finally:
            self._takes_drawn = False
            self.drawn_graphs.held.clear()

    def compare(self, step: Step, kept: Mapping[str, At]) -> tuple[Evaluation, dict[str, Evaluation]]:
        """The present weights at ``step``, differentiable, and each of ``kept`` there, detached, under its own key.

        Nothing is evaluated twice: weights that are the present ones, or one another, share a forward.
        """
        found = self._ahead.take(step) if kept else {}
        # the kept ones first: weights are swapped by value, which a graph would not survive
        for at in kept.values():
            place = self._place(at, step)
            if place not in found and place != (self._version, step.guidance):
                with torch.no_grad(), self.using(at.weights):
                    found[place] = self.evaluate(replace(step, guidance=place[1])).detach()
        present = self.evaluate(step)
        found[self._version, step.guidance] = present.detach()
        return present, {key: found[self._place(at, step)] for key, at in kept.items()}

    @contextmanager
    def comparing(self, comparisons: Comparisons, device: torch.device | None = None) -> Iterator[None]:
        """Within it the ``comparisons`` are made, in their order, and nothing else is compared.

        What they ask of kept weights is evaluated first, each weights' part under one swap, and rests on ``device``; they are
        gone through once for each. Nothing is where the first names none that differ from the present ones. RunError: others
        come; it is raised at the end where they differ in the numbers of their steps alone.
        """
        first = next(iter(comparisons()), None)
        others = [] if first is None else [at.weights for at in first[1].values() if not self.is_present(at, first[0])]
        weights = {self._find(name).version: name for name in others}
        self._ahead = Ahead(device)
        try:
            for name in weights.values():
                self._evaluate_ahead(name, comparisons)
            yield
            self._ahead.check()
        finally:
            self._ahead = Ahead()

    @property
    def bytes_ahead(self) -> int:
        """Within :meth:`comparing`, how much what was evaluated first takes together."""
        return self._ahead.bytes

    def _evaluate_ahead(self, name: str, comparisons: Comparisons) -> None:
        present, version = self._version, self._find(name).version
        with torch.no_grad(), self.using(name):
            for number, (step, kept) in enumerate(asked for asked in comparisons() if asked[1]):
                places = {self._place(at, step) for at in kept.values()} - {(present, step.guidance)}
                mine = sorted(place for place in places if place[0] == version)
                self._ahead.hold(number, step, {place: self.evaluate(replace(step, guidance=place[1])) for place in mine})

    def is_present(self, at: At, step: Step) -> bool:
        """Whether ``at`` gives at ``step`` what the present weights give."""
        return self._place(at, step) == (self._version, step.guidance)

    def _place(self, at: At, step: Step) -> Place:
        return self._find(at.weights).version, step.guidance if at.guidance is None else at.guidance

    def mark_changed(self) -> None:
        """To be called whenever the present weights have changed."""
        self._version = next(self._versions)

    def keep_reference(self) -> None:
        """Remember the weights that training starts from; with new adapters they are the base, and cost nothing."""
        if self._transformers.starts_bare:
            self._kept[REFERENCE] = _Kept(self._start, {})
        else:
            self.keep(REFERENCE)

    def keep(self, name: str) -> None:
        """Copy the present weights under ``name``; where nothing trains they are read when they are used."""
        if not self._trains:
            return
        copies = {key: own.to(self._kept_on, copy=True) for key, own in self._present().items()}
        self._kept[name] = _Kept(self._version, copies)

    def track_ema(self, name: str, decay: Schedule) -> None:
        """Keep the present weights under ``name``, and move them towards those present after each iteration, or each step.

        RunError: the config has an average of that name, or the name has what the names of files cannot have.
        """
        if name in CONFIGURED and name in self._averages:
            raise RunError(f"the average of weights called {name!r} is that of {name}.ema; give the algorithm's another name")
        if not re.fullmatch(r"[\w. -]+", name):
            raise RunError(f"an average of weights cannot be called {name!r}: use letters, digits, '_', '-', '.' and spaces")
        self.keep(name)
        self._averages[name] = decay

    def iteration_finished(self, iteration: int) -> None:
        """Move every average that counts iterations; ``iteration`` counts from 0."""
        self._move_averages("iterations", iteration)

    def step_finished(self, step: int) -> None:
        """Move every average that counts optimizer steps; ``step`` counts from 0 since training began."""
        self._move_averages("steps", step)

    def _move_averages(self, counted: str, n: int) -> None:
        for name, decay in self._averages.items():
            if getattr(decay, "counted", "iterations") == counted:  # any callable is a schedule
                self.update_ema(name, decay(n))

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
    def _swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        present = {key: own.clone() for key, own in self._present().items()}
        # graphs of drawn steps outlive a swap, after which every weight is what it was
        counters: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
        with counters(tuple(self._present().values())) if self.drawn_graphs.held else nullcontext():
            self._copy(weights)
            try:
                yield
            finally:
                self._copy(present)

    def _find(self, name: str) -> _Kept:
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

    def frozen_state(self) -> dict[str, Tensor]:
        """See :meth:`Transformers.frozen_state`."""
        return self._transformers.frozen_state()

    @property
    def adapters(self) -> dict[str, lora.Adapters | None]:
        """What was put on each of the trained modules; None: it trains whole."""
        return self._transformers.adapters

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
