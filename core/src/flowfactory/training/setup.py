"""A run with its weights in place: components assembled, prompts read and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowfactory.config.idle_keys import idle_keys_of_prompts
from flowfactory.config.precision import with_precision
from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.data import prompts
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.distributed.mesh import resolve_device
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import UserError
from flowfactory.policy import blocks
from flowfactory.policy.policy import Policy
from flowfactory.training.assembly import Assembly
from flowfactory.training.learner import Learner
from flowfactory.training.plans import EVALUATION, SAMPLING
from flowfactory.training.sampler import Sampler
from flowfactory.types import DTYPES, Prompt, RunInfo, Runtime, Say, Trainable


@dataclass(frozen=True)
class Run:
    """A run with its weights in place."""

    config: RunConfig
    assembly: Assembly
    policy: Policy
    sampler: Sampler
    learner: Learner
    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    ranks: Ranks = ALONE

    @property
    def info(self) -> RunInfo:
        """What observers are told."""
        return RunInfo(self.config.output.dir, self.config, self.config.training.iterations)


def prepare_prompts(
    config: RunConfig, trains: bool = True, scores: bool = True
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The training prompts, none unless it ``trains``, and the held-out ones, none where it neither trains nor ``scores``.

    UserError: they are not what the model takes.
    """
    wanted = config.prompts
    train = prompts.read_prompts(wanted.train, wanted.video_fps) if trains else ()
    heldout = prompts.read_prompts(wanted.heldout, wanted.video_fps) if wanted.heldout and (trains or scores) else ()
    prompts.check_media([*train, *heldout], config.model.takes, getattr(config.model, "name", "model"))
    prompts.check_files(train, config.model, config.sampling.canvas.frames)
    prompts.check_files(heldout, config.model, config.evaluation.canvas(config.sampling).frames)
    labels, learned = [*config.rewards, *config.evaluation.rewards], {x for x, r in config.rewards.items() if reward_weight(r)}
    prompts.check_reward_labels(train, labels, learned)
    prompts.check_reward_labels(heldout, labels)
    return train, heldout


LARGE = 100_000_000
"""Weights of a transformer whose speed is worth a word."""


def slow_products(config: RunConfig, trainable: Trainable) -> str | None:
    """A sentence about float32 without TF32, where a large transformer computes so on CUDA; None where none does."""
    count = sum(parameter.numel() for module in trainable.modules.values() for parameter in module.parameters())
    if count < LARGE or config.training.precision != "float32" or config.training.matmul == "high":
        return None
    return "training.precision: float32 is about ten times slower than bf16 on CUDA; write bf16, or training.matmul: high"


def prepare_run(
    config: RunConfig,
    observers: Sequence[object] = (),
    say: Say = lambda _: None,
    trackers: bool = True,
    ranks: Ranks = ALONE,
    scores: bool = True,
    trains: bool = True,
) -> Run:
    """Components assembled, prompts read and encoded, weights where the ranks are to have them.

    Where it is to have ``scores``, rewards that hold no weights are prepared first: a server that is not there is told soon.
    What does not train reads no prompts to train on, and without ``scores`` none at all.
    """
    device = resolve_device(config.device, ranks.local)
    config = with_precision(config, device.type == "cuda")
    torch.set_float32_matmul_precision(config.training.matmul)  # of this process: backward passes run beyond any context
    assembly = Assembly(config, observers, trackers and ranks.leads)
    folder = CacheFolder.from_environment(say)
    train, heldout = prepare_prompts(config, trains, scores)
    for sentence in idle_keys_of_prompts(config, [*train, *heldout]):
        say(f"warning: {sentence}")
    if scores and ranks.rank < config.distributed.count_reward_ranks(ranks.count):
        assembly.prepare_rewards(device, weights=False)
    precision = DTYPES[config.training.precision]
    trainable = assembly.hooks.load(Runtime(device, precision, ranks.agree))
    try:
        config.model.check(config)  # again: what a hub id names may only now be on this machine
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    if trains and device.type == "cuda" and (told := slow_products(config, trainable)):
        say(f"warning: {told}")
    blocks.check_names([*trainable.modules.values(), *trainable.frozen.values()], trainable.blocks)
    host = config.training.kept_on == "host"
    policy = Policy(trainable, assembly.hooks.log_prob, device, precision, config.seed, host, config.model.quantize)
    cache = EncodeCache(assembly.hooks.encode, trainable.encoding, folder, device, trainable.canvas_matters)
    on_host = config.sampling.keep_on == "host"
    merges = config.sampling.merge_adapters == "auto"
    sampler = Sampler(assembly.hooks, policy, cache, trainable, config.prompts.negative, on_host, ranks, merges=merges)
    heldout_canvas = config.evaluation.canvas(config.sampling)
    wanted = [*((prompt, config.sampling.canvas) for prompt in train), *((prompt, heldout_canvas) for prompt in heldout)]
    encoded = sampler.prepare(wanted)
    sampler.check_conditions(wanted)
    say(f"{len(train)} training and {len(heldout)} held-out prompts, {encoded} encoded now, the rest from the cache")
    policy.distribute(ranks, config.training, config.distributed.gather_to_sample)
    for name, decay in ((SAMPLING, config.sampling.ema), (EVALUATION, config.evaluation.ema)):
        if decay is not None:
            policy.track_ema(name, decay)
    return Run(config, assembly, policy, sampler, Learner(policy, config.training, ranks), train, heldout, ranks)
