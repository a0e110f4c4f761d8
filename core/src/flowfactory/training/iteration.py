"""iterate(): rollouts, rewards, advantages, update, and the figures of it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flowfactory.config.canvases import drawn_from, main_canvas
from flowfactory.config.schema import reward_weights
from flowfactory.data import batches
from flowfactory.drift.panel import Panel
from flowfactory.experience import Experience
from flowfactory.rewards import statistics
from flowfactory.rl.advantages import clipped_sum, reward_contributions
from flowfactory.training.guidance import drawn_and_learned, most_guidance, training_plan
from flowfactory.training.judging import Judging
from flowfactory.training.kl_gate import gate_kl
from flowfactory.training.metrics import Timer, UpdateMetrics, peak_memory
from flowfactory.training.phases import Phase, begin_phase, phase_teller
from flowfactory.training.prompts import on_canvases, prompts_of
from flowfactory.training.recompute import recompute_log_prob
from flowfactory.training.record_rollouts import collect_records
from flowfactory.training.regularising import Regularising
from flowfactory.training.rollouts import Rollouts, roll_out
from flowfactory.training.sampler import concatenate
from flowfactory.training.setup import Run
from flowfactory.training.update import learned_from, update
from flowfactory.types import SamplingPlan


def collect(run: Run, iteration: int, timer: Timer) -> Rollouts:
    """What an iteration learns from: samples that are drawn, or records."""
    _encode_what_lacks(run, iteration, timer)
    kind = run.config.algorithm.learns_from
    if kind == "samples":
        return collect_rollouts(run, iteration, timer)
    with timer("read"):
        rollouts = collect_records(run, iteration, prompts_of(run.config, run.train, iteration), kind)
    _read_ahead(run, iteration, rollouts.experience.plan)
    return rollouts


def collect_rollouts(run: Run, iteration: int, timer: Timer) -> Rollouts:
    """The samples of an iteration: sample, reward, advantage."""
    config, ranks, workers = run.config, run.ranks, run.ranks.workers
    batch = batches.make_batch(prompts_of(config, run.train, iteration), config.sampling.group_size)
    plan = _plan(run, iteration, batch)
    known = run.sampler.conditions(batch.prompts, most_guidance(plan), plan.canvas)
    shown, learned = drawn_and_learned(known, plan, config.algorithm)
    _read_ahead(run, iteration, plan)
    judging = _judging(run, batch) if config.algorithm.rewarded else None
    panel = Panel(batch.groups, ranks) if _is_compared(run, plan) else None
    drawing = begin_phase(run.assembly.hooks, ranks, "drawing", len(batch.keys))
    run.extremes.begin(len(batch.keys))
    pieces, batch_size = [], config.sampling.batch_size
    held: list[list[int]] = [[] for _ in range(workers.count)]
    for rows in batches.split_whole_groups(batch, batch_size * workers.count):
        with timer("sample"):
            some = batch.rows(rows), shown.rows(rows), plan.rows(rows)
            drawn = roll_out(run.sampler, *some, batch_size, ranks, drawing.add)
        if judging:
            with timer("reward"):
                judging.add(drawn, rows)
        with timer("drift"):
            if panel:
                panel.add(drawn.trajectory.media, drawn.trajectory.latents, drawn.held, rows)
            run.extremes.add(drawn.trajectory.media, drawn.held, rows)
        # media are the largest there is, and are with their rewards; a view would keep them all the same
        pieces.append(replace(drawn.trajectory, media=drawn.trajectory.media[:0].clone()))
        for already, now in zip(held, drawn.held, strict=True):
            already.extend(rows[i] for i in now)
    if config.training.keep_graphs:
        run.policy.drawn_graphs.check_drawn()
    with timer("reward"):
        rewards = judging.scores() if judging else {}
    with timer("drift"):
        figures = (panel.metrics() if panel else {}) | statistics.source_metrics(
            rewards, [prompt.source for prompt in batch.prompts]
        )
    trajectory = concatenate(pieces, learned.rows(held[workers.rank]))
    supplied = _contributions(run, rewards, batch) if judging else {}
    advantages = clipped_sum(supplied, config.advantages.clip) if judging else torch.ones(len(batch.keys))
    run.extremes.judge(advantages, rewards, batch.texts)
    gate, gate_metrics = gate_kl(rewards, config)
    experience = Experience(
        latents=trajectory.latents,
        steps=trajectory.steps,
        conditions=learned,
        plan=plan,
        rewards=rewards,
        advantages=advantages.to(trajectory.latents.device),
        kl_gate=None if gate is None else gate.to(trajectory.latents.device),
        groups=batch.groups,
        sources=tuple(prompt.source for prompt in batch.prompts),
        sigmas=trajectory.sigmas,
        batch_size=config.training.batch_size,
        timesteps_per_forward=config.training.timesteps_per_forward,
        device=run.policy.device,
    )
    return Rollouts(experience, ranks, held, trajectory.overshoot, figures=figures | gate_metrics, supplied=supplied)


def _is_compared(run: Run, plan: SamplingPlan) -> bool:
    """Whether the figures that are compared from iteration to iteration are those of this one: they depend on the canvas."""
    return plan.canvas == main_canvas(run.config)


def _is_encoded(run: Run, iteration: int) -> bool:
    return run.ahead is None or run.ahead.has(iteration)


def _encode_what_lacks(run: Run, iteration: int, timer: Timer) -> None:
    """Have the prompts of ``iteration``, and of those after it that are encoded with them. A joint work of the ranks."""
    if run.ahead is None or run.ahead.has(iteration):
        return
    with timer("encode"):
        upcoming = run.ahead.upcoming(iteration)
        run.sampler.prepare(on_canvases(run.config, upcoming), in_training=True)
        if run.records is not None:
            run.records.prepare(upcoming, run.config.learned_records, in_training=True)
    run.ahead.reach(iteration)


def _read_ahead(run: Run, iteration: int, plan: SamplingPlan) -> None:
    """Begin to read what the iteration after this one needs, whose plan is ``plan``."""
    if iteration + 1 < run.config.training.iterations and _is_encoded(run, iteration + 1):
        prompts, count = prompts_of(run.config, run.train, iteration + 1), run.config.group_members
        canvas = drawn_from(run.config, iteration + 1).canvas
        run.sampler.read_ahead([prompt for prompt in prompts for _ in range(count)], most_guidance(plan), canvas)


def _judging(run: Run, batch: batches.Batch) -> Judging:
    config, ranks = run.config, run.ranks
    judges = config.distributed.count_reward_ranks(ranks.workers.count)
    judged = Phase(phase_teller(run.assembly.hooks, ranks), "judging", len(batch.keys))
    return Judging(run.assembly.rewards, batch, ranks, judges, run.sampler.frame_rate, judged.reach)


def _plan(run: Run, iteration: int, batch: batches.Batch) -> SamplingPlan:
    plan = training_plan(run, iteration, batch.keys)
    if not run.config.training.keep_graphs:
        return plan
    run.policy.drawn_graphs.held.clear()  # of an iteration that preflight has made begin again
    return replace(plan, keep_graph=run.policy.drawn_graphs.keep)


def _contributions(run: Run, rewards: Mapping[str, Tensor], batch: batches.Batch) -> dict[str, Tensor]:
    chosen = run.config.advantages
    how = chosen.aggregate, chosen.spread, chosen.min_range
    return reward_contributions(rewards, reward_weights(run.config), batch.groups, *how)


def iterate(run: Run, iteration: int, before_update: Callable[[Rollouts], None] | None = None) -> dict[str, float]:
    """The metrics of one iteration: sample, reward, advantage, update; ``before_update`` sees what the update learns from."""
    timer, update_metrics = Timer(run.policy.device), UpdateMetrics()
    rollouts, coefficient = collect(run, iteration, timer), run.learner.kl_coefficient
    rollouts = replace(rollouts, experience=replace(rollouts.experience, kl_coefficient=coefficient))
    if run.config.training.recompute_log_prob:
        with timer("recompute"):
            recomputing = begin_phase(run.assembly.hooks, run.ranks, "recomputing", len(rollouts.experience))
            rollouts = recompute_log_prob(rollouts, run.policy, run.config, recomputing.add)
    if before_update is not None:
        begin_phase(run.assembly.hooks, run.ranks, "checking", 0)
        before_update(rollouts)
    regularising = None
    if run.config.training.regularise:
        with timer("read"):
            regularising = Regularising.of(run, iteration)
    compared = _is_compared(run, rollouts.experience.plan)
    fixed = {"velocity_rms/fixed": run.velocity_probe.measure(rollouts.experience)} if compared else {}
    run.learner.movement.mark()
    with timer("update"):
        norms = update(run, rollouts, iteration, update_metrics, regularising)
        run.learner.check_weights()  # the gradients were finite, which does not make their step so
    learned = update_metrics.metrics(run.ranks.workers)
    run.learner.adapt_kl(learned.get("kl"))
    rewarded = run.config.algorithm.rewarded
    rewards, groups, deviation = rollouts.experience.rewards, rollouts.experience.groups, rollouts.sampling_deviation
    return {
        **statistics.reward_metrics(rewards, rollouts.supplied, groups),
        **({"groups/equal": statistics.group_share(~learned_from(rollouts.experience), groups)} if rewarded else {}),
        **learned,
        **({} if coefficient is None else {"kl_coefficient": coefficient}),
        **(run.learner.kl_reference.take_metrics() if run.learner.kl_reference else {}),
        **({} if deviation is None else {"ratio/sampling_deviation": deviation}),
        **rollouts.figures,
        **fixed,
        "grad_norm": sum(norms) / len(norms),
        **run.learner.movement.metrics(),
        "lr": run.learner.rate,
        **timer.seconds,
        "peak_memory_mb": max(run.ranks.gather(peak_memory(run.policy.device))),
    }
