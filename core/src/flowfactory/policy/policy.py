"""The model as an algorithm sees it: its present weights, and others kept beside them by value."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowfactory.distributed.ranks import Ranks
from flowfactory.distributed.sharding import unsharded
from flowfactory.flow.rollout import forward_by_kind
from flowfactory.policy import lora
from flowfactory.policy.comparing import Ahead, At, Comparisons, Place
from flowfactory.policy.kept_weights import CONFIGURED as CONFIGURED
from flowfactory.policy.kept_weights import REFERENCE as REFERENCE
from flowfactory.policy.kept_weights import KeptWeights
from flowfactory.policy.kept_weights import Schedule as Schedule
from flowfactory.policy.merging import Merging
from flowfactory.policy.teachers import Teachers
from flowfactory.policy.transformers import Transformers
from flowfactory.policy.velocity_sizes import VelocitySizes
from flowfactory.types import Evaluation, Index, Step, Trainable

if TYPE_CHECKING:
    from flowfactory.config.schema import TrainingConfig


class Policy(KeptWeights):
    """Owner of the weights.

    ``parameters`` are the trainable ones by name. ``evaluate`` is one differentiable forward. Other weights are *kept*
    under a name (a copy by value), *averaged* towards the present ones, and *used* within a context; those of a *role* are
    trained too, in the place of the present ones.
    """

    teachers: Teachers
    """Other weights over the same base, which are asked and never trained."""

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
        transformers = Transformers(trainable, precision, seed, quantize, trains, device, self._merging)
        super().__init__(transformers, device, host, trains)
        self.teachers = Teachers(self, transformers, device, trains)
        self.adapted, self.start = transformers.adapted, transformers.start
        self._ahead = Ahead()
        self._evaluate, self._drops_graphs = evaluate, False
        self.velocity_sizes = VelocitySizes()  # of forwards with a gradient
        self._takes_drawn = False
        self.device, self._precision = device, precision
        self._whole_to_sample, self._autocast = False, True

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
        self._evaluate_kept(step, [at for at in kept.values() if not self.is_present(at, step)], found)
        present = self.evaluate(step)
        found[self._version, step.guidance] = present.detach()
        return present, {key: found[self._place(at, step)] for key, at in kept.items()}

    def look(self, step: Step, kept: Mapping[str, At]) -> dict[str, Evaluation]:
        """Each of ``kept`` at ``step``, detached, under its own key: as :meth:`compare`, but the present weights are not asked.

        Before anything with a graph that is still needed: weights are swapped by value.
        """
        found: dict[Place, Evaluation] = {}
        self._evaluate_kept(step, kept.values(), found)
        return {key: found[self._place(at, step)] for key, at in kept.items()}

    def _evaluate_kept(self, step: Step, wanted: Iterable[At], found: dict[Place, Evaluation]) -> None:
        """Have ``found`` at ``step`` those ``wanted`` that it lacks, each once."""
        for at in wanted:
            place = self._place(at, step)
            if place not in found:
                with torch.no_grad(), self.using(at.weights):
                    found[place] = self.evaluate(replace(step, guidance=place[1])).detach()

    def evaluate_teachers(self, names: Sequence[str], step: Step) -> Tensor:
        """The velocities [B, ...] at ``step``, detached, of the teachers ``names`` [B], which :meth:`Teachers.read` has read.

        Before anything with a graph that is still needed. A joint work of the ranks that share the weights.
        """

        def velocity(rows: Index, name: Hashable) -> Tensor:
            with torch.no_grad(), self.teachers.teaching(str(name)):
                return self.evaluate(step.rows(rows)).velocity

        return forward_by_kind(names, velocity, self._ranks.agree)

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

    def frozen_state(self) -> dict[str, Tensor]:
        """See :meth:`Transformers.frozen_state`."""
        return self._transformers.frozen_state()

    @property
    def adapters(self) -> dict[str, lora.Adapters | None]:
        """What was put on each of the trained modules; None: it trains whole."""
        return self._transformers.adapters
