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

from flowfactory import checkpoint, conditions, prompts, rundir
from flowfactory.assembly import Assembly
from flowfactory.conditions import ConditionCache
from flowfactory.config import RunConfig, reward_weight
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.evaluation import EVALUATION, evaluate
from flowfactory.flow import generator
from flowfactory.learner import Gathered, Learner
from flowfactory.objectives import advantages
from flowfactory.policy import Policy
from flowfactory.preflight import preflight
from flowfactory.rundir import RunDirectory
from flowfactory.sampler import Sampler, joined, merged, samples_of
from flowfactory.types import DTYPES, Experience, NoiseKey, Prompt, RunInfo, Runtime, SamplingPlan

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

    @property
    def info(self) -> RunInfo:
        """What observers are told."""
        return RunInfo(self.config.output.dir, self.config, self.config.training.iterations)


def device_of(name: str) -> torch.device:
    """The device; ``auto`` is CUDA where there is one. UserError: no such device here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


def read_prompts(config: RunConfig) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The training and the held-out prompts. UserError: they are not what the model takes."""
    train = prompts.read(config.prompts.train)
    heldout = prompts.read(config.prompts.heldout) if config.prompts.heldout else ()
    prompts.insist([*train, *heldout], config.model.takes, getattr(config.model, "name", "model"))
    return train, heldout


def prepare(config: RunConfig, observers: Sequence[object] = (), say: Say = lambda _: None, trackers: bool = True) -> Run:
    """Components assembled, prompts read and encoded, weights on the device."""
    assembly = Assembly(config, observers, trackers)
    device = device_of(config.device)
    train, heldout = read_prompts(config)
    precision = DTYPES[config.training.precision]
    trainable = assembly.hooks.load(Runtime(device, precision))
    try:
        config.model.check(config)  # again: what a hub id names may only now be on this machine
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    host = config.training.kept_on == "host"
    policy = Policy(trainable, assembly.hooks.log_prob, device, precision, config.seed, host)
    folder = conditions.default_folder()
    cache = ConditionCache(assembly.hooks.encode, trainable.encoding, folder, device, trainable.canvas_matters)
    on_host = config.sampling.keep_on == "host"
    sampler = Sampler(assembly.hooks, policy, cache, trainable, config.prompts.negative, on_host)
    heldout_canvas = config.evaluation.canvas(config.sampling)
    wanted = [*((prompt, config.sampling.canvas) for prompt in train), *((prompt, heldout_canvas) for prompt in heldout)]
    encoded = sampler.prepare(wanted)
    say(f"{len(train)} training and {len(heldout)} held-out prompts, {encoded} encoded now, the rest from the cache")
    policy.to_device()
    for name, decay in ((SAMPLING, config.sampling.average), (EVALUATION, config.evaluation.average)):
        if decay is not None:
            policy.average(name, decay)
    return Run(config, assembly, policy, sampler, Learner(policy, config.training), train, heldout)


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


