"""The prompts of a run, read and checked against what it trains and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flowfactory.canvas import Canvas
from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.data import prompts
from flowfactory.data.records import check_kind
from flowfactory.types import Prompt

RECORDS: Mapping[str, tuple[str, ...]] = {"targets": ("target",), "pairs": ("chosen", "rejected")}
"""The keys of the records of a prompt, in the order of the samples of its group."""


def call_records(canvas: Canvas) -> str:
    """What users call records of a ``canvas``."""
    return f"{'pictures' if canvas.frames == 1 else 'videos'} to learn from"


def record_keys(kinds: Sequence[str]) -> list[str]:
    """Those of all ``kinds`` of records."""
    return [key for kind in kinds for key in RECORDS[kind]]


def find_records(config: RunConfig, train: Sequence[Prompt]) -> list[Path]:
    """The files that training prompts bring and that are learned from, each once."""
    keys = record_keys(config.learned_records)
    return list(dict.fromkeys(path for prompt in train for key in keys if (path := getattr(prompt, key)) is not None))


def prepare_prompts(
    config: RunConfig, trains: bool = True, scores: bool = True
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The training prompts, none unless it ``trains``, and the held-out ones, none where it neither trains nor ``scores``.

    UserError: they are not what the model takes.
    """
    wanted = config.prompts
    train = prompts.read_sources(wanted.trained, wanted.video_fps) if trains else ()
    heldout = prompts.read_sources(wanted.held_out, wanted.video_fps) if trains or scores else ()
    for check in prompt_checks(config, train, heldout):
        check()
    return train, heldout


def prompt_checks(config: RunConfig, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Iterator[Callable[[], None]]:
    """What is to be looked at of prompts that were read: each raises a UserError where they are not what the model takes."""
    both, model = [*train, *heldout], config.model
    yield lambda: prompts.check_media(both, model.takes, getattr(model, "name", "model"))
    yield lambda: prompts.check_files(train, model, config.sampling.canvas.frames)
    yield lambda: prompts.check_files(heldout, model, config.evaluation.canvas(config.sampling).frames)
    yield lambda: prompts.check_records(both)
    keys, all_bring = record_keys(config.learned_records), config.algorithm.learns_from != "samples"
    yield lambda: prompts.check_brought(train, keys, all_bring)
    yield lambda: check_kinds(find_records(config, train), config.sampling.canvas)
    yield lambda: prompts.check_picture_tokens(both, model, config.distributed.context)
    labels, learned = [*config.rewards, *config.evaluation.rewards], {x for x, r in config.rewards.items() if reward_weight(r)}
    if config.algorithm.rewarded:
        yield lambda: prompts.check_reward_labels(train, labels, learned)
    yield lambda: prompts.check_reward_labels(heldout, labels)


def check_kinds(records: Sequence[Path], canvas: Canvas) -> None:
    """UserError: one of ``records`` is a picture where videos are drawn, or the other way round."""
    for path in records:
        check_kind(path, canvas)
