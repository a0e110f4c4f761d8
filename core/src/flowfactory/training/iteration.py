"""iterate(): sample, reward, advantage, update. train(): iterate until done."""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import chain
from types import FrameType

import torch

from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.data import encode_cache, prompts
from flowfactory.data.encode_cache import ConditionCache
from flowfactory.distributed.ranks import ALONE, Ranks, device_of
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.flow import generator
from flowfactory.policy.policy import Policy
from flowfactory.rewards import statistics
from flowfactory.rl.advantages import advantages, contributions
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.directory import RunDirectory, as_json, write
from flowfactory.training.assembly import Assembly
from flowfactory.training.evaluation import EVALUATION, evaluate
from flowfactory.training.learner import Gathered, Learner
from flowfactory.training.preflight import preflight
from flowfactory.training.rollouts import Pool, draw, forwards_worth, judge, judged, shares
from flowfactory.training.sampler import Sampler, joined
from flowfactory.types import DTYPES, Experience, Loss, NoiseKey, Prompt, RunInfo, Runtime, SamplingPlan

Say = Callable[[str], None]
SAMPLING = "sampling"


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


def read_prompts(config: RunConfig) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The training and the held-out prompts. UserError: they are not what the model takes."""
    train = prompts.read(config.prompts.train)
    heldout = prompts.read(config.prompts.heldout) if config.prompts.heldout else ()
    prompts.insist([*train, *heldout], config.model.takes, getattr(config.model, "name", "model"))
    prompts.insist_on_labels([*train, *heldout], [*config.rewards, *config.evaluation.rewards])
    return train, heldout


def prepare(
    config: RunConfig,
    observers: Sequence[object] = (),
    say: Say = lambda _: None,
    trackers: bool = True,
    ranks: Ranks = ALONE,
) -> Run:
    """Components assembled, prompts read and encoded, weights where the ranks are to have them."""
    assembly = Assembly(config, observers, trackers and ranks.leads)
    device = device_of(config.device, ranks.local)
    train, heldout = read_prompts(config)
    precision = DTYPES[config.training.precision]
    trainable = assembly.hooks.load(Runtime(device, precision, ranks.agree))
    try:
        config.model.check(config)  # again: what a hub id names may only now be on this machine
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    host = config.training.kept_on == "host"
    policy = Policy(trainable, assembly.hooks.log_prob, device, precision, config.seed, host, config.model.quantize)
    folder = encode_cache.default_folder()
    cache = ConditionCache(assembly.hooks.encode, trainable.encoding, folder, device, trainable.canvas_matters)
    on_host = config.sampling.keep_on == "host"
    sampler = Sampler(assembly.hooks, policy, cache, trainable, config.prompts.negative, on_host, ranks)
    heldout_canvas = config.evaluation.canvas(config.sampling)
    wanted = [*((prompt, config.sampling.canvas) for prompt in train), *((prompt, heldout_canvas) for prompt in heldout)]
    encoded = sampler.prepare(wanted)
    say(f"{len(train)} training and {len(heldout)} held-out prompts, {encoded} encoded now, the rest from the cache")
    policy.settle(ranks, config.training, config.distributed.gather_to_sample)
    for name, decay in ((SAMPLING, config.sampling.average), (EVALUATION, config.evaluation.average)):
        if decay is not None:
            policy.average(name, decay)
    return Run(config, assembly, policy, sampler, Learner(policy, config.training, ranks), train, heldout, ranks)


class Clock:
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


def plan_of(run: Run, iteration: int, keys: Sequence[NoiseKey]) -> SamplingPlan:
    """The iteration's plan: a function of the config and the iteration alone, then the algorithm's say."""
    sampling = run.config.sampling
    dynamics = run.assembly.dynamics
    plan = SamplingPlan(
        steps=sampling.steps,
        canvas=sampling.canvas,
        guidance=sampling.guidance,
        dynamics=dynamics,
        seed=run.config.seed,
        iteration=iteration,
        keys=tuple(keys),
        stochastic=dynamics.window(sampling.steps, iteration, generator("window", run.config.seed, iteration)),
        weights=SAMPLING if sampling.average else None,
        storage=DTYPES[sampling.keep_as],
    )
    return run.assembly.hooks.plan(iteration, plan)


def gather(run: Run, iteration: int, clock: Clock) -> Pool:
    """The samples of an iteration: sample, reward, advantage."""
    config, ranks = run.config, run.ranks
    batch = prompts.grouped(
        prompts.chosen(run.train, iteration, config.sampling.groups, config.seed), config.sampling.group_size
    )
    plan = plan_of(run, iteration, batch.keys)
    known = run.sampler.conditions(batch.prompts, max(plan.guidance, plan.teacher_guidance), plan.canvas)
    pieces, started = [], []
    held: list[list[int]] = [[] for _ in range(ranks.count)]
    for rows in prompts.whole_groups(batch, config.sampling.batch_size * ranks.count):
        with clock("sample"):
            drawn = draw(run.sampler, known.rows(rows), plan.rows(rows), config.sampling.batch_size, ranks)
        with clock("reward"):
            judges = config.distributed.judges_of(ranks.count)
            started.append(judge(run.assembly.rewards, drawn, batch.rows(rows), ranks, judges, run.sampler.frame_rate))
        # media are the largest there is, and are with their judges; a view would keep them all the same
        pieces.append(replace(drawn.trajectory, media=drawn.trajectory.media[:0].clone()))
        held = [[*before, *(rows[i] for i in now)] for before, now in zip(held, drawn.held, strict=True)]
    with clock("reward"):
        rewards = judged(started, ranks)
    trajectory = joined(pieces, known.rows(held[ranks.rank]))
    chosen = config.advantages
    advantage = advantages(rewards, reward_weights(config), batch.groups, chosen.aggregate, chosen.spread, chosen.clip)
    experience = Experience(
        latents=trajectory.latents,
        steps=trajectory.steps,
        conditions=known,
        plan=plan,
        rewards=rewards,
        advantages=advantage.to(trajectory.latents.device),
        groups=batch.groups,
        sigmas=trajectory.sigmas,
        batch_size=config.training.batch_size,
        times_per_forward=config.training.times_per_forward,
        device=run.policy.device,
    )
    return Pool(experience, ranks, held)


def reward_weights(config: RunConfig) -> dict[str, float]:
    """{label: weight} of the training rewards."""
    return {label: reward_weight(reward) for label, reward in config.rewards.items()}


def iterate(run: Run, iteration: int, check: Callable[[Pool], None] | None = None) -> dict[str, float]:
    """The metrics of one iteration: sample, reward, advantage, update."""
    training = run.config.training
    clock, gathered = Clock(run.policy.device), Gathered()
    pool = gather(run, iteration, clock)
    if check is not None:
        check(pool)
    norms: list[float] = []
    with clock("update"):
        for epoch in range(training.epochs):
            dealt = shares(pool.experience.groups, training.updates, run.config.seed, iteration, epoch)
            norms += [run.learner.step(losses(run, pool, rows, epoch), gathered) for rows in dealt]
        run.policy.iteration_finished(iteration)
    rewards, groups, chosen = pool.experience.rewards, pool.experience.groups, run.config.advantages
    supplied = contributions(rewards, reward_weights(run.config), groups, chosen.aggregate, chosen.spread)
    return {
        **statistics.figures(rewards, supplied, groups),
        **gathered.metrics(run.ranks),
        "grad_norm": sum(norms) / len(norms),
        "lr": run.learner.rate,
        **clock.seconds,
        "peak_memory_mb": max(run.ranks.gather(peak_memory(run.policy.device))),
    }


def losses(run: Run, pool: Pool, rows: Sequence[int], epoch: int) -> Iterator[Loss]:
    """The losses of the samples ``rows``, this rank's part of them, as many on every rank."""
    units, size = forwards_worth(rows, pool.experience, run.config.algorithm)
    for piece, counts in pool.pieces(units, size, epoch):
        for loss in run.assembly.hooks.update(piece, run.policy):
            yield loss if counts else loss.idle()


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most that the device's allocator held, or on a CPU that the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def train(
    config: RunConfig,
    resume: bool = False,
    observers: Sequence[object] = (),
    say: Say = print,
    ranks: Ranks = ALONE,
) -> RunDirectory:
    """Train to the last iteration and return the run directory.

    RunError: something is off with the training; the sentence names the last checkpoint. Interrupted: asked to stop; the
    iteration under way was finished and saved first.
    """
    directory = RunDirectory(config.output.dir)
    if ranks.leads:
        directory.open(config, resume)
    else:
        say = _silent
    ranks.barrier()
    run = prepare(config, observers, say, ranks=ranks)
    if ranks.rank < config.distributed.judges_of(ranks.count):
        run.assembly.prepare_rewards(run.policy.device)
    run.assembly.hooks.run_started(run.info, run.policy)
    checkpoints = Checkpoints(directory.checkpoints, ranks, config, say)
    done = _take_up(run, directory, checkpoints, resume, say)
    try:
        _iterations(run, directory, checkpoints, done, say)
    except RunError as error:
        last = checkpoints.latest
        where = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
        raise RunError(f"{error}; {where}") from error
    run.assembly.hooks.run_finished(run.info)
    return directory


