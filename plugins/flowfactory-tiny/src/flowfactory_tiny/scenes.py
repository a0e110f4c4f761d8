"""A little world of coloured shapes: what a caption may say, how a scene is drawn and rendered.

A caption is one of three kinds:

* single: `a large red circle on white`, the size may be left out
* pair: `a blue square above an orange ring on black`
* counted: `three yellow triangles on gray`
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Rgb: TypeAlias = tuple[float, float, float]
Relation: TypeAlias = Literal["left of", "above"]
Size: TypeAlias = Literal["small", "large"]
Kind: TypeAlias = Literal["single", "pair", "counted"]

COLORS: dict[str, Rgb] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.12, 0.20, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "cyan": (0.10, 0.85, 0.90),
    "magenta": (0.95, 0.20, 0.85),
    "orange": (1.00, 0.52, 0.05),
    "purple": (0.45, 0.10, 0.65),
}
BACKGROUNDS: dict[str, Rgb] = {"black": (0.02, 0.02, 0.02), "white": (0.98, 0.98, 0.98), "gray": (0.50, 0.50, 0.50)}
RING_HOLE = 0.5
SQUARE_SIDE = 0.88
CROSS_ARM = 0.34
TRIANGLE_CIRCUMRADIUS = 2 / 3**0.5


def circle(dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to a disc."""
    return torch.hypot(dx, dy) - radius


def square(dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to an upright square, a little smaller than its box to weigh about as much as the disc."""
    return torch.maximum(dx.abs(), dy.abs()) - SQUARE_SIDE * radius


def triangle(dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to an equilateral triangle that points up, as wide as its box."""
    inradius = TRIANGLE_CIRCUMRADIUS * radius / 2
    drop = dy - inradius / 2
    return torch.maximum(drop, dx.abs() * 3**0.5 / 2 - drop / 2) - inradius


def cross(dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to an upright plus sign."""
    arm = CROSS_ARM * radius
    horizontal = torch.maximum(dx.abs() - radius, dy.abs() - arm)
    vertical = torch.maximum(dx.abs() - arm, dy.abs() - radius)
    return torch.minimum(horizontal, vertical)


def ring(dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to a disc with a round hole."""
    return torch.maximum(circle(dx, dy, radius), RING_HOLE * radius - torch.hypot(dx, dy))


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor | float], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "cross": cross,
    "ring": ring,
}
"""Signed distances to the shapes, negative inside; each fits the box of half side `radius` around its centre."""

SHAPES = tuple(DISTANCES)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
SIZES: tuple[Size, ...] = get_args(Size)
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS = {"two": 2, "three": 3}

PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
WORDS = sorted({"a", "an", "on", "left", "of", "above", *SIZES, *COUNTS, *COLORS, *SHAPES, *PLURALS.values(), *BACKGROUNDS})

RADII: dict[Size | None, tuple[float, float]] = {"small": (0.14, 0.17), None: (0.21, 0.26), "large": (0.32, 0.38)}
PAIR_RADII = (0.15, 0.18)
COUNTED_RADII = (0.13, 0.15)
MARGIN = 0.02
GAP = 0.10
JITTER = 0.02


@dataclass(frozen=True)
class Item:
    """One drawn object; position and radius are fractions of the picture, y grows downwards."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Objects on a plain background, and the caption that tells of them."""

    background: str
    items: tuple[Item, ...]
    caption: str


@dataclass(frozen=True)
class Noun:
    """`count` equal objects of one colour and shape; `size` is None where the caption does not say it."""

    count: int
    size: Size | None
    color: str
    shape: str


@dataclass(frozen=True)
class Description:
    """The meaning of a caption; with a relation, the first noun stands left of or above the second."""

    background: str
    nouns: tuple[Noun, ...]
    relation: Relation | None = None

    @property
    def kind(self) -> Kind:
        """The kind of caption: a single object, a pair in a relation, or counted equal objects."""
        if self.relation:
            return "pair"
        return "single" if self.nouns[0].count == 1 else "counted"


def write_caption(description: Description) -> str:
    """The one caption that says `description`; the inverse of `parse_caption`."""
    nouns = f" {description.relation} ".join(_write_noun(noun) for noun in description.nouns)
    return f"{nouns} on {description.background}"


