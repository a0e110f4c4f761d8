"""Keys that do nothing, or hardly what was meant, beside the others: harmless, and most likely not what somebody wanted."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.config.schema import EvaluationConfig, RunConfig, reward_weight


def idle_keys(config: RunConfig) -> Iterator[str]:
    """One sentence a key, with what to do."""
    yield from _heldout(config)
    yield from _beyond_the_run(config)
    yield from _average(config)
    yield from _guidance(config)
    for label, reward in config.evaluation.rewards.items():
        if reward_weight(reward) != 1:
            yield f"evaluation.rewards.{label}.weight does nothing: an evaluation reports each reward by itself; leave it out"
    for component in (config.model, config.algorithm, config.sampling.dynamics, *config.rewards.values()):
        yield from component.remarks(config)


def _guidance(config: RunConfig) -> Iterator[str]:
    chosen = [config.sampling.guidance, config.evaluation.guidance]
    chosen += [value for key, value in config.algorithm if key.endswith("guidance")]
    if config.prompts.negative and all(value is None or value <= 1 for value in chosen):
        yield "prompts.negative does nothing without guidance; set sampling.guidance above 1, or leave it out"


def _heldout(config: RunConfig) -> Iterator[str]:
    if config.prompts.heldout is not None:
        return
    fields = EvaluationConfig.model_fields
    for key in ("every", "members", "size", "frames", "steps", "guidance", "batch_size", "ema", "rewards"):
        if getattr(config.evaluation, key) != fields[key].default:
            yield f"evaluation.{key} does nothing without held-out prompts; name their file in prompts.heldout"


def _beyond_the_run(config: RunConfig) -> Iterator[str]:
    training, every = config.training, config.evaluation.every
    steps = training.iterations * training.updates * training.epochs
    if training.warmup > steps:
        yield (
            f"training.warmup {training.warmup}: the run has {steps} optimizer steps, so that the learning rate never arrives; "
            "set it lower"
        )
    if config.prompts.heldout is not None and every > training.iterations:
        yield f"evaluation.every {every} is more than the {training.iterations} iterations; it evaluates before and after alone"
    saved = config.output.checkpoint_every
    if saved > training.iterations and saved != type(config.output).model_fields["checkpoint_every"].default:
        yield f"output.checkpoint_every {saved} is more than the {training.iterations} iterations; one is saved at the end"


def _average(config: RunConfig) -> Iterator[str]:
    decay = config.sampling.ema
    if decay is not None and getattr(decay, "name", "") == "constant" and getattr(decay, "decay", 0) == 0:
        yield "sampling.ema: a decay of 0 keeps nothing, so that the present weights draw; leave it out"