def _silent(sentence: str) -> None:
    """What ranks other than the leading one say."""


def _take_up(run: Run, directory: RunDirectory, checkpoints: Checkpoints, resume: bool, say: Say) -> int:
    """The iteration that is done, after the last whole checkpoint where there is one to resume from."""
    done = checkpoints.restore(run.policy, run.learner) if resume else None
    if done is not None:
        say(f"resumed after iteration {done} from {directory.checkpoints / f'{done:06d}'}")
        if run.ranks.leads:
            directory.rewind(done)
        return done
    if resume:
        say("nothing to resume from: starting at the first iteration")
    if run.ranks.leads:
        write(directory.metrics, "")
        write(directory.facts, as_json({"versions": versions()}))
    _observe(run, directory, 0, {}, say)
    return 0


def _iterations(run: Run, directory: RunDirectory, checkpoints: Checkpoints, done: int, say: Say) -> None:
    config = run.config
    hooks = run.assembly.hooks

    def check(pool: Pool) -> None:
        for sentence in preflight(pool, run.policy, hooks, config):
            say(f"preflight: {sentence}")

    warned: set[str] = set()
    with stop_request(say) as asked:
        for number in range(done + 1, config.training.iterations + 1):
            metrics = iterate(run, number - 1, check if number == done + 1 else None)
            if (label := statistics.dominating(metrics)) and label not in warned:
                warned.add(label)
                say(f"warning: in iteration {number} {statistics.told_of_dominance(label, metrics)}")
            last = number == config.training.iterations
            _observe(run, directory, number, metrics, say, last)
            stopping = run.ranks.any(asked.is_set()) and not last  # a signal does not reach all ranks at once
            saved = checkpoints.poll()
            if last or stopping or number % config.output.checkpoint_every == 0:
                saved += checkpoints.save(number, run.policy, run.learner)
            if last or stopping:
                saved += checkpoints.finish()
            for written, path in saved:
                hooks.checkpoint_saved(written, path)
            if stopping:
                raise Interrupted(f"stopped after iteration {number}; continue with --resume")


