"""A little world of coloured shapes: what a caption may say, how a scene is drawn and rendered.

A caption is one of three kinds:

* single: `a large red circle on white`, the size may be left out
* pair: `a blue square above an orange ring on black`
* counted: `three yellow triangles on gray`
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
PAIR_RADII = (0.15, 0.19)
COUNTED_RADII = (0.13, 0.15)
MARGIN = 0.05
GAP = 0.10


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


def sample_description(rng: random.Random) -> Description:
    """A random meaning: its kind uniform over the three kinds, everything else uniform within the kind."""
    kind = rng.choice(KINDS)
    background = rng.choice(list(BACKGROUNDS))
    if kind == "pair":
        return Description(background, (_sample_noun(rng), _sample_noun(rng)), rng.choice(RELATIONS))
    if kind == "counted":
        return Description(background, (_sample_noun(rng, count=rng.choice(list(COUNTS.values()))),))
    return Description(background, (_sample_noun(rng, size=rng.choice((None, *SIZES))),))


def compose(description: Description, rng: random.Random) -> Scene:
    """A random scene that `description` is true of: boxes around objects are `GAP` apart and `MARGIN` inside."""
    nouns = [noun for noun in description.nouns for _ in range(noun.count)]
    if description.kind == "pair":
        radii = [rng.uniform(*PAIR_RADII) for _ in nouns]
        places = _place_pair(radii, rng)
        if description.relation == "above":
            places = [(y, x) for x, y in places]
    elif description.kind == "counted":
        radii = [rng.uniform(*COUNTED_RADII)] * len(nouns)
        places = _scatter(radii, rng)
    else:
        radii = [rng.uniform(*RADII[nouns[0].size])]
        places = _scatter(radii, rng)
    items = (Item(noun.shape, noun.color, x, y, radius) for noun, (x, y), radius in zip(nouns, places, radii, strict=True))
    return Scene(description.background, tuple(items), write_caption(description))


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


def _place_pair(radii: Sequence[float], rng: random.Random) -> list[tuple[float, float]]:
    """Centres of two objects side by side, the first one left; their heights differ little."""
    left, right = radii
    slack = 1 - 2 * (left + right) - 2 * MARGIN - GAP
    before, between = sorted(rng.uniform(0, slack) for _ in range(2))
    return [
        (MARGIN + before + left, rng.uniform(0.4, 0.6)),
        (MARGIN + between + GAP + 2 * left + right, rng.uniform(0.4, 0.6)),
    ]


def _scatter(radii: Sequence[float], rng: random.Random) -> list[tuple[float, float]]:
    """Centres anywhere, drawn again until the boxes around the objects are `GAP` apart."""
    while True:
        places = [tuple(rng.uniform(MARGIN + r, 1 - MARGIN - r) for _ in "xy") for r in radii]
        boxes = [(x, y, r) for (x, y), r in zip(places, radii, strict=True)]
        if all(
            max(abs(x - u), abs(y - v)) >= r + s + GAP for index, (x, y, r) in enumerate(boxes) for u, v, s in boxes[:index]
        ):
            return [(x, y) for x, y, _ in boxes]


_COLOR, _SHAPE = f"({'|'.join(COLORS)})", f"({'|'.join(SHAPES)})"
_GROUND = f"on ({'|'.join(BACKGROUNDS)})"
_SINGLE = re.compile(rf"an? (?:({'|'.join(SIZES)}) )?{_COLOR} {_SHAPE} {_GROUND}")
_PAIR = re.compile(rf"an? {_COLOR} {_SHAPE} ({'|'.join(RELATIONS)}) an? {_COLOR} {_SHAPE} {_GROUND}")
_COUNTED = re.compile(rf"({'|'.join(COUNTS)}) {_COLOR} ({'|'.join(PLURALS.values())}) {_GROUND}")
