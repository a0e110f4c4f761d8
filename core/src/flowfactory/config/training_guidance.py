"""What is said of the guidance of what is trained that does not go with the rest of a config, or does nothing there."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.config.schema import RunConfig


def recorded_guidance_error(config: RunConfig) -> str | None:
    """Why recorded steps cannot be learned from under ``algorithm.guidance``; None where they can."""
    chosen, drawn = config.algorithm.guidance, config.sampling.guidance
    if chosen is None or chosen == drawn:
        return None
    name = getattr(config.algorithm, "name", "")
    return (
        f"algorithm.guidance {chosen:g}: algorithm {name} learns from the steps that drew, under sampling.guidance {drawn:g}, "
        "and no ratio would be one under another; leave it out"
    )


def training_guidance_errors(config: RunConfig) -> Iterator[str]:
    """One sentence for each key that does not go with the others."""
    algorithm = config.algorithm
    if algorithm.trust_region and (told := recorded_guidance_error(config)):
        yield told
    if algorithm.guidance_gradient == "conditional" and config.model.takes_negatives() and not config.model.detaches_negatives:
        yield (
            "algorithm.guidance_gradient: this model computes the velocities with and without the prompt together; leave it out"
        )


def idle_guidance_gradient(config: RunConfig) -> Iterator[str]:
    """A sentence where there is no second velocity that the gradient could leave out."""
    if config.algorithm.guidance_gradient == "exact":
        return
    if not config.model.takes_negatives():
        yield "algorithm.guidance_gradient does nothing with this model, which has no negative prompt; leave it out"
    elif trained_guidance(config) <= 1:
        yield (
            "algorithm.guidance_gradient does nothing where the trained velocity has no guidance; set algorithm.guidance above "
            "1, or leave it out"
        )


def trained_guidance(config: RunConfig) -> float:
    """The guidance of the velocity that is trained, as far as files on this machine tell."""
    algorithm, drawn = config.algorithm, config.sampling.guidance
    if algorithm.guidance is not None:
        return algorithm.guidance
    return min(1.0, drawn) if algorithm.conditional and config.model.takes_negatives() else drawn
