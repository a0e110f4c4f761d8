"""A run's own sampler, policy and algorithm at work on fake tensors, and the bytes that one rank holds meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flowfactory.config.canvases import largest_canvas
from flowfactory.data import batches
from flowfactory.distributed.ranks import Ranks
from flowfactory.experience import Experience
from flowfactory.policy.float32_islands import is_island
from flowfactory.policy.policy import Policy
from flowfactory.runs.estimate.fake_tensors import to_fake
from flowfactory.runs.estimate.reckoning import Traced
from flowfactory.runs.estimate.stand_ins import CachedForwards, OneOfContext, TracedConditions, Weightless, replace_tensors
from flowfactory.runs.estimate.storage_counter import StorageCounter
from flowfactory.runs.estimate.weights import DrawingCopy, Weights, module_bytes, packed_bytes, quantized_ids, tensor_bytes
from flowfactory.training.assembly import Assembly
from flowfactory.training.evaluation import evaluate
from flowfactory.training.guidance import drawn_and_learned, most_guidance, training_plan
from flowfactory.training.plans import EVALUATION, SAMPLING
from flowfactory.training.preflight import gradients_flow
from flowfactory.training.prompts import prepare_prompts, prompts_of
from flowfactory.training.records import record_shape
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.sampler import Sampler
from flowfactory.training.setup import Run
from flowfactory.training.update import losses
from flowfactory.types import DTYPES, Runtime, Trajectory

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

ENCODED = 32  # prompts that are traced; the others are taken to be like them
LOSSES = 2  # of an update that are traced: at the second, the gradients of the first are there


@dataclass(frozen=True)
class DrawingBytes:
    """Bytes of a rank's drawing: the most while forwards run, the most while media are decoded and scored, and what rests.

    graphs: those that are kept, which are in none of the others.
    """

    drawn: float
    decoded: float
    rest: float
    graphs: float


class Trace:
    """A run on fake tensors, of which one rank's share is looked at; ``ranks`` that share forwards draw the same samples."""

    def __init__(
        self,
        config: RunConfig,
        ranks: int,
        shard: int,
        cuda: bool,
        counter: StorageCounter,
        fake: FakeTensorMode,
        opened: Weightless,
    ) -> None:
        context = config.distributed.context
        self._config, self._ranks, self._shard, self._cuda = config, ranks // context, shard, cuda
        self._counter = counter
        cpu, precision = torch.device("cpu"), DTYPES[config.training.precision]
        assembly = Assembly(config, trackers=False)
        train, heldout = prepare_prompts(config)
        trainable = assembly.hooks.load(Runtime(cpu, precision, places=True, context=context))
        packed = quantized_ids(trainable, config.model.quantize)
        self._second = DrawingCopy.of(trainable, config)
        with torch.device("meta"):  # adapters too are to have no bytes
            policy = Policy(trainable, assembly.hooks.log_prob, cpu, precision, config.seed)
        self._weights = Weights.of(trainable, policy, packed, config, opened.staying)
        transformers = {*map(id, trainable.modules.values()), *map(id, trainable.frozen.values())}
        self._decoder = sum(module_bytes(module) for module in opened.opened.values() if id(module) not in transformers)
        there = set(opened.opened)
        self._known = TracedConditions(assembly.hooks.encode)
        known = cast(Any, self._known)
        merges = config.sampling.merge_adapters == "auto"
        sampler = Sampler(assembly.hooks, policy, known, trainable, config.prompts.negative, inspects=False, merges=merges)
        start = counter.begin()
        held = (heldout[:ENCODED], config.evaluation.canvas(config.sampling))
        largest = largest_canvas(config)
        sampler.prepare([(train[:ENCODED], largest), held])
        if config.learned_records:
            assembly.hooks.encode_media(torch.empty(1, *record_shape(largest, trainable.frame_rate)))
        self._encoding = counter.lap() - start
        self._encoders = sum(module_bytes(module) for name, module in opened.opened.items() if name not in there)
        if shard > 1 and precision != torch.float32:  # as fully_shard gives them to the forward
            for module in () if policy.lora else policy.modules.values():
                for name, parameter in module.named_parameters():
                    if not is_island(module, name):
                        parameter.data = parameter.data.to(precision)
        sharing = Ranks(context=OneOfContext(0, context)) if context > 1 else Ranks()
        policy.distribute(sharing, config.training.model_copy(update={"compile": False}))
        for module in (*trainable.modules.values(), *trainable.frozen.values()):
            replace_tensors(module, lambda tensor: to_fake(tensor, fake))  # what a model brings with its numbers
        trained = sum(map(tensor_bytes, policy.parameters.values()))
        off_device = cuda and config.distributed.offload
        counter.share = 0 if off_device else self._weights.trained / max(1, trained) / shard
        counter.watch(policy.parameters.values())
        for name, decay in ((SAMPLING, config.sampling.ema), (EVALUATION, config.evaluation.ema)):
            if decay is not None:
                policy.track_ema(name, decay)
        self._run = Run(config, assembly, policy, sampler, train, heldout)  # nothing here steps
        policy.teachers.read_checkpoint = lambda path, weights: None  # they have shapes alone
        assembly.hooks.run_started(self._run.info, policy)
        self._kept = len({key.split("/")[1] for key in policy.state() if key.startswith("kept/")}) * self._weights.trained
        self._packed = packed_bytes(policy, config, shard)
        policy.mark_changed()  # from here on kept weights are others
        self._forwards = CachedForwards(counter, fake, (*trainable.modules.values(), *trainable.frozen.values()))
        self._guided = trainable.guided

    def measure(self) -> Traced:
        """Draw, evaluate and learn as one rank would, and count the bytes."""
        drawing = self._draw()
        return Traced(
            weights=self._weights,
            kept=self._kept,
            decoder=self._decoder,
            encoders=self._encoders,
            encoding=self._encoding,
            conditions=self._known.each,
            train=len(self._run.train),
            heldout=len(self._run.heldout),
            guided=self._guided,
            drawn=drawing.drawn,
            decoded=drawing.decoded,
            samples=drawing.rest,
            graphs=drawing.graphs,
            copy=self._second,
            evaluated=self._evaluate(),
            packed=self._packed,
            activations=self._learn(),
        )

    def _draw(self) -> DrawingBytes:
        """A rank's drawing: two forwards' worth at most is traced, and stands for the rest."""
        config, run, counter = self._config, self._run, self._counter
        sampling = config.sampling
        batch = batches.make_batch(prompts_of(config, run.train, 0), config.group_members)
        # the copy that draws is counted apart
        plan = replace(training_plan(run, 0, batch.keys), weights_as=None, canvas=largest_canvas(config))
        if config.training.keep_graphs:
            plan = replace(plan, keep_graph=run.policy.drawn_graphs.keep)
        known = run.sampler.conditions(batch.prompts, most_guidance(plan), plan.canvas)
        given, learned = drawn_and_learned(known, plan, config.algorithm)
        rounds = [len(rows) for rows in batches.split_whole_groups(batch, sampling.batch_size * self._ranks)]
        together = math.ceil(max(rounds) / self._ranks)
        mine = sum(math.ceil(rows / self._ranks) for rows in rounds)
        traced = min(together, 2 * sampling.batch_size)
        self._forwards.begin()
        start = counter.live
        drawn = run.sampler.draw(given.rows(range(traced)), plan.rows(range(traced)), sampling.batch_size)
        decoded = counter.lap() - start
        graphs = counter.live
        run.policy.drawn_graphs.held.clear()
        graphs -= counter.live
        decoded, drawing = decoded - graphs, max(0.0, self._forwards.peak - start - graphs)
        self._plan, self._trajectory, self._batch, self._conditions = plan, drawn, batch, learned
        tensors = _tensors(drawn)
        several = mine > sampling.batch_size
        # a trajectory's steps share their latents until several are joined
        each = (sum(map(tensor_bytes, tensors)) if several else _storage_bytes(tensors)) / traced
        medium = tensor_bytes(drawn.media) / traced
        if config.distributed.reward_ranks == "first":
            shown = together * self._ranks
        elif run.assembly.rewards.pointwise:
            shown = 0  # where they were drawn
        else:
            shown = together + (sampling.group_size if self._ranks > 1 else 0)  # a group that waits for the other ranks
        copies = together * (2 if together > sampling.batch_size else 1) + shown
        rest = mine * each
        decoding = max(decoded + (together - traced) * medium, copies * medium)
        if len(rounds) > 1 and not (self._cuda and sampling.keep_on == "host"):
            decoding = max(decoding, rest)  # all rounds are joined beside what they were
        if config.algorithm.learns_from != "samples":  # what was drawn stands for the latents of records
            return DrawingBytes(0, 0, mine * tensor_bytes(drawn.latents) / traced, 0)
        return DrawingBytes(drawing, decoding, rest, mine * graphs / traced)

    def _evaluate(self) -> float:
        """A rank's drawing of held-out prompts, with what is kept of them."""
        run, chosen, sampling = self._run, self._config.evaluation, self._config.sampling
        if not run.heldout:
            return 0
        batch_size = chosen.batch_size or sampling.batch_size
        rows = min(batch_size, max(1, len(run.heldout) * chosen.members // self._ranks))
        some = run.heldout[: max(1, rows // chosen.members)]
        self._forwards.begin()
        start = self._counter.live
        found = evaluate(run.sampler, run.assembly, self._config, some, score=False, keep=1)
        peak = max(self._forwards.peak, self._counter.lap()) - start
        pictures = min(chosen.pictures, len(run.heldout) * chosen.members)
        return (
            peak if self._cuda else max(peak + pictures * tensor_bytes(found.media), 2 * pictures * tensor_bytes(found.media))
        )

    def _learn(self) -> float:
        """The most while a few losses are back-propagated, gradients among it, and while preflight does so."""
        config, run, counter = self._config, self._run, self._counter
        algorithm, training, size = config.algorithm, config.training, config.group_members
        share = math.ceil(len(self._batch.keys) / training.updates / self._ranks)
        rows = min(share, 2 * training.batch_size)
        if algorithm.groupwise:
            together = max(1, training.batch_size // (algorithm.compared or size))
            rows = min(math.ceil(share / size), 2 * together) * size
        experience = self._experience(range(min(rows, len(self._batch.keys))))
        rollouts = Rollouts(experience)
        start, terms, ahead = counter.begin(), False, 0.0
        for loss in islice(losses(run, rollouts, range(len(experience)), 0), LOSSES):
            terms, ahead = bool(loss.terms), run.policy.bytes_ahead
            if loss.values.requires_grad:
                loss.values.sum().backward()  # type: ignore[no-untyped-call]
        learned = counter.lap() - start
        if not (self._cuda and config.sampling.keep_on == "host"):  # where samples rest
            learned += ahead * (share - len(experience)) / len(experience)
        if not terms:
            return learned
        del loss  # with its graph; preflight keeps another for the terms, beside their gradients
        for parameter in run.policy.parameters.values():
            parameter.grad = None
        start = counter.begin()
        gradients_flow(rollouts, run.policy, run.assembly.hooks, algorithm)
        return max(learned, counter.lap() - start)

    def _experience(self, rows: range) -> Experience:
        """As many samples, from those that were drawn over and over."""
        drawn, plan, config = self._trajectory, self._plan.rows(rows), self._config
        again = [row % len(drawn.latents) for row in rows]
        conditions = self._conditions.rows(rows)
        scores = torch.linspace(-1, 1, len(rows))
        return Experience(
            latents=drawn.latents[again],
            steps=tuple(step.map(lambda tensor: tensor[again], conditions) for step in drawn.steps),
            conditions=conditions,
            plan=plan,
            rewards=dict.fromkeys(config.rewards, scores),
            advantages=scores,
            groups=self._batch.groups[list(rows)],
            sigmas=drawn.sigmas,
            batch_size=config.training.batch_size,
            timesteps_per_forward=config.training.timesteps_per_forward,
        )


def _tensors(drawn: Trajectory) -> list[Tensor]:
    """What of a trajectory rests until it is learned from."""
    steps = [tensor for step in drawn.steps for tensor in (step.latents, step.next_latents, step.mean) if tensor is not None]
    return [drawn.latents, *steps]


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())
