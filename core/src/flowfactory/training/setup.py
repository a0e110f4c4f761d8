"""A run with its weights in place: components assembled, prompts read and encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from flowfactory.config.canvases import source_canvases
from flowfactory.config.precision import with_precision
from flowfactory.config.schema import RunConfig
from flowfactory.data.cache_folder import CacheFolder, default_folder, read_limit
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.distributed.mesh import resolve_device
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.distributed.threads import use_host_threads
from flowfactory.errors import UserError
from flowfactory.policy import blocks
from flowfactory.policy.policy import Policy
from flowfactory.training.assembly import Assembly
from flowfactory.training.drawn_batches import check_drawn_batches
from flowfactory.training.encoding_ahead import EncodingAhead
from flowfactory.training.extremes import Extremes
from flowfactory.training.judging import judges_here
from flowfactory.training.learner import Learner
from flowfactory.training.phases import phase_teller
from flowfactory.training.plans import EVALUATION, SAMPLING
from flowfactory.training.prompts import on_canvases, prepare_prompts, remarks
from flowfactory.training.records import Records
from flowfactory.training.regularising_prompts import with_targets
from flowfactory.training.sampler import Sampler
from flowfactory.training.velocity_probe import VelocityProbe
from flowfactory.types import DTYPES, Prompt, RunInfo, Runtime, Say, Trainable


@dataclass(frozen=True)
class Run:
    """A run with its weights in place."""

    config: RunConfig
    assembly: Assembly
    policy: Policy
    sampler: Sampler
    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    ranks: Ranks = ALONE
    say: Say = lambda _: None
    ahead: EncodingAhead | None = None
    """What of ``train`` is encoded; all where it is None."""
    records: Records | None = None
    """The latents of what prompts bring to learn from; None where nothing learns from that."""

    @property
    def info(self) -> RunInfo:
        """What observers are told."""
        return run_info(self.config, self.say)

    @cached_property
    def learner(self) -> Learner:
        """The owner of the optimizer, made when it is first asked for: what draws alone has none, nor its moments."""
        algorithm = self.config.algorithm
        return Learner(self.policy, self.config.training, self.ranks, algorithm.kl_term, algorithm.roles)

    @cached_property
    def targets(self) -> Sequence[Prompt]:
        """Those of ``train`` that bring a target."""
        return with_targets(self.train)

    @cached_property
    def extremes(self) -> Extremes:
        """The best and the worst samples of the last iteration."""
        return Extremes(self.ranks)

    @cached_property
    def velocity_probe(self) -> VelocityProbe:
        """What tells how large the velocity is where nothing changes but the weights."""
        return VelocityProbe(self.policy, self.sampler, self.train, self.config.seed, self.config.sampling.batch_size)


def run_info(config: RunConfig, say: Say) -> RunInfo:
    """What observers are told of a run of ``config``."""
    return RunInfo(config.output.dir, config, config.training.iterations, say)


def slow_products(config: RunConfig, trainable: Trainable) -> str | None:
    """A sentence about float32 without TF32, where a large transformer computes so on CUDA; None where none does."""
    if (
        not blocks.is_large(trainable.modules.values())
        or config.training.precision != "float32"
        or config.training.matmul == "high"
    ):
        return None
    return "training.precision: float32 is about ten times slower than bf16 on CUDA; write bf16, or training.matmul: high"


def prepare_run(
    config: RunConfig,
    say: Say = lambda _: None,
    trackers: bool = True,
    ranks: Ranks = ALONE,
    scores: bool = True,
    trains: bool = True,
    drawn: Sequence[Prompt] = (),
    assembly: Assembly | None = None,
    done: int = 0,
) -> Run:
    """Components assembled, prompts read and encoded, weights where the ranks are to have them.

    Where it is to have ``scores``, rewards that hold no weights are prepared first: a server that is not there is told soon.
    What does not train reads no prompts to train on, and without ``scores`` none at all; its weights have the run's precision.
    ``drawn`` are to be drawn as held-out ones are, and are encoded with the others. ``assembly`` has who watches, if somebody
    does; it is made of ``config`` where there is none. ``done`` iterations are: of many prompts to train on, those of the next
    ones are encoded.
    """
    device = resolve_device(config.device, ranks.local)
    config = with_precision(config, device.type == "cuda")
    torch.set_float32_matmul_precision(config.training.matmul)  # of this process: backward passes run beyond any context
    if trains:
        _check_ranks(config, ranks)
    assembly = assembly or Assembly(config, trackers=trackers and ranks.leads)
    assembly.hooks.prepare_tracker()
    use_host_threads(device)
    folder = CacheFolder.from_environment(say)
    train, heldout = prepare_prompts(config, trains, scores)
    for sentence in remarks(config, train, heldout):
        say(f"warning: {sentence}")
    if scores and judges_here(config.distributed, ranks):
        assembly.prepare_rewards(device, weights=False)
    precision = DTYPES[config.training.precision]
    context = ranks.context.count if ranks.context else 1
    runtime = Runtime(device, precision, ranks.agree, places=True, in_turn=ranks.in_turn, context=context)
    tell_phase = phase_teller(assembly.hooks, ranks)
    tell_phase("loading", 0, 0)
    trainable = assembly.hooks.load(runtime)
    try:
        config.model.check(config)  # again: what a hub id names may only now be on this machine
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    if trains and device.type == "cuda" and (told := slow_products(config, trainable)):
        say(f"warning: {told}")
    blocks.check_names([*trainable.modules.values(), *trainable.frozen.values()], trainable.blocks)
    host = config.training.kept_on == "host"
    policy = Policy(trainable, assembly.hooks.log_prob, device, precision, config.seed, host, config.model.quantize, trains)
    if policy.start:
        say(policy.start.sentence(config.algorithm.taught_by_base))
    elif trains and config.algorithm.taught_by_base:
        say(f"the teacher is {'the model without adapters' if policy.lora else 'what training starts from'}")
    sampler = _make_sampler(config, assembly, policy, trainable, folder, ranks)
    ahead = EncodingAhead(train, config)
    records = _make_records(config, assembly, trainable, device, ranks, say) if trains and config.learned_records else None
    encoded = _encode(config, sampler, records, ahead, done, heldout, drawn)
    say(ahead.tell(len(heldout), encoded))
    _distribute(config, policy, ranks)
    return Run(config, assembly, policy, sampler, train, heldout, ranks, say, ahead, records)


def _encode(
    config: RunConfig,
    sampler: Sampler,
    records: Records | None,
    ahead: EncodingAhead,
    done: int,
    heldout: Sequence[Prompt],
    drawn: Sequence[Prompt],
) -> int:
    """How many prompts had to be encoded of those that a run needs at first, after ``done`` iterations."""
    canvas = config.evaluation.canvas(config.sampling)
    wanted = [*on_canvases(config, ahead.at_start(done)), (heldout, canvas)]
    encoded = sampler.prepare([*wanted, (drawn, canvas)])
    if records is not None:
        records.prepare(ahead.at_start(done), config.learned_records)
    ahead.reach(done)
    sampler.check_conditions(wanted)
    return encoded


def _check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """UserError: what trains cannot do on these ranks what the config asks for."""
    check_drawn_batches(config, ranks.count)
    if config.sampling.weights_as and ranks.mesh is not None:
        divided = "weights are divided over the ranks, and a copy of them would be whole on each"
        raise UserError(f"sampling.weights_as: {divided}; set distributed.shard to 1, or leave it out")


def _make_sampler(
    config: RunConfig, assembly: Assembly, policy: Policy, trainable: Trainable, folder: CacheFolder, ranks: Ranks
) -> Sampler:
    tell = _encoding_teller(assembly, ranks)
    encode, matters = assembly.hooks.encode, trainable.canvas_matters
    cache = EncodeCache(encode, trainable.encoding, folder, policy.device, matters, ranks, tell)
    on_host, merges = config.sampling.keep_on == "host", config.sampling.merge_adapters == "auto"
    return Sampler(assembly.hooks, policy, cache, trainable, config.prompts.negative, on_host, ranks, merges=merges)


def _encoding_teller(assembly: Assembly, ranks: Ranks) -> Callable[[int, int], None]:
    tell_phase = phase_teller(assembly.hooks, ranks)

    def tell(done: int, total: int) -> None:
        if ranks.leads:
            assembly.hooks.prompts_encoded(done, total)
        tell_phase("encoding", done, total)

    return tell


def _make_records(
    config: RunConfig, assembly: Assembly, trainable: Trainable, device: torch.device, ranks: Ranks, say: Say
) -> Records:
    """They lie beside the prompts, in the same folder, and are needed for as long as these."""
    return Records(
        assembly.hooks,
        trainable.media_encoding or trainable.encoding,
        CacheFolder(default_folder(), read_limit(), say),
        device,
        source_canvases(config),
        trainable.frame_rate,
        ranks,
        _encoding_teller(assembly, ranks),
        config.sampling.keep_on == "host",
    )


def _distribute(config: RunConfig, policy: Policy, ranks: Ranks) -> None:
    """Bring the weights to where the run has them, and begin the averages that the config asks for."""
    # compiled blocks are for weights that stay in their place
    training = config.training.model_copy(update={"compile": False}) if config.sampling.weights_as else config.training
    policy.distribute(ranks, training, config.distributed.gather_to_sample)
    for name, decay in ((SAMPLING, config.sampling.ema), (EVALUATION, config.evaluation.ema)):
        if decay is not None:
            policy.track_ema(name, decay)