def gather(run: Run, iteration: int, clock: Clock) -> Experience:
    """The experience of an iteration: sample, reward, advantage."""
    config = run.config
    batch = prompts.grouped(
        prompts.chosen(run.train, iteration, config.sampling.groups, config.seed), config.sampling.group_size
    )
    plan = plan_of(run, iteration, batch.keys)
    known = run.sampler.conditions(batch.prompts, max(plan.guidance, plan.teacher_guidance), plan.canvas)
    drawn, scores = [], []
    for rows in prompts.whole_groups(batch, config.sampling.batch_size):
        with clock("sample"):
            piece = run.sampler.draw(known.rows(rows), plan.rows(rows), config.sampling.batch_size)
        with clock("reward"):
            scores.append(run.assembly.rewards(samples_of(piece.media, batch.rows(rows), run.sampler.frame_rate)))
        drawn.append(replace(piece, media=piece.media[:0]))  # media are the largest there is, and have been judged
    trajectory, rewards = joined(drawn, known), merged(scores)
    weights = {label: reward_weight(reward) for label, reward in config.rewards.items()}
    chosen = config.advantages
    advantage = advantages(rewards, weights, batch.groups, chosen.aggregate, chosen.spread, chosen.clip)
    return Experience(
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


def shares(experience: Experience, updates: int, seed: int, epoch: int) -> Iterator[Experience]:
    """``experience`` dealt out to ``updates`` optimizer steps, in an order of its own each epoch.

    Groups stay whole where there are enough of them.
    """
    source = generator("shares", seed, experience.plan.iteration, epoch)
    experience = replace(experience, epoch=epoch)
    groups = torch.unique(experience.groups)
    if len(groups) >= updates:
        for part in groups[torch.randperm(len(groups), generator=source)].tensor_split(updates):
            yield experience.rows(torch.isin(experience.groups, part).nonzero().flatten().tolist())
    else:
        for rows in torch.randperm(len(experience), generator=source).tensor_split(updates):
            yield experience.rows(rows.sort().values.tolist())


def iterate(run: Run, iteration: int, check: Callable[[Experience], None] | None = None) -> dict[str, float]:
    """The metrics of one iteration: sample, reward, advantage, update."""
    training = run.config.training
    clock, gathered = Clock(run.policy.device), Gathered()
    experience = gather(run, iteration, clock)
    if check is not None:
        check(experience)
    norms = []
    with clock("update"):
        for epoch in range(training.epochs):
            for share in shares(experience, training.updates, run.config.seed, epoch):
                losses = run.assembly.hooks.update(share, run.policy)
                norms.append(run.learner.step(losses, gathered))
        run.policy.iteration_finished(iteration)
    return {
        **{f"reward/{label}/mean": float(reward.double().mean()) for label, reward in experience.rewards.items()},
        **{f"reward/{label}/std": float(reward.double().std(correction=0)) for label, reward in experience.rewards.items()},
        **gathered.metrics(),
        "grad_norm": sum(norms) / len(norms),
        "lr": run.learner.rate,
        **clock.seconds,
        "peak_memory_mb": peak_memory(run.policy.device),
    }


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most that the device's allocator held, or on a CPU that the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def train(config: RunConfig, resume: bool = False, observers: Sequence[object] = (), say: Say = print) -> RunDirectory:
    """Train to the last iteration and return the run directory.

    RunError: something is off with the training; the sentence names the last checkpoint. Interrupted: asked to stop; the
    iteration under way was finished and saved first.
    """
    directory = RunDirectory(config.output.dir)
    directory.open(config, resume)
    run = prepare(config, observers, say)
    run.assembly.hooks.run_started(run.info, run.policy)
    done = _take_up(run, directory, resume, say)
    try:
        _iterations(run, directory, done, say)
    except RunError as error:
        last = checkpoint.latest(directory.checkpoints)
        where = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
        raise RunError(f"{error}; {where}") from error
    run.assembly.hooks.run_finished(run.info)
    return directory


def _take_up(run: Run, directory: RunDirectory, resume: bool, say: Say) -> int:
    last = checkpoint.latest(directory.checkpoints) if resume else None
    if last is not None:
        done = checkpoint.restore(last, run.policy, run.learner)
        directory.rewind(done)
        say(f"resumed after iteration {done} from {last}")
        return done
    if resume:
        say("nothing to resume from: starting at the first iteration")
    rundir.write(directory.metrics, "")
    rundir.write(directory.facts, rundir.as_json({"versions": versions()}))
    _observe(run, directory, 0, {}, say)
    return 0


def _iterations(run: Run, directory: RunDirectory, done: int, say: Say) -> None:
    config = run.config
    hooks = run.assembly.hooks

    def check(experience: Experience) -> None:
        for sentence in preflight(experience, run.policy, hooks, config):
            say(f"preflight: {sentence}")

    with stop_request(say) as stop:
        for number in range(done + 1, config.training.iterations + 1):
            metrics = iterate(run, number - 1, check if number == done + 1 else None)
            last = number == config.training.iterations
            _observe(run, directory, number, metrics, say, last)
            if last or number % config.output.checkpoint_every == 0 or stop.is_set():
                path = checkpoint.save(directory.checkpoints, number, run.policy, run.learner)
                hooks.checkpoint_saved(number, path)
            if stop.is_set() and not last:
                raise Interrupted(f"stopped after iteration {number}; continue with --resume")


def _observe(run: Run, directory: RunDirectory, number: int, metrics: dict[str, float], say: Say, last: bool = False) -> None:
    """Evaluate when it is time, write the iteration's record, tell the observers."""
    config = run.config.evaluation
    if run.heldout and (number == 0 or last or (config.every and number % config.every == 0)):
        result = evaluate(run.sampler, run.assembly, run.config, run.heldout, keep=config.pictures)
        metrics = metrics | result.metrics()
        kept = slice(len(result.media))
        scores = {label: score[kept] for label, score in result.scores.items()}
        directory.keep_samples(number, result.media, result.prompts[kept], scores, run.sampler.frame_rate)
        told = ", ".join(f"{label} {float(score.double().mean()):.4f}" for label, score in result.scores.items())
        say(f"held-out score after iteration {number}, {len(result.prompts)} pictures: {told}")
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
    names = ["flowfactory", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy"]
    plugins = sorted({entry.dist.name for entry in metadata.entry_points(group="flowfactory") if entry.dist})
    found = {}
    for name in chain(names, plugins):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
