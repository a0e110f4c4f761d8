"""train(): iterate until done, with checkpoints, evaluations, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from flowfactory.atomic_files import disk_fault
from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.config.idle_keys import idle_keys
from flowfactory.config.precision import with_precision
from flowfactory.config.schema import RunConfig
from flowfactory.distributed.mesh import resolve_device
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.drift.alarm import DriftWatch
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.flow.noise import generator
from flowfactory.quiet_libraries import quiet_libraries
from flowfactory.runs import trust
from flowfactory.runs.check.recipe import reward_doubts
from flowfactory.runs.checkpoints.load import read_trained
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.doctor.watch import Watch
from flowfactory.runs.facts import EARLY, add_facts, begin, go_on, read_facts
from flowfactory.runs.flat_iterations import FlatIterations, count_flat
from flowfactory.runs.held_out_scores import HeldOutScores
from flowfactory.runs.lock import DirectoryLost, RunLock, describe_unwritable
from flowfactory.runs.ownership import own
from flowfactory.runs.resumption import resume_run
from flowfactory.runs.score_format import tell_evaluation
from flowfactory.runs.stop_request import stop_request, stops_at_once
from flowfactory.training.assembly import Assembly
from flowfactory.training.evaluation import evaluate
from flowfactory.training.iteration import iterate
from flowfactory.training.judging import judges_here
from flowfactory.training.phases import begin_phase
from flowfactory.training.preflight import PreflightError, preflight
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run, prepare_run, run_info
from flowfactory.types import Say


@quiet_libraries()
def train(
    config: RunConfig,
    resume: bool = False,
    observers: Sequence[object] = (),
    say: Say = print,
    ranks: Ranks = ALONE,
) -> RunDirectory:
    """Train to the last iteration and return the run directory, which nobody else may run in meanwhile.

    UserError: somebody else does, or it holds another run. RunError: something is off with the training; the sentence names the
    last checkpoint. Interrupted: asked to stop; the iteration under way was finished and saved first, if asked once.
    """
    # saved as it is, so that whoever resumes, samples or exports elsewhere computes in the same
    config = with_precision(config, resolve_device(config.device, ranks.local).type == "cuda")
    directory = RunDirectory(config.output.dir)
    say = say if ranks.leads else _silent
    with stops_at_once(ranks), _opened(directory, config, resume, ranks, say) as lock:
        with _translated(directory, lock):
            # for plugins that draw from torch's own generator, whose state a checkpoint holds
            torch.manual_seed(generator("torch", config.seed, ranks.workers.rank).initial_seed())
            assembly = Assembly(config, observers, ranks.leads)
        hooks = assembly.hooks
        try:
            with _translated(directory, lock):
                done = _count_done(directory, ranks) if resume else 0
                run = prepare_run(config, say, ranks=ranks, assembly=assembly, done=done)
                if judges_here(config.distributed, ranks):
                    assembly.prepare_rewards(run.policy.device)
                require = lock.require if lock else _nothing
                require()
                run.policy.teachers.read_checkpoint = read_trained
                hooks.run_started(run.info, run.policy)
                _train(run, directory, lock, require, resume, say)
                require()
                hooks.run_finished(run.info)
        except BaseException as error:
            hooks.run_failed(run_info(config, say), error, say)
            raise
    return directory


@contextmanager
def _opened(directory: RunDirectory, config: RunConfig, resume: bool, ranks: Ranks, say: Say) -> Iterator[RunLock | None]:
    """Within it the run directory is this run's, whose lock the leading rank is given.

    UserError, on every rank: it is somebody else's, holds another run, or cannot be written to.
    """
    with ExitStack() as stack:
        lock, problem = None, None
        if ranks.leads:
            try:
                lock = stack.enter_context(own(directory, say))
                directory.open(config, resume)
                begin(directory.facts, lock.token)
                if not directory.has_begun():
                    go_on(directory.facts)
            except (UserError, OSError) as error:
                problem = error
        told = ranks.broadcast(problem and _describe_opening(directory, problem))
        if told is not None:
            raise UserError(told) from problem
        if ranks.leads:
            trust.remember(config, say)
            for sentence in (*idle_keys(config), *reward_doubts(config)):
                say(f"warning: {sentence}")
        yield lock


def _describe_opening(directory: RunDirectory, problem: Exception) -> str:
    if isinstance(problem, OSError):
        return describe_unwritable(directory.path, problem)
    return str(problem)


@contextmanager
def _translated(directory: RunDirectory, lock: RunLock | None) -> Iterator[None]:
    """Interrupted: within it the run was stopped at once. RunError: a file cannot be written; the disk is full, or gone.

    DirectoryLost: whatever else came of it, the run directory is not this run's any more.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        saved = bool(list_checkpoints(directory.checkpoints))
        what = "what was saved before is as it was, continue with --resume" if saved else "nothing was saved yet"
        raise Interrupted(f"stopped at once; {what}") from error
    except Exception as error:
        if lock and (lost := lock.lost()):
            raise DirectoryLost(lost) from error
        if isinstance(error, UserError | RunError):
            raise
        if told := disk_fault(error, f"a file of {directory.path}"):
            raise RunError(f"{told}, and continue with --resume") from error
        raise


