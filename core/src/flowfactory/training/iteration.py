"""iterate(): sample, reward, advantage, update. train(): iterate until done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.data import batches
from flowfactory.experience import Experience, Loss
from flowfactory.flow import generator
from flowfactory.rewards import statistics
from flowfactory.rl.advantages import advantages, reward_contributions
from flowfactory.training.metrics import Timer, UpdateMetrics, peak_memory
from flowfactory.training.micro_batches import micro_batch_units, split_updates
from flowfactory.training.rollouts import Rollouts, gather_scores, roll_out, score_on_ranks
from flowfactory.training.sampler import concatenate
from flowfactory.training.setup import SAMPLING, Run
from flowfactory.types import DTYPES, NoiseKey, SamplingPlan


def sampling_plan(run: Run, iteration: int, keys: Sequence[NoiseKey]) -> SamplingPlan:
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
        weights=SAMPLING if sampling.ema else None,
        storage=DTYPES[sampling.keep_as],
    )
    return run.assembly.hooks.plan(iteration, plan)


def collect_rollouts(run: Run, iteration: int, timer: Timer) -> Rollouts:
    """The samples of an iteration: sample, reward, advantage."""
    config, ranks = run.config, run.ranks
    batch = batches.make_batch(
        batches.prompts_of_iteration(run.train, iteration, config.sampling.groups, config.seed), config.sampling.group_size
    )
    plan = sampling_plan(run, iteration, batch.keys)
    known = run.sampler.conditions(batch.prompts, max(plan.guidance, plan.teacher_guidance), plan.canvas)
    pieces, started = [], []
    held: list[list[int]] = [[] for _ in range(ranks.count)]
    for rows in batches.split_whole_groups(batch, config.sampling.batch_size * ranks.count):
        with timer("sample"):
            drawn = roll_out(run.sampler, known.rows(rows), plan.rows(rows), config.sampling.batch_size, ranks)
        with timer("reward"):
            reward_ranks = config.distributed.count_reward_ranks(ranks.count)
            started.append(
                score_on_ranks(run.assembly.rewards, drawn, batch.rows(rows), ranks, reward_ranks, run.sampler.frame_rate)
            )
        # media are the largest there is, and are with their judges; a view would keep them all the same
        pieces.append(replace(drawn.trajectory, media=drawn.trajectory.media[:0].clone()))
        held = [[*before, *(rows[i] for i in now)] for before, now in zip(held, drawn.held, strict=True)]
    with timer("reward"):
        rewards = gather_scores(started, ranks)
    trajectory = concatenate(pieces, known.rows(held[ranks.rank]))
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
        timesteps_per_forward=config.training.timesteps_per_forward,
        device=run.policy.device,
    )
    return Rollouts(experience, ranks, held)


def reward_weights(config: RunConfig) -> dict[str, float]:
    """{label: weight} of the training rewards."""
    return {label: reward_weight(reward) for label, reward in config.rewards.items()}


def iterate(run: Run, iteration: int, check: Callable[[Rollouts], None] | None = None) -> dict[str, float]:
    """The metrics of one iteration: sample, reward, advantage, update."""
    training = run.config.training
    timer, update_metrics = Timer(run.policy.device), UpdateMetrics()
    rollouts = collect_rollouts(run, iteration, timer)
    if check is not None:
        check(rollouts)
    norms: list[float] = []
    with timer("update"):
        for epoch in range(training.epochs):
            dealt = split_updates(rollouts.experience.groups, training.updates, run.config.seed, iteration, epoch)
            norms += [run.learner.step(losses(run, rollouts, rows, epoch), update_metrics) for rows in dealt]
        run.policy.iteration_finished(iteration)
    rewards, groups, chosen = rollouts.experience.rewards, rollouts.experience.groups, run.config.advantages
    supplied = reward_contributions(rewards, reward_weights(run.config), groups, chosen.aggregate, chosen.spread)
    return {
        **statistics.reward_metrics(rewards, supplied, groups),
        **update_metrics.metrics(run.ranks),
        "grad_norm": sum(norms) / len(norms),
        "lr": run.learner.rate,
        **timer.seconds,
        "peak_memory_mb": max(run.ranks.gather(peak_memory(run.policy.device))),
    }


def losses(run: Run, rollouts: Rollouts, rows: Sequence[int], epoch: int) -> Iterator[Loss]:
    """The losses of the samples ``rows``, this rank's part of them, as many on every rank."""
    units, size = micro_batch_units(rows, rollouts.experience, run.config.algorithm)
    for piece, counts in rollouts.micro_batches(units, size, epoch):
        for loss in run.assembly.hooks.update(piece, run.policy):
            yield loss if counts else loss.empty()
