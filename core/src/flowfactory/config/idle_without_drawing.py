"""Keys that do nothing where records are learned from, for which nothing is drawn, or where no reward is."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.config.schema import AdvantagesConfig, RunConfig, SamplingConfig, TrainingConfig

OF_DRAWING = ("group_size", "feature_cache", "weights_as", "shared_noise", "keep_as")
"""Keys of sampling that evaluations do not share."""


def idle_without_drawing(config: RunConfig) -> Iterator[str]:
    """One sentence a key, with what to do."""
    name = getattr(config.algorithm, "name", "")
    if config.algorithm.learns_from != "samples":
        yield from _of_drawing(config, f"algorithm {name} learns from records, and draws nothing")
    if not config.algorithm.rewarded:
        yield from _of_rewards(config, f"algorithm {name} learns from no reward")


def _of_drawing(config: RunConfig, why: str) -> Iterator[str]:
    sampling = config.sampling
    for key in OF_DRAWING:
        if getattr(sampling, key) != SamplingConfig.model_fields[key].default:
            yield f"sampling.{key} does nothing: {why}; leave it out"
    if sampling.ema is not None:
        yield f"sampling.ema does nothing: {why}; set evaluation.ema, or leave it out"
    if sampling.dynamics.stochastic:
        yield f"sampling.dynamics does nothing: {why}; leave it out"


def _of_rewards(config: RunConfig, why: str) -> Iterator[str]:
    for key in AdvantagesConfig.model_fields:
        if getattr(config.advantages, key) != AdvantagesConfig.model_fields[key].default:
            yield f"advantages.{key} does nothing: {why}; leave it out"
    if config.training.patience_flat != TrainingConfig.model_fields["patience_flat"].default:
        yield f"training.patience_flat does nothing: {why}; leave it out"
    if config.rewards and config.evaluation.rewards:
        yield f"rewards do nothing: {why}, and evaluation.rewards has its own; leave them out"
    elif config.rewards and not config.prompts.held_out:
        yield f"rewards do nothing: {why}, and nothing is held out; name a file in prompts.heldout, or leave them out"
