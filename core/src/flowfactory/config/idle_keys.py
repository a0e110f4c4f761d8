"""Keys that do nothing, or hardly what was meant, beside the others: harmless, and most likely not what somebody wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flowfactory.config.component import ComponentConfig
from flowfactory.config.ema import Decay
from flowfactory.config.idle_without_drawing import idle_without_drawing
from flowfactory.config.precision import with_precision
from flowfactory.config.schema import EvaluationConfig, RunConfig, reward_weight
from flowfactory.config.synonyms import plain
from flowfactory.config.training_guidance import idle_guidance_gradient
from flowfactory.discovery.source_places import describe_exception, place_of
from flowfactory.errors import UserError
from flowfactory.types import Prompt


def idle_keys(config: RunConfig) -> Iterator[str]:
    """One sentence a key, with what to do."""
    yield from _heldout(config)
    yield from _beyond_the_run(config)
    for place in ("sampling", "evaluation") if config.prompts.held_out else ("sampling",):
        decay = getattr(config, place).ema
        if decay is not None:
            moves = config.training.updates * config.training.epochs if decay.counted == "steps" else 1
            yield from _average(f"{place}.ema", decay, config.training.iterations * moves)
    yield from _kl(config)
    yield from idle_without_drawing(config)
    yield from _guidance(config)
    yield from idle_guidance_gradient(config)
    # where it is auto, and so is the device, another machine may have CUDA
    exact = with_precision(config, cuda=config.device != "cpu").training.precision == "float32"
    if not config.training.autocast and exact:
        yield "training.autocast does nothing under precision float32, where nothing is rounded; leave it out"
    if config.sampling.merge_adapters == "never" and (config.model.train == "full" or exact):
        why = "with model.train: full, which has no adapters" if config.model.train == "full" else "in float32, which is exact"
        yield f"sampling.merge_adapters does nothing {why}; leave it out"
    learns_from_videos = config.learned_records and config.sampling.canvas.frames > 1
    if config.prompts.video_fps == "keep" and not config.model.takes.video[1] and not learns_from_videos:
        yield "prompts.video_fps does nothing with this model, which takes no video; leave it out"
    for label, reward in config.evaluation.rewards.items():
        if reward_weight(reward) != 1:
            yield f"evaluation.rewards.{label}.weight does nothing: an evaluation reports each reward by itself; leave it out"
    dynamics = [each for each in (config.sampling.dynamics, config.evaluation.dynamics) if each is not None]
    for component in (config.model, config.algorithm, *dynamics, *config.rewards.values()):
        yield from _remarks(component, config)


def _remarks(component: ComponentConfig, config: RunConfig) -> list[str]:
    """What a component says of its options. UserError: its ``remarks`` fails, or answers with something else."""
    place = place_of(type(component).remarks)
    try:
        told = component.remarks(config)
        found = [] if isinstance(told, str) else list(told)
    except Exception as error:
        raise UserError(f"{place}: {describe_exception(error)}") from error
    if isinstance(told, str) or not all(isinstance(sentence, str) for sentence in found):
        raise UserError(f"{place} answers with something else than sentences; yield one text after the other")
    return found


def remarks_on_prompts(config: RunConfig, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Iterator[str]:
    """A sentence for each thing about the prompts that is allowed and most likely not what somebody wanted."""
    yield from idle_keys_of_prompts(config, [*train, *heldout])
    yield from _trained_and_held_out(train, heldout)


def idle_keys_of_prompts(config: RunConfig, prompts: Sequence[Prompt]) -> Iterator[str]:
    """One sentence for each key of prompt files that does nothing beside the config, or hardly what was meant."""
    if count := sum(bool(prompt.negative) for prompt in prompts):
        yield from (f"'negative_prompt' of {count} of the prompts does nothing {why}" for why in _without_negatives(config))
    with_more = [prompt for prompt in prompts if prompt.metadata]
    for name, (key, kind) in MEANT.items():
        wanted = config.model.takes_negatives() if kind == "negative" else getattr(config.model.takes, kind)[1] > 0
        count = sum(not getattr(prompt, kind) and name in map(plain, prompt.metadata) for prompt in with_more)
        if wanted and count:
            yield f"{name!r} of {count} of the prompts is metadata, which rewards alone see; did you mean {key!r}?"


def _trained_and_held_out(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Iterator[str]:
    """A sentence where held-out prompts are trained on too, so that their score says nothing of others."""
    trained = {_asked(prompt) for prompt in train}
    if count := sum(_asked(prompt) in trained for prompt in heldout):
        told = "all" if count == len(heldout) else f"{count:,} of the {len(heldout):,}"
        yield (
            f"prompts.heldout: {told} prompts are in prompts.train too, so that their score does not tell what was learned "
            "from what was remembered; hold out others"
        )


def _asked(prompt: Prompt) -> tuple[object, ...]:
    return prompt.text, prompt.images, prompt.video, prompt.audio


MEANT: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("negative", "neg_prompt", "negative_text"), ("negative_prompt", "negative")),
    **dict.fromkeys(("image_path", "image_file", "img", "picture"), ("image", "images")),
    **dict.fromkeys(("image_paths", "image_files", "imgs", "pictures"), ("images", "images")),
    **dict.fromkeys(("video_path", "video_file"), ("video", "video")),
    **dict.fromkeys(("audio_path", "audio_file"), ("audio", "audio")),
}
"""Keys that others give a prompt; the key, and the attribute of a Prompt, that they mean here."""


def _guidance(config: RunConfig) -> Iterator[str]:
    if config.prompts.negative:
        yield from (f"prompts.negative does nothing {why}" for why in _without_negatives(config))


def _without_negatives(config: RunConfig) -> Iterator[str]:
    """Why no negative prompt does anything, where it is so, and what to do."""
    chosen = [config.sampling.guidance, config.evaluation.guidance, *config.algorithm.guidances.values()]
    if not config.model.takes_negatives():
        yield "with this model, which has no negative prompt; take another model, or leave it out"
    elif all(value is None or value <= 1 for value in chosen):
        yield "without guidance; set sampling.guidance above 1, or leave it out"


def _kl(config: RunConfig) -> Iterator[str]:
    term, steps = config.algorithm.kl_term, config.training.updates * config.training.epochs
    if term and term.gate and term.gate.share == 1:
        yield "algorithm.kl.gate: a share of 1 is all pictures, as without a gate; set it lower, or leave it out"
    every = term.refresh.every if term and term.refresh else None
    if every is None:
        return
    total = config.training.iterations * steps
    if every <= steps:
        told = f"an iteration has {steps} optimizer steps, so that the KL holds the policy nowhere"
        yield f"algorithm.kl.refresh.every {every}: {told}; set it higher"
    elif every >= total and term and term.refresh and term.refresh.above is None:
        yield f"algorithm.kl.refresh does nothing: the run has {total} optimizer steps; set every lower, or leave it out"


def _heldout(config: RunConfig) -> Iterator[str]:
    if config.prompts.held_out:
        return
    fields = EvaluationConfig.model_fields
    keys = ("at_start", "every", "members", "size", "frames", "steps", "guidance", "batch_size", "ema", "dynamics", "pictures")
    for key in (*keys, "rewards"):
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
    if config.prompts.held_out and every > training.iterations:
        when = "before and after" if config.evaluation.at_start else "after"
        yield f"evaluation.every {every} is more than the {training.iterations} iterations; it evaluates {when} alone"
    if config.output.keep_best and config.prompts.held_out and not every:
        yield "output.keep_best does nothing with one evaluation, at the end; set evaluation.every, or leave it out"
    saved = config.output.checkpoint_every
    if saved > training.iterations and saved != type(config.output).model_fields["checkpoint_every"].default:
        yield f"output.checkpoint_every {saved} is more than the {training.iterations} iterations; one is saved at the end"


def _average(place: str, decay: Decay, iterations: int) -> Iterator[str]:
    run = range(max(2, iterations))  # whatever the decay, the first move is most often a copy
    if all(decay(n) == 0 for n in run):
        yield f"{place}: a decay of 0 keeps nothing, so that the present weights draw; leave it out"
    elif all(decay(n) == 1 for n in run):
        yield f"{place}: a decay of 1 lets nothing in, so that the weights of the start draw; set it below 1"
    elif (warmup := getattr(decay, "warmup", 0)) > iterations:
        yield f"{place}.warmup {warmup}: the run has {iterations} iterations, so that its start is never reached; set it lower"
