"""What a run proves about itself before its first update, in one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from flowfactory.policy.policy import Policy
from flowfactory.rl.groups import group_std
from flowfactory.training.inspection import check_range
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.update import micro_batch_units

# a deviation of the log-density, the mean over elements, as it comes from rounding alone
TOLERANCE = {"float32": 1e-5, "bf16": 1e-3}


# of a transformer that one time in ten is for, none of the 8 samples of an epoch is seen in 43 % of them, in all: 5e-8
EPOCHS = 20


class Finding(NamedTuple):
    """One check: whether it holds, and the sentence about it."""

    holds: bool
    sentence: str


def preflight(rollouts: Rollouts, policy: Policy, hooks: Hooks, config: RunConfig) -> Iterator[str]:
    """The sentences of the checks that hold. RunError: the sentence of the first that does not.

    Works on the first iteration's own pictures, so that it costs one batch of training. Every rank comes to the same.
    """
    if rollouts.overshoot is not None and rollouts.experience.plan.iteration == 0:  # training may lead anywhere
        check_range([far for found in rollouts.ranks.gather(rollouts.overshoot.tolist()) for far in found])
    checks = (
        trains(policy),
        rewards_differ(rollouts.experience.rewards, rollouts.experience.groups, config),
        ratio_is_one(rollouts, policy, TOLERANCE[config.training.precision]),
        gradients_flow(rollouts, policy, hooks, config.algorithm),
    )
    for finding in checks:
        if not finding.holds:
            raise RunError(f"preflight: {finding.sentence}")
        yield finding.sentence


def trains(policy: Policy) -> Finding:
    """Something trains, and it is said what."""
    count = sum(parameter.numel() for parameter in policy.parameters.values())
    if policy.adapted:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in policy.adapted})
        where = f"LoRA on {len(policy.adapted)} layers ({', '.join(kinds)})"
    else:
        where = f"all weights of {', '.join(policy.modules)}"
    return Finding(count > 0, f"{where}: {count:,} trainable weights")


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
    if not any(bool(differs.any()) for differs in spread.values()):
        label = next(iter(spread))
        near = float(rewards[label][known[label]].mean())
        return Finding(
            False,
            f"rewards do not differ within any group (all of {label!r} are near {near:.4g}), so "
            "that nothing would be learned; look at the pictures in samples/, and at the reward",
        )
    return Finding(True, f"rewards are finite and differ within groups: {shares} of the groups")


def ratio_is_one(rollouts: Rollouts, policy: Policy, tolerance: float) -> Finding:
    """Replaying recorded steps gives the recorded log-density."""
    experience = rollouts.experience
    if not experience.steps:
        return Finding(True, "no step is recorded: this algorithm needs no log-density to replay")
    first, _ = next(rollouts.micro_batches([[row] for row in range(len(experience))], experience.batch_size))
    deviations = []
    # with a graph, as training has: torch.compile makes another of the same forward without
    with policy.using(experience.plan.weights):
        for step in first.to_device().steps:
            replayed = policy.evaluate(step).detach().log_prob
            if replayed is None or step.log_prob is None:
                return Finding(False, "a recorded step has no log-density: its dynamics are deterministic")
            deviations.append(float((torch.exp(replayed - step.log_prob) - 1).abs().max()))
    worst = max(max(found) for found in rollouts.ranks.gather(deviations))
    sentence = f"replaying {len(deviations)} recorded steps gives a ratio of 1 within {worst:.1e}"
    if worst <= tolerance:
        return Finding(True, sentence)
    return Finding(
        False,
        f"{sentence}, more than {tolerance:.0e}: the model does not compute the same in training as in sampling "
        "(dropout, another dtype, torch.compile, or a transformer run in two ways)",
    )


def gradients_flow(rollouts: Rollouts, policy: Policy, hooks: Hooks, algorithm: AlgorithmConfig) -> Finding:
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
    for loss in (loss if counts else loss.empty() for piece, counts in pieces for loss in hooks.update(piece, policy)):
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
        return Finding(False, "every gradient is zero, so nothing would train")
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
    loudness = {g: float(experience.advantages[experience.groups == g].abs().max()) for g in set(experience.groups.tolist())}
    chosen: list[int] = []
    for group in sorted(loudness, key=lambda group: -loudness[group]):
        rows = (experience.groups == group).nonzero().flatten().tolist()
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