def parse_caption(text: str) -> Description:
    """The meaning of a caption; the inverse of `write_caption`.

    Raises ValueError if the text is not exactly a caption of the grammar.
    """
    if match := _COUNTED.fullmatch(text):
        count, color, plural, background = match.groups()
        shape = next(shape for shape in SHAPES if PLURALS[shape] == plural)
        found = Description(background, (Noun(COUNTS[count], None, color, shape),))
    elif match := _PAIR.fullmatch(text):
        color, shape, relation, other_color, other_shape, background = match.groups()
        nouns = (Noun(1, None, color, shape), Noun(1, None, other_color, other_shape))
        found = Description(background, nouns, "left of" if relation == "left of" else "above")
    elif match := _SINGLE.fullmatch(text):
        size, color, shape, background = match.groups()
        found = Description(background, (Noun(1, next((s for s in SIZES if s == size), None), color, shape),))
    else:
        raise ValueError(f"not a caption of coloured shapes: {text!r}")
    if write_caption(found) != text:
        raise ValueError(f"wrong article in caption {text!r}, expected {write_caption(found)!r}")
    return found


def enumerate_descriptions(kind: Kind) -> Iterator[Description]:
    """Every meaning of one kind of caption, in a fixed order: 360 single, 9600 pair, 240 counted."""
    if kind == "single":
        for size, color, shape, background in product((None, *SIZES), COLORS, SHAPES, BACKGROUNDS):
            yield Description(background, (Noun(1, size, color, shape),))
    elif kind == "counted":
        for count, color, shape, background in product(COUNTS.values(), COLORS, SHAPES, BACKGROUNDS):
            yield Description(background, (Noun(count, None, color, shape),))
    else:
        for color, shape, relation, other, form, background in product(COLORS, SHAPES, RELATIONS, COLORS, SHAPES, BACKGROUNDS):
            yield Description(background, (Noun(1, None, color, shape), Noun(1, None, other, form)), relation)


def enumerate_captions() -> Iterator[str]:
    """Every caption of the grammar, each once."""
    return (write_caption(description) for kind in KINDS for description in enumerate_descriptions(kind))


def sample_scene(rng: random.Random) -> Scene:
    """A random scene: the kinds are equally frequent, objects lie inside the picture and never touch."""
    return compose(sample_description(rng), rng)


def sample_mistaken_scene(rng: random.Random, wrong: float) -> Scene:
    """As `sample_scene`, but that the caption of a share `wrong` is mistaken in one thing, or, of as many of them, in more."""
    told = shown = sample_description(rng)
    while rng.random() < wrong:
        shown = mistake(shown, rng)
    return compose(shown, rng, write_caption(told))


def sample_description(rng: random.Random) -> Description:
    """A random meaning: its kind uniform over the three kinds, everything else uniform within the kind."""
    kind = rng.choice(KINDS)
    background = rng.choice(list(BACKGROUNDS))
    if kind == "pair":
        return Description(background, (_sample_noun(rng), _sample_noun(rng)), rng.choice(RELATIONS))
    if kind == "counted":
        return Description(background, (_sample_noun(rng, count=rng.choice(list(COUNTS.values()))),))
    return Description(background, (_sample_noun(rng, size=rng.choice((None, *SIZES))),))


def mistake(description: Description, rng: random.Random) -> Description:
    """`description` with one thing wrong: most often a colour, the size, the count or the relation, now and then a shape.

    Where a shape may be any, a flow of few steps draws what is between them; where they are in another place, it does not.
    """
    nouns, relation = list(description.nouns), description.relation
    which = rng.randrange(len(nouns))
    noun = nouns[which]
    other = "relation" if relation else "size" if noun.size else "count"
    match rng.choices(("color", "shape", other), (3, 1, 4))[0]:
        case "color":
            nouns[which] = replace(noun, color=rng.choice([color for color in COLORS if color != noun.color]))
        case "shape":
            nouns[which] = replace(noun, shape=rng.choice([shape for shape in SHAPES if shape != noun.shape]))
        case "size":
            nouns[which] = replace(noun, size=rng.choice([size for size in SIZES if size != noun.size]))
        case "count":
            nouns[which] = replace(noun, count=rng.choice([count for count in range(1, 5) if count != noun.count]))
        case "relation":
            nouns.reverse()
    return Description(description.background, tuple(nouns), relation)


