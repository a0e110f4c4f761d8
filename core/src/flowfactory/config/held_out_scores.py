"""Which held-out scores a config has, which of them its best checkpoint is kept by, and what is wrong with what it names."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.config.schema import RunConfig
from flowfactory.suggestions import did_you_mean, join_or


def score_names(config: RunConfig) -> list[str]:
    """The held-out scores, as metrics.jsonl names them."""
    return [f"eval/{label}/mean" for label in config.evaluation.rewards or config.rewards]


def best_score(config: RunConfig) -> str | None:
    """The score by which the best checkpoint is kept; None: none is."""
    keep, stop = config.output.keep_best, config.training.early_stop
    if isinstance(keep, str):
        return keep
    if stop is not None and (keep or stop.keep == "best"):
        return stop.on
    return score_names(config)[0] if keep else None


def held_out_score_errors(config: RunConfig) -> Iterator[str]:
    """What cannot be of ``training.early_stop`` and ``output.keep_best``."""
    keep, stop, known = config.output.keep_best, config.training.early_stop, score_names(config)
    named = {"training.early_stop": stop is not None, "output.keep_best": bool(keep)}
    for key in (key for key, given in named.items() if given and not config.prompts.held_out):
        yield f"{key}: nothing is held out to be scored; name a file in prompts.heldout, or leave it out"
    if stop is not None:
        if config.prompts.held_out and not config.evaluation.every:
            yield "training.early_stop: there is no evaluation on the way; set evaluation.every, or leave it out"
        if stop.on not in known:
            yield f"training.early_stop.on: no held-out score called {stop.on!r}{did_you_mean(stop.on, known)}"
    if isinstance(keep, str) and keep not in known:
        yield f"output.keep_best: no held-out score called {keep!r}{did_you_mean(keep, known)}"
    elif isinstance(keep, str) and stop is not None and stop.keep == "best" and keep != stop.on:
        yield (
            f"output.keep_best: {keep} is not {stop.on}, the score of training.early_stop, by which the best is kept too; "
            "name one score, or set training.early_stop.keep to last"
        )
    elif keep is True and stop is None and len(known) > 1:
        yield f"output.keep_best: true: there are {len(known)} held-out scores; write {join_or(known)}"