def _observe(run: Run, directory: RunDirectory, number: int, metrics: dict[str, float], say: Say, last: bool = False) -> None:
    """Evaluate when it is time, write the iteration's record, tell the observers."""
    config = run.config.evaluation
    if run.heldout and (number == 0 or last or (config.every and number % config.every == 0)):
        result = evaluate(run.sampler, run.assembly, run.config, run.heldout, keep=config.pictures, ranks=run.ranks)
        metrics = metrics | result.metrics()
        kept = slice(len(result.media))
        scores = {label: score[kept] for label, score in result.scores.items()}
        if run.ranks.leads:
            directory.keep_samples(number, result.media, result.prompts[kept], scores, run.sampler.frame_rate)
        told = ", ".join(f"{label} {float(score.double().mean()):.4f}" for label, score in result.scores.items())
        say(f"held-out score after iteration {number}, {len(result.prompts)} pictures: {told}")
    if run.ranks.leads:
        directory.append({"iteration": number, **metrics})
    run.assembly.hooks.iteration_finished(number, metrics)


@contextmanager
def stop_request(say: Say) -> Iterator[threading.Event]:
    """Set by the first Ctrl+C or SIGTERM; the second one acts as always."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        say("stopping after this iteration, which is saved; once more to stop at once")
        for which, handler in before.items():
            signal.signal(which, handler)

    for which in before:
        signal.signal(which, ask)
    try:
        yield asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def versions() -> dict[str, str]:
    """The version of every distribution that has a say in the figures."""
    names = ["flowfactory", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "bitsandbytes"]
    plugins = sorted({entry.dist.name for entry in metadata.entry_points(group="flowfactory") if entry.dist})
    found = {}
    for name in chain(names, plugins):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
