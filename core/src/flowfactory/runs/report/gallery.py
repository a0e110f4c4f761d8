"""Pictures and videos on the page: the fixed prompts over the evaluations, and the best and the worst samples of training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flowfactory.runs import sample_index
from flowfactory.runs.report import small_copies
from flowfactory.runs.report.embedded_media import SHARP, count_pixels, data_url
from flowfactory.runs.report.markup import Markup, element, join
from flowfactory.runs.report.run_files import RunFiles, Say
from flowfactory.runs.report.sections import Section, section
from flowfactory.runs.score_format import format_score
from flowfactory.untrusted_files import Refused

MOST_CHARACTERS = 13 * 2**20
"""Of all pictures and videos of a page."""
MOST_PIXELS = 100 * 10**6
"""That are decoded for a page, which takes a core some seconds; of videos VIDEO times as many."""
VIDEO = 6
MOST_PROMPTS, MOST_EXTREMES = 1000, 32
SIDES = (128, 640)
"""Pixels of the longer side, at least and at most."""
HEAD = 32
"""Characters before those of a picture."""
CHARACTERS_A_PIXEL = 0.27
"""Of a picture as it is embedded: about that of a photograph."""

NAME, EXTREMES = ("pictures", "Same prompt, same noise"), ("extremes", "Best and worst")
Sample = Mapping[str, Any]
Key = tuple[str, int]
Work = TypeVar("Work")
Result = TypeVar("Result")


class Column(NamedTuple):
    """Samples of the same prompts, in their order, that are told apart from those of other columns by ``name``."""

    name: str
    samples: Sequence[Sample]
    within: Path


class Plan(NamedTuple):
    """Which ``columns`` are shown, of how many prompts, with how many pixels a side; of pictures their ``small`` copies."""

    columns: Sequence[Column]
    prompts: int
    side: int
    small: bool = False


def plan_gallery(columns: Sequence[Column], keep: int = 2) -> Plan:
    """What of ``columns`` a page has room and time for: of columns at least ``keep``, evenly spread, the first and the last."""
    prompts = min(MOST_PROMPTS, max((len(column.samples) for column in columns), default=0))
    if not prompts:
        return Plan((), 0, 0)
    path, within = next((column.samples[0]["path"], column.within) for column in columns if column.samples)
    pixels = max(1, count_pixels(path, within) // (VIDEO if path.suffix == ".mp4" else 1))
    whole = _plan(columns, prompts, keep, pixels)
    if (whole.prompts, len(whole.columns)) == (prompts, len(columns)) or not small_copies.path_of(path).is_file():
        return whole
    small = _plan(columns, prompts, keep, min(pixels, small_copies.SIDE**2))
    return small._replace(side=min(small.side, small_copies.SIDE), small=True)


def _plan(columns: Sequence[Column], prompts: int, keep: int, pixels: int) -> Plan:
    """What there is room and time for of pictures that have so many ``pixels`` each."""
    smallest = SIDES[0] ** 2 * CHARACTERS_A_PIXEL
    most = min(MOST_PIXELS // pixels, int(MOST_CHARACTERS / smallest))
    prompts = max(1, min(prompts, most // keep))
    shown = spread(columns, max(keep, most // prompts))
    side = int(math.sqrt(MOST_CHARACTERS / (len(shown) * prompts) / CHARACTERS_A_PIXEL))
    return Plan(shown, prompts, min(SIDES[1], max(SIDES[0], side)))


def spread(columns: Sequence[Column], most: int) -> Sequence[Column]:
    """At most ``most`` of ``columns``, evenly spread, the first and the last among them."""
    if len(columns) <= most:
        return columns
    places = sorted({round(i * (len(columns) - 1) / (most - 1)) for i in range(most)}) if most > 1 else [len(columns) - 1]
    return [columns[place] for place in places]


def embed(plan: Plan, say: Say) -> list[list[Markup]]:
    """The element of each sample of the plan, column after column; ``say`` hears of what is left out."""
    shares = sum(len(column.samples[: plan.prompts]) for column in plan.columns)
    most = int(MOST_CHARACTERS * 3 / 4 / max(1, shares)) - HEAD
    wanted = [(column, sample) for column in plan.columns for sample in column.samples[: plan.prompts]]

    def encode(what: tuple[Column, Sample]) -> str | Refused:
        column, sample = what
        copy = small_copies.path_of(sample["path"])
        path = copy if plan.small and copy.is_file() else sample["path"]
        try:
            return data_url(path, column.within, plan.side, most)
        except Refused as error:
            return error

    elements: list[Markup] = []
    left = MOST_CHARACTERS
    for (column, sample), found in zip(wanted, _map(encode, wanted, plan.side > SHARP), strict=True):
        if isinstance(found, str) and len(found) > left:
            found = Refused("is more than the page holds")
        left -= len(found) if isinstance(found, str) else 0
        if isinstance(found, Refused):
            say(f"warning: {sample['path']} {found}; left out of the report")
        elements.append(_medium(sample, column.name, found))
    rows = iter(elements)
    return [[next(rows) for _ in column.samples[: plan.prompts]] for column in plan.columns]


def _map(encode: Callable[[Work], Result], wanted: Sequence[Work], heavy: bool) -> Iterator[Result]:
    """``encode`` of each, in order; in several threads where that is worth their asking one another."""
    if not heavy:
        yield from map(encode, wanted)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(encode, wanted)


def _medium(sample: Sample, name: str, found: str | Refused) -> Markup:
    """The picture, which can be enlarged, or the video; a note where it is left out."""
    if isinstance(found, Refused):
        return element("p", f"{sample['path'].name} is left out: it {found}", class_="left-out")
    told = f"{name}: {sample['prompt']}"
    if sample["path"].suffix == ".mp4":
        return element("video", controls=True, loop=True, muted=True, playsinline=True, aria_label=told, src=found)
    small = "small" if found.startswith("data:image/png") else None
    return element("button", element("img", alt=told, src=found, class_=small), type="button", class_="enlarge")


def evaluation_columns(run: RunFiles, say: Say) -> list[Column]:
    """The samples of each evaluation that has some."""
    evaluated = run.evaluated()
    named = [f"after iteration {iteration}" if iteration else "before training" for iteration in evaluated]
    samples = [sample_index.read(run.path, sample_index.folder_of(iteration), say) for iteration in evaluated]
    return [Column(name, found, run.path) for name, found in zip(named, samples, strict=True) if found]


def evaluation_gallery(run: RunFiles, say: Say) -> Section:
    """The fixed prompts with the same noise, before training and after each evaluation."""
    columns = evaluation_columns(run, say)
    plan = plan_gallery(columns)
    if not plan.columns:
        return section(*NAME)
    shown = embed(plan, say)
    labels = _labels(plan)
    media = [dict(zip(keys_of(column), found, strict=False)) for column, found in zip(plan.columns, shown, strict=True)]
    keys = dict.fromkeys(key for found in reversed(media) for key in found)  # those of the last evaluation, unless edited
    cards = [_card(plan, media, key, labels) for key in keys]
    return section(
        *NAME,
        element("p", _told(columns, plan), class_="note"),
        _toolbar(plan, labels) if len(plan.columns) > 1 else None,
        element("ul", cards, class_="pictures" if len(plan.columns) > 1 else "pictures few", id="gallery", role="list"),
    )


def _told(columns: Sequence[Column], plan: Plan) -> str:
    """How much of what there is is shown."""
    last = columns[-1].name if len(columns) > 1 else ""
    told = f"The first evaluation, {columns[0].name}, beside a later one, at first the last, {last}." if last else ""
    if len(plan.columns) < len(columns):
        told += f" {len(plan.columns)} of {len(columns)} evaluations are on this page, evenly spread."
    prompts = max(len(column.samples) for column in columns)
    if plan.prompts < prompts:
        told += f" {plan.prompts} of {prompts} prompts are on this page."
    return f"{told} The whole pictures are in the folder samples of the run."


def _labels(plan: Plan) -> list[str]:
    return list(dict.fromkeys(label for sample in plan.columns[-1].samples[: plan.prompts] for label in sample["scores"]))[:20]


def _toolbar(plan: Plan, labels: Sequence[str]) -> Markup:
    names = [column.name for column in plan.columns[1:]]
    last = len(names) - 1
    slider = element("input", type="range", id="evaluation", min=0, max=last, value=last, step=1, data_names="|".join(names))
    evaluation = element("label", "Evaluation", slider, element("output", names[-1], id="evaluated"), hidden=not last)
    options = [element("option", "as in the file", value="")]
    for place, label in enumerate(labels):
        options.append(element("option", f"{label}: gains first", value=f"{place}:1"))
        options.append(element("option", f"{label}: losses first", value=f"{place}:-1"))
    return element(
        "div",
        evaluation,
        element("label", "Order", element("select", options, id="order")),
        class_="toolbar",
        id="pictures-toolbar",
        hidden=True,
    )


def keys_of(column: Column) -> list[Key]:
    """What tells the samples of a column from one another, and is the same in others: the prompt, and which of its samples."""
    counted: dict[str, int] = {}
    keys = []
    for sample in column.samples:
        prompt = sample["prompt"]
        counted[prompt] = counted.get(prompt, 0) + 1
        keys.append((prompt, counted[prompt]))
    return keys


def samples_by_key(column: Column) -> dict[Key, Sample]:
    """The samples of a column."""
    return dict(zip(keys_of(column), column.samples, strict=True))


def _card(plan: Plan, media: Sequence[Mapping[Key, Markup]], key: Key, labels: Sequence[str]) -> Markup:
    first, *later = (
        (column.name, samples_by_key(column).get(key), found.get(key))
        for column, found in zip(plan.columns, media, strict=True)
    )
    last = len(later) - 1
    parts = [element("div", _one(*first), class_="shown")]
    evaluations = [element("div", _one(*each), data_evaluation=i, hidden=i != last) for i, each in enumerate(later)]
    parts += [element("div", evaluations, class_="shown")] if later else []
    before, after = first[1], later[-1][1] if later else None
    gains = " ".join(_gain(before, after, label) for label in labels)
    return element("li", element("div", parts, class_="side"), element("p", key[0], class_="prompt told"), data_gains=gains)


def _gain(before: Sample | None, after: Sample | None, label: str) -> str:
    """By how much a score rose, for the script; a dash where that is not known."""
    if before is None or after is None or label not in before["scores"] or label not in after["scores"]:
        return "-"
    return f"{after['scores'][label] - before['scores'][label]:.6g}"


def _one(name: str, sample: Sample | None, medium: Markup | None) -> Markup | None:
    """A sample with its name above and its scores below."""
    if sample is None or medium is None:
        return None
    scores = format_scores(sample["scores"])
    return join(element("p", name), medium, element("p", scores) if scores else None)


def format_scores(scores: Mapping[str, float]) -> str:
    """``strict 1.00, taste 0.25``."""
    return ", ".join(f"{label} {format_score(score, 2)}" for label, score in scores.items() if math.isfinite(score))


def training_gallery(run: RunFiles, say: Say) -> Section:
    """The best and the worst samples of the last iteration that kept some."""
    samples = [s for s in sample_index.read(run.path, sample_index.TRAINING, say) if "which" in s]
    if not samples:
        return section(*EXTREMES)
    iteration = samples[0]["iteration"]
    plan = Plan([Column(f"iteration {iteration}", samples, run.path)], min(len(samples), MOST_EXTREMES), 2 * SIDES[0])
    cards: dict[str, list[Markup]] = {"best": [], "worst": []}
    for sample, medium in zip(samples, embed(plan, say)[0], strict=False):
        scores = element("p", format_scores(sample["scores"]))
        shown = element("div", element("div", medium, scores, class_="shown"), class_="side")
        cards[sample["which"]].append(element("li", shown, element("p", sample["prompt"], class_="prompt told")))
    told = f"Of what was drawn in iteration {iteration} to train on, by the advantage: what it learns towards, and away from."
    return section(*EXTREMES, element("p", told, class_="note"), _lists(cards))


def _lists(cards: Mapping[str, Sequence[Markup]]) -> Markup:
    titles = {"best": "Highest advantage", "worst": "Lowest advantage"}
    return join(*(part for which, items in cards.items() if items for part in _titled(titles[which], items)))


def _titled(title: str, items: Sequence[Markup]) -> Iterator[Markup]:
    yield element("h3", title)
    yield element("ul", items, class_="pictures few", role="list")
