"""What a run proves about itself before its first update, in one sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.distributed.sharding import local_shard
from flowfactory.errors import RunError
from flowfactory.experience import Experience, Loss
from flowfactory.flow import generator
from flowfactory.hooks.calls import Hooks
from flowfactory.lora_targets import kinds_of
from flowfactory.policy.policy import Policy
from flowfactory.rl.advantages import advantages
from flowfactory.rl.groups import group_std, rows_by_group
from flowfactory.training.inspection import check_range
from flowfactory.training.recompute import replay_steps
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.update import micro_batch_units, optimizer_steps

# a deviation of the log-density, the mean over elements, as it comes from rounding alone
TOLERANCE = {"float32": 1e-5, "bf16": 1e-3}
# of the option beyond which gradients are cut: what rounding may take without a word
SHARE = 0.2
RATIO = "ratio/max_deviation"
MISMATCH = (
    "the model does not compute the same in training as in sampling (dropout, another dtype, torch.compile, or a transformer "
    "run in two ways)"
)

# of a transformer that one time in ten is for, none of the 8 samples of an epoch is seen in 43 % of them, in all: 5e-8
EPOCHS = 20


NO_GRADIENT = "every gradient is zero, so nothing would train"


class PreflightError(RunError):
    """A check does not hold; nothing has been learned yet."""


class Finding(NamedTuple):
    """One check: whether it holds, and the sentence about it."""

    holds: bool
    sentence: str


def preflight(rollouts: Rollouts, policy: Policy, hooks: Hooks, config: RunConfig, resumed: bool = False) -> Iterator[str]:
    """The sentences of the checks that hold. RunError: the sentence of the first that does not.

    Works on the first iteration's own pictures, so that it costs one batch of training, and where steps are replayed, a forward
    of all that the first optimizer step learns from. Every rank comes to the same. Of a ``resumed`` run whose groups have lost
    their spread, what hangs on it is not looked at: ``training.patience_flat`` ends it.
    """
    if rollouts.overshoot is not None and rollouts.experience.plan.iteration == 0:  # training may lead anywhere
        check_range([far for found in rollouts.ranks.gather(rollouts.overshoot.tolist()) for far in found])
    flat = resumed and not rollouts.experience.advantages.any()
    learned, rewarded = rollouts.experience, config.algorithm.rewarded and not flat
    checks = (
        trains(policy),
        *((rewards_differ(learned.rewards, learned.groups, config),) if rewarded else ()),
        *((pairs_differ(rollouts),) if config.algorithm.learns_from == "pairs" else ()),
        ratio_is_one(rollouts, policy, hooks, config),
        *(() if flat else (gradients_flow(rollouts, policy, hooks, config.algorithm),)),
        *(gradients_flow(rollouts, policy, hooks, config.algorithm, role) for role in config.algorithm.roles),
    )
    for finding in checks:
        if not finding.holds:
            raise PreflightError(f"preflight: {finding.sentence}")
        yield finding.sentence


def trains(policy: Policy) -> Finding:
    """Something trains, and it is said what."""
    count = sum(parameter.numel() for parameter in policy.parameters.values())
    if policy.adapted:
        kinds = kinds_of(name.partition(".")[2] for name in policy.adapted)  # without that of their module
        where = f"LoRA on {len(policy.adapted)} layers ({', '.join(kinds)})"
    else:
        where = f"all weights of {', '.join(policy.modules)}"
    return Finding(count > 0, f"{where}: {count:,} trainable weights")


def pairs_differ(rollouts: Rollouts) -> Finding:
    """The chosen and the rejected record of some pair are not the same."""
    held = (rollouts.held or [range(len(rollouts.experience))])[rollouts.ranks.workers.rank]
    latents = rollouts.experience.latents.numpy(force=True)
    mine = {row: sha256(own.tobytes()).digest() for row, own in zip(held, latents, strict=True)}
    known = {row: digest for told in rollouts.ranks.workers.gather(mine) for row, digest in told.items()}
    pairs = rows_by_group(range(len(rollouts.experience)), rollouts.experience.groups)
    share = sum(known[chosen] != known[rejected] for chosen, rejected in pairs) / len(pairs)
    if not share:
        return Finding(False, "chosen and rejected are the same in every pair, so nothing would be learned; look at the files")
    return Finding(True, f"chosen and rejected differ in {share:.0%} of the pairs")


def rewards_differ(rewards: Mapping[str, Tensor], groups: Tensor, config: RunConfig) -> Finding:
    """Some reward that is trained on differs within some group; that they are finite is checked as they come in."""
    learned = [label for label, reward in config.rewards.items() if reward_weight(reward)]
    known = {label: rewards[label].isfinite() for label in learned}
    spread = {
        label: group_std(rewards[label][known[label]], groups[known[label]]) > 0 for label in learned if known[label].any()
    }
    if not spread:
        return Finding(False, "no reward applies to any of the first prompts, so nothing would be learned")
    shares = ", ".join(f"{label} in {float(differs.double().mean()):.0%}" for label, differs in spread.items())
    differing = [label for label, differs in spread.items() if differs.any()]
    if not differing:
        near = ", ".join(f"all of {x!r} are near {float(rewards[x][known[x]].double().mean()):.4g}" for x in spread)
        return Finding(
            False,
            f"rewards do not differ within any group ({near}), so "
            "that nothing would be learned; take a reward that gives partial credit, other prompts, or a larger "
            "sampling.group_size",
        )
    weights, chosen = {label: reward_weight(config.rewards[label]) for label in learned}, config.advantages
    if not advantages(rewards, weights, groups, chosen.aggregate, chosen.spread, min_range=chosen.min_range).any():
        told = ", ".join(f"{label!r} of weight {weights[label]:g}" for label in differing)
        least = f", or differ by less than advantages.min_range {chosen.min_range:g}" if chosen.min_range else ""
        change = "the weights, or min_range" if chosen.min_range else "the weights"
        return Finding(
            False, f"the rewards cancel within every group ({told}){least}, so nothing would be learned; change {change}"
        )
    return Finding(True, f"rewards are finite and differ within groups: {shares} of the groups")


def ratio_is_one(rollouts: Rollouts, policy: Policy, hooks: Hooks, config: RunConfig) -> Finding:
    """Replaying recorded steps gives what was recorded, so closely that the algorithm cuts no gradient of it.

    Looks at all that the first optimizer step learns from.
    """
    experience, bounds = rollouts.experience, config.algorithm.trust_region_bounds
    if not experience.steps:
        drawn = config.algorithm.learns_from == "samples"
        why = "this algorithm needs no log-density to replay" if drawn else "records are learned from, and nothing is drawn"
        return Finding(True, f"no step is recorded: {why}")
    if not config.algorithm.replays:
        return Finding(True, f"{len(experience.steps)} recorded steps are places to learn at: no log-density is compared")
    if any(step.log_prob is None for step in experience.steps):
        return Finding(False, "a recorded step has no log-density: its dynamics are deterministic")
    rows, _ = next(optimizer_steps(experience, config, experience.plan.iteration, epoch=0))
    pieces = rollouts.micro_batches(*micro_batch_units(rows, experience, config.algorithm))
    with policy.using(experience.plan.weights), policy.dropping_graphs():
        found = [_largest(_extremes(piece, policy, hooks if bounds else None)) for piece, _ in pieces]
    worst = _largest(each for told in rollouts.ranks.gather(found) for each in told)
    if missing := [name for name in bounds if name not in worst]:
        return Finding(False, f"no loss has the extreme {missing[0]!r}, which the algorithm's trust_region names; report it")
    told = [f"{name} {worst[name]:.1e}" for name in bounds if name != RATIO]
    told = [f"a ratio of 1 within {worst[RATIO]:.1e}", *told] if RATIO in worst else told
    sentence = f"replaying {len(experience.steps)} recorded steps gives {' and '.join(told)}"
    if (deviation := rollouts.sampling_deviation) is not None:
        sentence += f", where sampling's own log-densities are off by {deviation:.1e}"
    return _judge(sentence, worst, deviation, config)


def _extremes(piece: Experience, policy: Policy, hooks: Hooks | None) -> Iterator[Mapping[str, float]]:
    """The extremes of each loss of the algorithm that ``hooks`` call; without, the deviation of each plain ratio."""
    if hooks is not None:
        for loss in hooks.update(piece, policy):
            yield {name: float(value.detach().max()) for name, value in loss.extremes.items()}
    else:
        for then, now in zip(piece.steps, replay_steps(piece, policy), strict=True):
            assert then.log_prob is not None
            assert now.log_prob is not None
            yield {RATIO: float((torch.exp(now.log_prob - then.log_prob.to(now.log_prob.device)) - 1).abs().max())}


def _largest(extremes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each extreme; NaN is larger than any number."""
    found: dict[str, list[float]] = {}
    for each in extremes:
        for name, value in each.items():
            found.setdefault(name, []).append(value)
    return {name: max(values, key=lambda value: (math.isnan(value), value)) for name, values in found.items()}


