"""What can only be said of several keys of a config together: one sentence for each thing that cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from flowfactory.config import bitsandbytes
from flowfactory.config.canvases import source_canvases
from flowfactory.config.component import ComponentConfig
from flowfactory.config.findings import Finding
from flowfactory.config.held_out_scores import held_out_score_errors
from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.config.shortcuts import kept_graph_errors, shortcut_errors
from flowfactory.config.teachers import teacher_errors
from flowfactory.config.training_guidance import training_guidance_errors
from flowfactory.discovery.source_places import describe_exception, place_of
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean, join_or

PICTURES = 1_000_000
"""The most an iteration draws: what is known of each is held in memory."""


def check_together(config: RunConfig, whole: bool = True, unread: Collection[str] = ()) -> Iterator[Finding]:
    """What is wrong. Where ``config`` is not ``whole``, a check that needs what is missing says nothing.

    The components below the keys ``unread`` are not used, and need not have on this machine what they need.
    """
    lost = [place for place, part in _components(config, whole) if part is None]
    if lost:
        yield from (Finding(place, "a validator of its options returns None; end it with 'return self'") for place in lost)
        return
    used = [
        (place, part) for place, part in _components(config, whole) if not place.startswith(tuple(f"{key}." for key in unread))
    ]
    trains = "prompts.train" not in unread
    checks = (*CHECKS, *((_trainable, _sources, teacher_errors, held_out_score_errors) if trains else ()))
    given_up = None
    for check in (*checks, *(_component_check(place, part, whole) for place, part in used)):
        try:
            for sentence in check(config):
                key = sentence.partition(":")[0]
                if key != given_up:  # what it lacks beside is for nothing
                    yield Finding("", sentence)
                if check is _trainable:
                    given_up = key
        except (AttributeError, TypeError):
            if whole:
                raise


def _sources(config: RunConfig) -> Iterator[str]:
    chosen = config.prompts
    if not chosen.trained:
        yield "prompts.train: names no file; write at least one, NAME: {file: …}"
    labels = [*config.rewards, *config.evaluation.rewards]
    for name, source in chosen.named.items():
        for label in source.rewards or ():
            if label not in labels:
                told = f"{label!r} is no label of the config{did_you_mean(label, labels)}"
                yield f"prompts.train.{name}.rewards: {told}"


def _components(config: RunConfig, whole: bool) -> Iterator[tuple[str, ComponentConfig]]:
    def there(*keys: str) -> object:
        found: object = config
        for key in keys:
            found = getattr(found, key) if whole else getattr(found, key, {})
        return found

    for place in (("model",), ("algorithm",), ("sampling", "dynamics")):
        yield ".".join(place), there(*place)  # type: ignore[misc]
    if isinstance(drawn_by := there("evaluation", "dynamics"), ComponentConfig):
        yield "evaluation.dynamics", drawn_by
    for place in (("rewards",), ("evaluation", "rewards")):
        rewards = there(*place)
        for label, reward in rewards.items() if isinstance(rewards, dict) else ():
            yield f"{'.'.join(place)}.{label}", reward
    trackers = there("output", "trackers")
    for number, tracker in enumerate(trackers if isinstance(trackers, tuple) else ()):
        yield f"output.trackers.{number}", tracker


def _component_check(place: str, part: ComponentConfig, whole: bool) -> Callable[[RunConfig], Iterator[str]]:
    def check(config: RunConfig) -> Iterator[str]:
        try:
            if lacking := part.lacking():
                yield f"{place}: {lacking}"
            answer: object = part.check(config)  # type: ignore[func-returns-value]
            if answer is not None:
                told = "raise ValueError with the sentence, and return nothing"
                yield f"{place}: {place_of(type(part).check)} returned a {type(answer).__name__}; {told}"
        except (ValueError, UserError) as error:
            yield str(error)
        except Exception as error:
            if whole:  # a mistake of the component's author
                yield f"{place}: {place_of(type(part).check)}: {describe_exception(error)}"
        if getattr(part, "workers", 0) and str(getattr(part, "device", "")).startswith("cuda"):
            yield f"{place}.workers: workers compute on the CPU, and {place}.device is cuda; leave one of them out"

    return check


def _updates(config: RunConfig) -> Iterator[str]:
    pictures, updates = config.sampling.groups * config.group_members, config.training.updates
    remedy = "sampling.groups or group_size" if config.algorithm.learns_from == "samples" else "sampling.groups"
    if updates > pictures:
        whose = {"samples": "pictures", "targets": "targets", "pairs": "records"}[config.algorithm.learns_from]
        yield f"training.updates ({updates}) is more than the {pictures} {whose} there are; set it lower, or {remedy} higher"
    elif config.algorithm.groupwise and updates > config.sampling.groups:
        yield (
            f"training.updates ({updates}) is more than the {config.sampling.groups} groups there are, and "
            "this algorithm compares the members of a group; set it lower, or epochs higher"
        )


def _pictures(config: RunConfig) -> Iterator[str]:
    groups, size = config.sampling.groups, config.sampling.group_size
    if groups * size > PICTURES:
        yield f"sampling.groups ({groups}) times group_size ({size}) is more than the {PICTURES} pictures an iteration can have"


def _quantized(config: RunConfig) -> Iterator[str]:
    if config.model.quantize and config.model.train == "full":
        yield "model.quantize: weights that train cannot be quantised; train {lora: {}}, or leave it out"
    elif lacking := bitsandbytes.quantization_unavailable(config.model.quantize):
        yield lacking


def _autocast(config: RunConfig) -> Iterator[str]:
    if not config.training.autocast and config.model.train == "full":
        told = "weights that train are float32, which autocast alone rounds"
        yield f"training.autocast: false: {told}; train {{lora: {{}}}}, or leave it out"


def _trainable(config: RunConfig) -> Iterator[str]:
    if reason := config.model.untrainable():
        yield reason


def _context(config: RunConfig) -> Iterator[str]:
    context = config.distributed.context
    if context == 1:
        return
    if not config.model.context_parallel:
        known = join_or(sorted(_models_with_context())) or "none that is installed"
        name = getattr(config.model, "name", "this one")
        yield f"distributed.context {context}: model {name} cannot divide its tokens; set it to 1, or take {known}"
    if config.training.compile is True:
        yield f"distributed.context {context}: blocks of divided tokens are not compiled; leave training.compile out"


def _models_with_context() -> Iterator[str]:
    """The names of the installed models whose forwards ranks can share."""
    from flowfactory.config.component_slots import config_class  # which imports the models: for a mistake alone
    from flowfactory.discovery.discover import discover

    for name, component in discover().components["model"].items():
        with suppress(UserError):
            if getattr(config_class(component), "context_parallel", False):
                yield name


def _own_sampler(config: RunConfig) -> Iterator[str]:
    if config.algorithm.own_sampler and config.sampling.ema is not None:
        yield "sampling.ema: this algorithm chooses itself which weights draw; leave it out"


def _shared_noise(config: RunConfig) -> Iterator[str]:
    shared, dynamics = config.sampling.shared_noise, config.sampling.dynamics
    if shared != "none" and not dynamics.stochastic and config.algorithm.learns_from == "samples":
        name = getattr(dynamics, "name", "these dynamics")
        yield (
            f"sampling.shared_noise: {shared}: the steps of {name} add no noise, so that all pictures of a group would be the "
            "same; choose stochastic dynamics, such as flow-sde, or leave it out"
        )


def _evaluated(config: RunConfig) -> Iterator[str]:
    dynamics = config.evaluation.dynamics
    if dynamics is not None and dynamics.stochastic:
        name = getattr(dynamics, "name", "these")
        yield f"evaluation.dynamics: {name} adds noise to the steps; choose ode, dpm-solver or heun, or leave it out for ode"


def _recomputed(config: RunConfig) -> Iterator[str]:
    if config.training.recompute_log_prob and not config.algorithm.trust_region:
        yield (
            f"training.recompute_log_prob: algorithm {getattr(config.algorithm, 'name', '')} compares no recorded step with "
            "what it was when drawn, so there is nothing to compute again; leave it out"
        )


def _optimizer(config: RunConfig) -> Iterator[str]:
    if reason := bitsandbytes.optimizer_unavailable(config.training.optimizer, config.device, config.distributed.offload):
        yield f"training.optimizer: {reason}"


def _labels(config: RunConfig) -> Iterator[str]:
    for section, rewards in (("rewards", config.rewards), ("evaluation.rewards", config.evaluation.rewards)):
        for label in rewards:
            if not re.fullmatch(r"[\w.-]+", label):  # labels are parts of the names of metrics
                yield f"{section}: the label {label!r} may have letters, digits, '_', '-' and '.' alone"


def _rewards(config: RunConfig) -> Iterator[str]:
    if not config.algorithm.rewarded:
        return
    if not config.rewards:
        told = "got {}" if "rewards" in config.model_fields_set else "this key is missing"
        yield f"rewards: {told}; give a mapping from labels to rewards"
    if (size := config.sampling.group_size) < 2:
        yield f"sampling.group_size: got {size}; give a whole number from 2 to 10000"


def _roles(config: RunConfig) -> Iterator[str]:
    if config.algorithm.roles and config.algorithm.trust_region and config.training.keep_graphs:
        name = getattr(config.algorithm, "name", "")
        beside = ", ".join(config.algorithm.roles)
        yield f"training.keep_graphs: algorithm {name} trains {beside} on what was drawn too; leave it out"


def _records(config: RunConfig) -> Iterator[str]:
    if config.algorithm.learns_from != "samples" and config.training.regularise:
        name = getattr(config.algorithm, "name", "")
        yield f"training.regularise: algorithm {name} learns from records itself; leave it out"


def _sizes(config: RunConfig) -> Iterator[str]:
    if config.training.regularise and len(set(source_canvases(config).values())) > 1:
        yield "training.regularise: targets join iterations of whatever size; train all sources at one size, or leave it out"


def _weights(config: RunConfig) -> Iterator[str]:
    if config.algorithm.rewarded and config.rewards and not any(reward_weight(reward) for reward in config.rewards.values()):
        yield "every reward has weight 0: nothing would be learned"


def _gated_kl(config: RunConfig) -> Iterator[str]:
    term = config.algorithm.kl_term
    if term and term.gate and all(reward_weight(reward) for reward in config.rewards.values()):
        yield (
            "algorithm.kl.gate: the rewards that are learned from are compared with others, and there are none; give a reward "
            "that is only to be watched weight: 0, or leave the gate out"
        )


CHECKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _pictures,
    _updates,
    _quantized,
    _autocast,
    _context,
    _own_sampler,
    _shared_noise,
    _evaluated,
    _recomputed,
    kept_graph_errors,
    shortcut_errors,
    training_guidance_errors,
    _optimizer,
    _labels,
    _rewards,
    _records,
    _roles,
    _sizes,
    _weights,
    _gated_kl,
)
