"""A starter config fitted to a card: of ways to take less memory, each beside those before it, the first with which it fits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowfactory.config import bitsandbytes
from flowfactory.config.paths import missing_checkpoints
from flowfactory.errors import UserError
from flowfactory.types import Say

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

GIB = 2**30
Raw = dict[str, Any]
LEVELS: tuple[dict[str, Any], ...] = (
    {},
    {"sampling.batch_size": 4, "training.batch_size": 4},
    {"training.activation_checkpointing": "blocks"},
    {"sampling.batch_size": 1, "training.batch_size": 1, "model.encoders_on": "host", "model.decode_batch_size": 1},
    {"model.decoder_on": "host", "model.tiling": True, "sampling.keep_on": "host", "training.kept_on": "host"},
    {"model.quantize": "nf4"},
    {"distributed.offload": True},
)
"""What each level sets, beside all before it: speed is given up little by little."""
BLIND = ((60 * GIB, 2), (30 * GIB, 3), (0, 5))
"""The level by the least memory of a card, where nothing can be estimated: reckoned for a model of 12 billion parameters."""


@dataclass(frozen=True)
class Fitted:
    """A config and how it was fitted, in a sentence; ``fits`` is None where nothing could be estimated."""

    raw: Raw
    fits: bool | None
    sentence: str


def at_level(raw: Raw, level: int, model: type) -> Raw:
    """``raw`` with what the levels up to ``level`` set, of what its model has."""
    fitted = copy.deepcopy(raw)
    for number in range(level + 1):
        for key, value in LEVELS[number].items():
            section, _, option = key.partition(".")
            if _can_set(fitted, section, option, model):
                there = fitted.setdefault(section, {}).get(option)
                fewer = isinstance(there, int) and not isinstance(there, bool) and there < value
                fitted[section][option] = there if fewer else value
    return fitted


def _can_set(raw: Raw, section: str, option: str, model: Any) -> bool:
    if option == "quantize":
        return raw["model"].get("train") != "full" and bitsandbytes.quantization_unavailable("nf4") is None
    return section != "model" or option in model.model_fields


def fit(raw: Raw, model: type, card: int, validate: Callable[[Raw], RunConfig], say: Say) -> Fitted:
    """``raw`` at the least level at which the estimate says that a card of ``card`` bytes holds it."""
    config = validate(raw)
    if missing := [hub_id for _, hub_id in missing_checkpoints(config.model)]:
        return _blind(raw, model, card, f"{missing[0]} is not on this machine yet")
    found: dict[int, int] = {}

    def needed(level: int) -> int:
        if level not in found:
            say(f"estimating memory ({len(found) + 1}), from configs alone; a large model takes a minute or two")
            found[level] = _needed(validate(at_level(raw, level, model)))
        return found[level]

    try:
        level = first_that_fits(len(LEVELS), lambda level: needed(level) <= card)
        least = needed(len(LEVELS) - 1 if level is None else level)
    except UserError as error:
        return _blind(raw, model, card, str(error))
    except Exception as error:  # a plugin's model may do what fake tensors cannot
        return _blind(raw, model, card, f"it cannot be estimated ({type(error).__name__})")
    told = f"estimated to take {least / GIB:.1f} GiB of a GPU's {card / GIB:.3g} GiB"
    if level is None:
        return Fitted(
            at_level(raw, len(LEVELS) - 1, model), False, f"{told}: it does not fit; take more GPUs, or a smaller size"
        )
    return Fitted(at_level(raw, level, model), True, told)


def first_that_fits(count: int, fits: Callable[[int], bool]) -> int | None:
    """The first of ``count`` levels that fits, each of which takes no more than those before; None where none does.

    Looks at the first, and else halves what is left.
    """
    if fits(0):
        return 0
    low, high = 0, count  # low does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high if high < count else None


def _blind(raw: Raw, model: type, card: int, why: str) -> Fitted:
    level = next(level for least, level in BLIND if card >= least)
    told = f"for a GPU of {card / GIB:.3g} GiB, which is not estimated: {why}"
    return Fitted(at_level(raw, level, model), None, told)


def _needed(config: RunConfig) -> int:
    from flowfactory.runs.estimate.estimate import estimate

    return estimate(config, 1, cuda=True).needed