def _judge(sentence: str, worst: Mapping[str, float], deviation: float | None, config: RunConfig) -> Finding:
    """The finding of replays that are off by ``worst``, and where they were computed again, sampling's by ``deviation``."""
    most, bounds = TOLERANCE[config.training.precision], config.algorithm.trust_region_bounds
    recomputed, ways = deviation is not None, _ways_against_rounding(config)
    if not worst.get(RATIO, 0.0) <= most:
        rounding = "" if recomputed or config.training.precision == "float32" else f"; if it is rounding, {ways}"
        return Finding(False, f"{sentence}, more than {most:.0e}: {MISMATCH}{rounding}")
    for name, (option, value) in bounds.items():
        if not worst[name] <= value:
            why = MISMATCH if recomputed else f"rounding alone cuts gradients; {ways}"
            return Finding(False, f"{sentence}, more than algorithm.{option} ({value:g}): {why}")
    if deviation is not None and not deviation <= most:
        return Finding(True, f"warning: {sentence}, more than {most:.0e}: {MISMATCH}")
    for name, (option, value) in bounds.items():
        if worst[name] > SHARE * value:
            why = MISMATCH if recomputed else f"rounding has a say in which gradients are cut; {ways}"
            return Finding(True, f"warning: {sentence}, more than a fifth of algorithm.{option} ({value:g}): {why}")
    return Finding(True, sentence)