def compose(description: Description, rng: random.Random, caption: str | None = None) -> Scene:
    """A random scene that `description` is true of: boxes around objects are `GAP` apart and `MARGIN` inside."""
    nouns = [noun for noun in description.nouns for _ in range(noun.count)]
    if description.kind == "pair":
        radii = [rng.uniform(*PAIR_RADII) for _ in nouns]
        line = rng.choice((0.3, 0.5, 0.7))
        places = [(0.25, line), (0.75, line)]
        if description.relation == "above":
            places = [(y, x) for x, y in places]
    elif len(nouns) > 1:
        radii = [rng.uniform(*COUNTED_RADII)] * len(nouns)
        places = _cells(radii, rng)
    else:
        radii = [rng.uniform(*RADII[nouns[0].size])]
        places = _cells(radii, rng)
    places = [(x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER)) for x, y in places]
    items = (Item(noun.shape, noun.color, x, y, radius) for noun, (x, y), radius in zip(nouns, places, radii, strict=True))
    return Scene(description.background, tuple(items), caption or write_caption(description))


def render(scenes: Sequence[Scene], size: int = 32) -> Tensor:
    """Pictures [B, 3, size, size] in [0, 1], anti-aliased over one pixel by signed distance fields."""
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grounds = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes]).reshape(-1, 3, 1, 1)
    pictures = grounds.repeat(1, 1, size, size)
    for layer in range(max((len(scene.items) for scene in scenes), default=0)):
        rows = [row for row, scene in enumerate(scenes) if len(scene.items) > layer]
        items = [scenes[row].items[layer] for row in rows]
        center_x, center_y, radius = torch.tensor([(i.x, i.y, i.radius) for i in items]).T[:, :, None, None]
        color = torch.tensor([COLORS[item.color] for item in items])[:, :, None, None]
        shape = torch.tensor([SHAPES.index(item.shape) for item in items])
        distances = [distance(x - center_x, y - center_y, radius) for distance in DISTANCES.values()]
        distance = torch.stack(distances)[shape, torch.arange(len(items))]
        cover = (0.5 - distance * size).clamp(0, 1)[:, None]
        pictures[rows] = torch.lerp(pictures[rows], color, cover)
    return pictures


def _sample_noun(rng: random.Random, count: int = 1, size: Size | None = None) -> Noun:
    return Noun(count, size, rng.choice(list(COLORS)), rng.choice(SHAPES))


def _write_noun(noun: Noun) -> str:
    if noun.count > 1:
        count = next(word for word, number in COUNTS.items() if number == noun.count)
        return f"{count} {noun.color} {PLURALS[noun.shape]}"
    words = f"{noun.size} {noun.color}" if noun.size else noun.color
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words} {noun.shape}"


def _cells(radii: Sequence[float], rng: random.Random) -> list[tuple[float, float]]:
    """Centres in different quarters of the picture; a single object may also lie between them."""
    if len(radii) == 1:
        away = 0.0 if radii[0] > 0.3 else 0.2
        return [(0.5 + rng.choice((-1, 0, 1)) * away, 0.5 + rng.choice((-1, 0, 1)) * away)]
    quarters = [(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
    return rng.sample(quarters, len(radii))


_COLOR, _SHAPE = f"({'|'.join(COLORS)})", f"({'|'.join(SHAPES)})"
_GROUND = f"on ({'|'.join(BACKGROUNDS)})"
_SINGLE = re.compile(rf"an? (?:({'|'.join(SIZES)}) )?{_COLOR} {_SHAPE} {_GROUND}")
_PAIR = re.compile(rf"an? {_COLOR} {_SHAPE} ({'|'.join(RELATIONS)}) an? {_COLOR} {_SHAPE} {_GROUND}")
_COUNTED = re.compile(rf"({'|'.join(COUNTS)}) {_COLOR} ({'|'.join(PLURALS.values())}) {_GROUND}")