def _nothing() -> None:
    """What ranks other than the leading one ask of the lock."""


def _train(
    run: Run, directory: RunDirectory, lock: RunLock | None, require: Callable[[], None], resume: bool, say: Say
) -> None:
    held_out = HeldOutScores(run.config, directory, run.ranks)
    checkpoints = Checkpoints(directory.checkpoints, run.ranks, run.config, say, require, held_out.best_until)
    done = resume_run(run, directory, checkpoints, require, resume, say)
    held_out.forget_after(done)
    try:
        with _translated(directory, lock):
            _iterations(run, directory, checkpoints, held_out, require, done, say)
    except DirectoryLost:
        raise
    except RunError as error:
        last = checkpoints.latest
        where = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
        raise RunError(f"{error}; {where}") from error


def _count_done(directory: RunDirectory, ranks: Ranks) -> int:
    """The iterations that are done, as the names of the checkpoints say."""
    there = ranks.broadcast(list_checkpoints(directory.checkpoints))
    return int(there[-1].name) if there else 0


def _silent(sentence: str) -> None:
    """What ranks other than the leading one say."""


def _iterations(
    run: Run,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    held_out: HeldOutScores,
    require: Callable[[], None],
    done: int,
    say: Say,
) -> None:
    config = run.config
    watch = _watch(run, directory, require)
    before = run.ranks.broadcast(directory.records())
    flat, drift = FlatIterations(config, count_flat(before), say), DriftWatch(before, say)

    def record(number: int, metrics: dict[str, float], last: bool = False) -> None:
        metrics = _record(run, directory, require, drift, number, metrics, say, last)
        held_out.add(number, metrics)
        for sentence in watch.add({"iteration": number, **metrics}) if watch else ():
            say(f"warning: {sentence}")

    def before_first_update(rollouts: Rollouts) -> None:
        for sentence in preflight(rollouts, run.policy, run.assembly.hooks, config, resumed=done > 0):
            say(f"preflight: {sentence}")
        if done == 0:
            with asked.suspended():  # nothing is there yet to be saved first
                record(0, {})

    with stop_request(say) as asked:
        ended = held_out.why_stop()  # of a run that is resumed
        for number in range(done + 1, config.training.iterations + 1):
            if ended:
                break
            with _kept_where_it_fails(run, directory, checkpoints, number - 1, say):
                metrics = _iterate(run, number, before_first_update if number == done + 1 else None, say)
            last = number == config.training.iterations
            flat_for_long = flat.add(number, metrics)  # which warns, in the last iteration too
            record(number, metrics, last)
            ended = held_out.why_stop()
            last = last or ended is not None
            too_long = None if last else flat_for_long
            interrupted = run.ranks.any(asked.is_set()) and not last  # a signal does not reach all ranks at once
            stopping = interrupted or too_long is not None
            if last or stopping or is_evaluated(config, number):
                _write_extremes(run, directory, require, number)
            _save(run, checkpoints, number, held_out.is_best(number), last or stopping)
            if too_long:
                raise RunError(too_long)
            if stopping:
                raise Interrupted(f"stopped after iteration {number}; continue with --resume")
    if ended:
        say(ended)
        if run.ranks.leads:
            require()
            add_facts(directory.facts, {EARLY: ended})