def _ways_against_rounding(config: RunConfig) -> str:
    """What brings replays closer to what was drawn, where their log-densities are sampling's."""
    sampled, training = config.sampling.batch_size, config.training
    ways = ["training.recompute_log_prob to true"]
    if training.timesteps_per_forward > 1:
        ways.insert(0, f"training.timesteps_per_forward ({training.timesteps_per_forward}) to 1")
    if sampled != training.batch_size:
        ways.insert(0, f"sampling.batch_size ({sampled}) and training.batch_size ({training.batch_size}) to one number")
    if training.precision != "float32":
        ways.append(f"training.precision ({training.precision}) to float32")
    return f"set {', or '.join(ways)}"


def gradients_flow(rollouts: Rollouts, policy: Policy, hooks: Hooks, algorithm: AlgorithmConfig, role: str = "") -> Finding:
    """As :func:`_gradients_flow`, of the weights of ``role``; the policy's where it is empty."""
    with policy.playing(role):
        holds, sentence = _gradients_flow(rollouts, policy, hooks, algorithm, role)
    if algorithm.roles and sentence == NO_GRADIENT and not role:
        first = f"{' and '.join(algorithm.roles)} {'have' if len(algorithm.roles) > 1 else 'has'}"
        return Finding(True, f"the policy has no gradient before {first} learned from what it draws")
    return Finding(holds, f"{role}: {sentence}" if role else sentence)


