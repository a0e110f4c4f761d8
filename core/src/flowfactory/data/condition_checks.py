"""Conditions as an encoder made them: as many as prompts, finite, and other ones for another prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from flowfactory.errors import RunError, UserError
from flowfactory.types import Prompt

Encoded = tuple[Prompt, Mapping[str, Tensor]]
T = TypeVar("T")
COMPARED = 16
HEAD = 20  # characters, few enough for the shortest sequence that an encoder may cut a prompt to
ADVICE = "look at the tokenizer and the text encoder of model.path, and at how many tokens of a prompt they keep"


def check_finite(prompt: Prompt, entry: Mapping[str, Tensor]) -> None:
    """RunError: a tensor of the conditions of ``prompt`` is not finite."""
    for name, tensor in entry.items():
        if not bool(tensor.isfinite().all()):
            looked_at = "the weights and the dtype of its encoders" + (", and the prompt's files" if prompt.media else "")
            raise RunError(
                f"the model's encode made {name!r} that is not finite, for the prompt {prompt.text[:60]!r}; look at {looked_at}"
            )


def one_each(entries: Iterable[T], count: int, place: str) -> Iterator[T]:
    """``entries``, one after the other. UserError: ``place``, which makes them, makes more or fewer than ``count``."""
    found = 0
    for found, entry in enumerate(entries, 1):
        if found > count:
            break
        yield entry
    if found != count:
        made = f"more than {count}" if found > count else str(found)
        raise UserError(f"{place} yielded {made} for {count} prompts; yield one mapping of tensors a prompt, in their order")


def choose_compared(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Prompts to compare the conditions of, a few that differ early; else a few with different texts."""
    early: dict[str, Prompt] = {}
    whole: dict[str, Prompt] = {}
    for prompt in prompts:
        text = _normalize(prompt.text)
        early.setdefault(text[:HEAD], prompt)
        whole.setdefault(text, prompt)
        if len(early) == COMPARED:
            break
    return list((early if len(early) > 1 else whole).values())[:COMPARED]


def check_different(encoded: Sequence[Encoded]) -> None:
    """RunError: the texts make no difference to the conditions, or none to a tensor of them that is made of the texts.

    What a picture or a video makes of the conditions does not hide that. Masks and lengths are no difference.
    """
    pairs = [(one, other) for one, other in combinations(encoded, 2) if _normalize(one[0].text) != _normalize(other[0].text)]
    if not pairs:
        return
    beside = [(one, other) for one, other in pairs if one[0].media == other[0].media]
    differing = [differing_names(one, other) for one, other in beside or pairs]
    if not any(differing):
        raise RunError(f"preflight: the conditions of {_quote(encoded)} are the same, so that no prompt is seen; {ADVICE}")
    files = [path for prompt, _ in encoded for path in prompt.media]
    if len(set(files)) < len(files) or len({_normalize(prompt.text)[:HEAD] for prompt, _ in encoded}) < 2:
        return  # of what is the same, some may be made of the same picture, or of the same beginning of the texts
    told = set().union(*(differing_names(one, other) for one, other in pairs))
    for name in sorted(encoded[0][1]):
        if name not in told and all(name in entry and _is_embedding(entry[name]) for _, entry in encoded):
            raise RunError(f"preflight: {name!r} in the conditions of {_quote(encoded)} is the same for all; {ADVICE}")


def check_negatives(encoded: Sequence[Encoded], negative: Sequence[Encoded]) -> None:
    """RunError: the ``negative`` prompt of each makes the very conditions of the prompt, so that guidance does nothing."""
    pairs = [
        (one, other)
        for one, other in zip(encoded, negative, strict=True)
        if _normalize(one[0].text) != _normalize(other[0].text)
    ]
    if pairs and not any(differing_names(one, other) for one, other in pairs):
        one, other = pairs[0]
        raise RunError(
            f"preflight: the negative prompt {other[0].text[:60]!r} has the conditions of the prompt {one[0].text[:60]!r}, so "
            f"that guidance does nothing; {ADVICE}"
        )


def differing_names(one: Encoded, other: Encoded) -> set[str]:
    """The tensors, of those that both have, in which one prompt is told from the other."""
    texts = [_normalize(prompt.text) for prompt, _ in (one, other)]
    begins = texts[0].startswith(texts[1]) or texts[1].startswith(texts[0])
    return {name for name in one[1].keys() & other[1].keys() if _differ(one[1][name], other[1][name], begins)}


def _differ(one: Tensor, other: Tensor, begins: bool) -> bool:
    """``begins``: one text begins with the other, so that all that is longer may be all that differs."""
    if _is_mask(one) and _is_mask(other):
        return False
    if one.shape == other.shape:
        return not torch.equal(one, other)
    if one.dim() != other.dim() or one.shape[1:] != other.shape[1:]:
        return True
    shared = min(len(one), len(other))
    return begins or not torch.equal(one[:shared], other[:shared])


def _is_mask(tensor: Tensor) -> bool:
    """Whether it tells how many tokens there are: a count, or a row of ones with zeros on one side."""
    if tensor.dtype == torch.bool or (tensor.dim() == 0 and not tensor.is_floating_point()):
        return True
    row = tensor.flatten()
    return tensor.dim() == 1 and bool(((row == 0) | (row == 1)).all()) and int((row[1:] != row[:-1]).sum()) <= 1


def _is_embedding(tensor: Tensor) -> bool:
    """Whether it holds numbers as networks make them, and not positions or zeros alone."""
    return tensor.is_floating_point() and tensor.dim() > 0 and not torch.equal(tensor, tensor.round())


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split())


def _quote(encoded: Sequence[Encoded]) -> str:
    """Two of the prompts, and how many more there are."""
    shown = " and ".join(repr(prompt.text[:60]) for prompt, _ in encoded[:2])
    return f"{shown}, and {len(encoded) - 2} more prompts," if len(encoded) > 2 else shown