def _watch(run: Run, directory: RunDirectory, require: Callable[[], None]) -> Watch | None:
    """Who warns of what the figures tell; on the leading rank, which alone is heard."""
    if not run.ranks.leads:
        return None
    require()
    guidance = "classifier-free" if run.sampler.guided else "given"
    add_facts(directory.facts, {"prompts": {"train": len(run.train)}, "guidance": guidance})
    return Watch(run.config.model_dump(mode="json"), read_facts(directory.facts), directory.records())


def _iterate(run: Run, number: int, before_update: Callable[[Rollouts], None] | None, say: Say) -> dict[str, float]:
    """The metrics of iteration ``number``; without torch.compile from now on, where preflight finds fault with it."""
    try:
        return iterate(run, number - 1, before_update)
    except PreflightError as error:
        if not run.policy.stop_compiling():
            raise
        say(f"warning: {error}; once more without torch.compile, which training.compile: auto had chosen")
        return iterate(run, number - 1, before_update)


@contextmanager
def _kept_where_it_fails(run: Run, directory: RunDirectory, checkpoints: Checkpoints, done: int, say: Say) -> Iterator[None]:
    """Within it iteration ``done`` is saved if the next one fails before it has changed a weight, as where a reward does.

    One rank alone does so: of several, others may be gone, or have failed elsewhere.
    """
    random, steps = torch.get_rng_state(), run.learner.steps
    try:
        yield
    except (RunError, UserError):
        there = (directory.checkpoints / f"{done:06d}").exists()
        if done and not there and run.ranks.count == 1 and run.learner.steps == steps:
            torch.set_rng_state(random)
            try:
                _save(run, checkpoints, done, best=False, last=True)
            except (RunError, UserError, OSError) as problem:
                say(f"warning: iteration {done}, the last that was made, cannot be saved: {problem}")
        raise


def _save(run: Run, checkpoints: Checkpoints, number: int, best: bool, last: bool) -> None:
    """Save the checkpoint of iteration ``number`` if it is time, it is the ``best``, or the ``last``; observers hear of it."""
    saved = checkpoints.poll()
    if last or best or number % run.config.output.checkpoint_every == 0:
        begin_phase(run.assembly.hooks, run.ranks, "saving", 0)
        run.learner.check_weights()  # again: whoever heard of the iteration may have changed them
        saved += checkpoints.save(number, run.policy, run.learner)
    if last:
        saved += checkpoints.finish()
    for written, path in saved:
        run.assembly.hooks.checkpoint_saved(written, path)


def _record(
    run: Run,
    directory: RunDirectory,
    require: Callable[[], None],
    drift: DriftWatch,
    number: int,
    metrics: dict[str, float],
    say: Say,
    last: bool = False,
) -> dict[str, float]:
    """Evaluate when it is time, write the iteration's record, tell the observers; the metrics, with those of the evaluation."""
    config = run.config.evaluation
    if run.heldout and (last or is_evaluated(run.config, number) or (number == 0 and config.at_start)):
        result = evaluate(run.sampler, run.assembly, run.config, run.heldout, keep=config.pictures, ranks=run.ranks)
        figures = result.metrics()
        metrics = metrics | figures
        kept = slice(len(result.media))
        scores = {label: score[kept] for label, score in result.scores.items()}
        if run.ranks.leads:
            require()
            written = directory.write_samples(number, result.media, result.prompts[kept], scores, run.sampler.frame_rate)
            run.assembly.hooks.evaluation_finished(number, written)
        means = {label: figures.get(f"eval/{label}/mean") for label in result.scores}
        say(tell_evaluation(number, len(result.prompts), run.sampler.frame_rate is not None, means))
    metrics = metrics | drift.add({"iteration": number, **metrics})
    require()
    if run.ranks.leads:
        go_on(directory.facts)
        directory.append({"iteration": number, **metrics})
    run.assembly.hooks.iteration_finished(number, metrics)
    return metrics


def is_evaluated(config: RunConfig, number: int) -> bool:
    """Whether an evaluation is due after iteration ``number``, be it the last or not."""
    every = config.evaluation.every
    return bool(every and number and number % every == 0)


def _write_extremes(run: Run, directory: RunDirectory, require: Callable[[], None], number: int) -> None:
    """Write the best and the worst samples of iteration ``number``. A joint work of the ranks."""
    extremes = run.extremes.gather()
    if run.ranks.leads:
        require()
        directory.write_extremes(number, extremes)
