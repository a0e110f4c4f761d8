"""The prompts of a run, read and checked against what it trains and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flowfactory.canvas import Canvas
from flowfactory.config.canvases import drawn_from, drawn_within, source_canvases
from flowfactory.config.idle_keys import remarks_on_prompts
from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.data import prompts
from flowfactory.data.batches import prompts_of_iteration
from flowfactory.data.file_kinds import sort_of
from flowfactory.data.pictures import check_picture
from flowfactory.data.records import check_kind
from flowfactory.types import Prompt

RECORDS: Mapping[str, tuple[str, ...]] = {"targets": ("target",), "pairs": ("chosen", "rejected")}
"""The keys of the records of a prompt, in the order of the samples of its group."""


def record_keys(kinds: Sequence[str]) -> list[str]:
    """Those of all ``kinds`` of records."""
    return [key for kind in kinds for key in RECORDS[kind]]


def find_records(config: RunConfig, train: Sequence[Prompt]) -> list[Path]:
    """The files that training prompts bring and that are learned from, each once."""
    keys = record_keys(config.learned_records)
    return list(dict.fromkeys(path for prompt in train for key in keys if (path := getattr(prompt, key)) is not None))


def prompts_of(config: RunConfig, train: Sequence[Prompt], iteration: int) -> list[Prompt]:
    """Those of the training prompts that an ``iteration`` draws, one a group, all on one canvas."""
    drawn = drawn_from(config, iteration)
    return prompts_of_iteration(train, drawn.turn, config.sampling.groups, config.seed, drawn.weights)


def on_canvases(config: RunConfig, train: Sequence[Prompt]) -> list[tuple[list[Prompt], Canvas]]:
    """Training prompts, and what each part of them is drawn on."""
    known = source_canvases(config)
    parts: dict[Canvas, list[Prompt]] = {canvas: [] for canvas in known.values()}
    for prompt in train:
        parts[known[prompt.source]].append(prompt)
    return [(part, canvas) for canvas, part in parts.items()]


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
    if "pairs" in config.learned_records:
        yield lambda: prompts.check_pairs(train)
    yield lambda: check_kinds(find_records(config, train), config.sampling.canvas)
    yield lambda: prompts.check_picture_tokens(both, model, config.distributed.context)
    labels, learned = [*config.rewards, *config.evaluation.rewards], {x for x, r in config.rewards.items() if reward_weight(r)}
    if config.algorithm.rewarded and learned:  # else nothing is
        yield lambda: prompts.check_reward_labels(train, labels, learned)
    yield lambda: prompts.check_reward_labels(heldout, labels)


def remarks(config: RunConfig, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Iterator[str]:
    """A sentence for each thing about the prompts that is allowed and most likely not what somebody wanted."""
    yield from remarks_on_prompts(config, train, heldout)
    yield from _remarks_on_turns(config)
    groups = config.sampling.groups
    for part, canvas in on_canvases(config, train):
        if part and config.algorithm.learns_from != "samples" and groups > len(part):
            there = "there is 1 prompt" if len(part) == 1 else f"there are {len(part):,} prompts"
            size = "" if len(part) == len(train) else f" of {canvas.height} x {canvas.width}"
            more = "more than once" if len(part) == 1 else "from some of them more than once"
            yield f"sampling.groups {groups}: {there}{size}, so that an iteration learns {more}; set it lower"
        yield from _remarks_on_pictures(find_records(config, part)[: prompts.LOOKED_INTO], canvas)


def _remarks_on_turns(config: RunConfig) -> Iterator[str]:
    """Sources whose size no iteration of the run draws at."""
    turns = config.training.iterations
    drawn = drawn_within(config, turns)
    if left := [name for name, canvas in source_canvases(config).items() if name and canvas not in drawn]:
        yield (
            f"prompts.train: sizes take turns, and of {turns} iteration{'s' if turns > 1 else ''} none is at that of "
            f"{' or '.join(left)}; set training.iterations higher, or the other weights lower"
        )


def _remarks_on_pictures(records: Sequence[Path], canvas: Canvas) -> Iterator[str]:
    """Those that are learned from and hardly fill the canvas. Reads headers."""
    sizes = {path: check_picture(path, False) for path in records if sort_of(path) == "picture"}
    small = [path for path, size in sizes.items() if min(size) < min(canvas.height, canvas.width)]
    odd = [path for path, size in sizes.items() if _seen(size, canvas) < 0.5]
    for found, told in ((small, "smaller than is drawn"), (odd, "of another shape, and lose more than half of it")):
        if found:
            count = f"{len(found):,} of {len(sizes):,} pictures to learn from"
            yield f"prompts.train: {count} are {told}, such as {found[0]}; bring others, or leave them out"


def _seen(size: tuple[int, int], canvas: Canvas) -> float:
    """The share of a picture of that width and height, either way round, that a canvas has."""
    ratio, wanted = size[0] / size[1], canvas.width / canvas.height
    return max(min(each / wanted, wanted / each) for each in (ratio, 1 / ratio))


def check_kinds(records: Sequence[Path], canvas: Canvas) -> None:
    """UserError: one of ``records`` is a picture where videos are drawn, or the other way round."""
    for path in records:
        check_kind(path, canvas)