def _gradients_flow(rollouts: Rollouts, policy: Policy, hooks: Hooks, algorithm: AlgorithmConfig, role: str) -> Finding:
    """Every trainable weight gets a finite gradient from the losses, and each term of those looked at has one of its own.

    It looks at them until every weight is proven. Where there are several transformers, each for times of its own, and training
    times are drawn at random, those of further epochs are looked at too.
    """
    experience, names = rollouts.experience, list(policy.parameters)
    reached: dict[str, bool] = {}  # the weights that some loss reaches, and whether its gradient is other than zero
    terms: set[str] = set()
    units, size = micro_batch_units(_largest_advantages(experience), experience, algorithm)
    epochs, seen = range(EPOCHS if policy.has_experts and not experience.steps else 1), False
    pieces = (piece for epoch in epochs for piece in rollouts.micro_batches(units, size, epoch))
    losses = (
        loss if counts else loss.empty() for piece, counts in pieces for loss in hooks.update(replace(piece, role=role), policy)
    )
    for loss in losses:
        seen = True
        for told in rollouts.ranks.gather(_gradients(loss, policy)):
            if isinstance(told, str):
                return Finding(False, told)
            reached |= {name: reached.get(name, False) or moved for name, moved in told.items()}
        terms |= set(loss.terms)
        if len(reached) == len(names) and any(reached.values()):
            break  # proven; the rest would cost as much again
    if not seen:
        return Finding(False, "the algorithm yields no loss, so nothing would train")
    if reached and not any(reached.values()):
        return Finding(False, NO_GRADIENT)
    unreached = [name for name in names if name not in reached]
    resting = [name for name, module in policy.modules.items() if _rests_entirely(name, module, unreached)]
    if unreached and not (_whole_transformers(resting, unreached) and _steps_change(experience, hooks)):
        sentence = f"{len(unreached)} of {len(names)} trainable weights get no gradient, the first {unreached[0]}"
        if policy.has_experts and _whole_transformers(resting, unreached):
            sentence += f"; none of the steps that are learned from is one of {resting[0]}'s: choose others, or train it not"
        return Finding(False, sentence)
    told = f"all {len(names)} trainable tensors"
    if resting:
        told = f"all trainable tensors but those of {', '.join(resting)}, whose steps other iterations learn from"
    return Finding(True, f"a finite gradient reaches {told}" + "".join(f", {t} too" for t in sorted(terms)))


def _rests_entirely(name: str, module: torch.nn.Module, unreached: list[str]) -> bool:
    """Whether no trainable weight of the transformer ``name`` is reached."""
    own = [f"{name}.{key}" for key, parameter in module.named_parameters() if parameter.requires_grad]
    return set(own) <= set(unreached)


def _whole_transformers(resting: list[str], unreached: list[str]) -> bool:
    """Whether all that is unreached are whole transformers."""
    return all(key.partition(".")[0] in resting for key in unreached)


def _steps_change(experience: Experience, hooks: Hooks, iterations: int = 50) -> bool:
    """Whether later iterations learn from other steps than this one."""
    plan = experience.plan
    for later in range(plan.iteration + 1, plan.iteration + iterations):
        window = plan.dynamics.window(plan.steps, later, generator("window", plan.seed, later))
        if hooks.plan(later, replace(plan, iteration=later, stochastic=window, recorded=frozenset())).recorded != plan.recorded:
            return True
    return False


def _largest_advantages(experience: Experience) -> list[int]:
    """The whole groups with the largest advantages, at least one and as many as fit a forward."""
    groups = rows_by_group(range(len(experience)), experience.groups)
    size = experience.advantages.abs().tolist()
    chosen: list[int] = []
    for rows in sorted(groups, key=lambda rows: -max(size[row] for row in rows)):
        if chosen and len(chosen) + len(rows) > experience.batch_size:
            break
        chosen += rows
    return sorted(chosen)


def _gradients(loss: Loss, policy: Policy) -> dict[str, bool] | str:
    """The weights that ``loss`` reaches, and whether each gradient is other than zero; or the sentence of what is wrong."""
    for name, term in loss.terms.items():
        if not (term.requires_grad and _backward(term, policy, keep=True)):
            return f"the term {name!r} of the loss has no gradient (computed under no_grad?), so it would do nothing"
    if not loss.values.requires_grad:
        if policy.has_experts:
            return {}  # the samples are all a frozen expert's
        return "the loss has no gradient (computed under no_grad?), so that nothing would train"
    known = _backward(loss.values, policy)
    broken = [name for name, gradient in known.items() if not gradient.isfinite().all()]
    if broken:
        return f"the gradient of {broken[0]} is not finite ({len(broken)} of {len(policy.parameters)} weights)"
    return {name: bool(gradient.any()) for name, gradient in known.items()}


def _backward(value: Tensor, policy: Policy, keep: bool = False) -> dict[str, Tensor]:
    """This rank's part of the gradients of the sum of ``value``, and none left behind."""
    parameters = policy.parameters
    value.sum().backward(retain_graph=keep)  # type: ignore[no-untyped-call]
    found = {name: local_shard(p.grad) for name, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found
