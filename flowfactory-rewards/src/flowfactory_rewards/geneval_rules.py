"""GenEval's rules (arXiv:2310.11513): what a prompt asks for, and what the objects of a picture score by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flowfactory import UserError

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True)
class Clause:
    """At least, or if excluded fewer than, ``count`` objects of a class ``name``.

    ``position``: a relation, and the place in ``include`` of the earlier clause whose objects they stand so to.
    """

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Requirements:
    """What a prompt asks for."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that matter, each once."""
        return tuple(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))


@dataclass(frozen=True)
class Detection:
    """An object: its box, the detector's confidence, and its colour where that matters."""

    box: Box
    score: float
    color: str | None = None


Detections = Mapping[str, Sequence[Detection]]
"""What is in a picture, by class, the most confident first."""


def parse_requirements(prompt: str, metadata: Mapping[str, Any]) -> Requirements:
    """What the metadata of a prompt asks for. UserError: nothing, or not in the form of GenEval's released files."""
    given = metadata.get("geneval", metadata)
    place = f"{prompt[:60]!r}"
    if not isinstance(given, Mapping) or not (given.get("include") or given.get("exclude")):
        raise UserError(
            f"{place} says no objects to look for; give it 'include' and 'tag', as GenEval's released files have them"
        )
    tag = given.get("tag", "")
    if not isinstance(tag, str):
        raise UserError(f"{place} has the tag {tag!r}; expected a text")
    include, exclude = (_parse_clauses(given.get(key, []), f"{place}: {key!r}") for key in ("include", "exclude"))
    if any(clause.color or clause.position for clause in exclude):
        raise UserError(f"{place}: 'exclude' has a colour or a position, which GenEval does not look at there")
    return Requirements(tag, include, exclude)


def _parse_clauses(given: Any, place: str) -> tuple[Clause, ...]:
    if not isinstance(given, list):
        raise UserError(f"{place} is {given!r}; expected a list of objects such as {{'class': 'dog', 'count': 1}}")
    return tuple(_parse_clause(item, index, f"{place} number {index + 1}") for index, item in enumerate(given))


def _parse_clause(item: Any, index: int, place: str) -> Clause:
    if not isinstance(item, Mapping):
        raise UserError(f"{place} is {item!r}; expected an object such as {{'class': 'dog', 'count': 1}}")
    if others := sorted(set(item) - {"class", "count", "color", "position"}):
        raise UserError(f"{place} has {others[0]!r}; there are 'class', 'count', 'color' and 'position'")
    name, count, color, position = (item.get(key) for key in ("class", "count", "color", "position"))
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place} has the class {name!r}; expected a word such as 'dog'")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"{place} has the count {count!r}; expected a whole number from 1 on")
    if color is not None and color not in COLORS:
        raise UserError(f"{place} has the color {color!r}; there are {', '.join(COLORS)}")
    if position is None:
        return Clause(name, count, color)
    if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
        raise UserError(
            f"{place} has the position {position!r}; expected a pair such as ['left of', 0] of {', '.join(RELATIONS)}"
        )
    relation, other = position
    if isinstance(other, bool) or not isinstance(other, int) or not 0 <= other < index:
        raise UserError(f"{place} has the position {position!r}, whose number is not that of an earlier one, counted from 0")
    return Clause(name, count, color, (relation, other))


def filter_detections(found: Sequence[Detection], threshold: float, most: int, overlap: float) -> tuple[Detection, ...]:
    """Of the objects of one class those above ``threshold``, the most confident first and at most ``most`` of them.

    Of those, any is dropped whose intersection over union with a better one is ``overlap`` or more, unless that is 1.
    """
    ordered = sorted((one for one in found if one.score > threshold), key=lambda one: -one.score)[:most]
    result: list[Detection] = []
    for one in ordered:
        if overlap == 1 or all(intersection_over_union(one.box, better.box) < overlap for better in result):
            result.append(one)
    return tuple(result)


def intersection_over_union(a: Box, b: Box) -> float:
    """In [0, 1]; boxes include the pixels of their borders, as in the released code."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (area(*a) + area(*b) - both)


def relative_positions(a: Box, b: Box, threshold: float = 0.1) -> frozenset[str]:
    """Where ``a`` is, seen from ``b``: none, one or two of RELATIONS.

    Along each axis the distance of the centres is what exceeds ``threshold`` times the sum of the sizes; a relation holds
    where that is more than half of the whole distance.
    """
    offset, beyond = [], []
    for axis in (0, 1):
        apart = (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offset.append(apart)
        beyond.append(max(abs(apart) - threshold * sizes, 0) * (1 if apart > 0 else -1))
    if all(abs(distance) < 1e-3 for distance in beyond):
        return frozenset()
    half = sum(distance**2 for distance in offset) ** 0.5 / 2
    x, y = beyond
    held = {"left of": x < -half, "right of": x > half, "above": y < -half, "below": y > half}
    return frozenset(name for name, holds in held.items() if holds)


def evaluate(
    asked: Requirements, objects: Detections, credit: Literal["strict", "partial"] = "strict", position_threshold: float = 0.1
) -> float:
    """What ``objects`` score, in [0, 1].

    strict: as GenEval's released evaluation. 1 if of every included class there are at least as many as asked, the most
    confident of them, as many as asked, have the colour and stand as asked to all of the other clause's, which must hold
    itself, and of every excluded class there are fewer; else 0.

    partial: the mean over these parts, which follow the reward of Flow-GRPO (arXiv:2505.05470). For every included class,
    ``max(0, 1 - |found - asked| / asked)``; for its colour, the share of the objects that have it, and 0 unless exactly as
    many were found as asked; for its position, 1 if that and the colour hold for it and for the other, and all stand as
    asked, else 0. For every excluded class that is not included too, 1 if there are fewer, else 0.
    """
    exact = credit == "partial"
    included = {clause.name for clause in asked.include} if exact else set()
    excluded = [clause for clause in asked.exclude if clause.name not in included]
    parts = [*_score_parts(asked, objects, exact, position_threshold)]
    parts += [float(len(objects.get(clause.name, ())) < clause.count) for clause in excluded]
    return sum(parts) / len(parts) if exact else float(all(part == 1 for part in parts))


def _score_parts(asked: Requirements, objects: Detections, exact: bool, threshold: float) -> Iterator[float]:
    matched: list[Sequence[Detection] | None] = []
    for clause in asked.include:
        found = objects.get(clause.name, ())
        found = found if exact else found[: clause.count]
        holds = len(found) == clause.count
        yield max(0.0, 1 - abs(len(found) - clause.count) / clause.count)
        if clause.color:
            share = sum(one.color == clause.color for one in found) / clause.count if holds else 0.0
            holds = share == 1
            yield share
        if clause.position:
            relation, other = clause.position
            target = matched[other]
            holds = holds and target is not None and _all_related(relation, found, target, threshold)
            yield float(holds)
        matched.append(found if holds else None)


def _all_related(relation: str, these: Sequence[Detection], those: Sequence[Detection], threshold: float) -> bool:
    return all(relation in relative_positions(a.box, b.box, threshold) for a in these for b in those)
