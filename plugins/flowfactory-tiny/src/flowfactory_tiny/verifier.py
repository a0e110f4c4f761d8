"""Whether a picture shows what its caption says, in the spirit of GenEval (arXiv:2310.11513), with no learned detector.

The picture is taken apart and put together again: each pixel is a mixture of the background and one palette colour;
connected pixels are an object; its shape is the one whose rendering overlaps it best, by a clear margin; and the
picture drawn anew from the objects found must resemble the original, so that nothing unexplained is left in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from flowfactory_tiny.scenes import BACKGROUNDS, COLORS, DISTANCES, SHAPES, Description, Noun, Relation, parse_caption

Floats: TypeAlias = NDArray[np.float64]

PIXELS = 32
BACKGROUND_TOLERANCE = 0.2
FRAME_SHARE = 0.9
COLOR_TOLERANCE = 0.2
SMALLEST_AREA = 0.005
OVERLAP = 0.7
OVERLAP_MARGIN = 0.02
RESIDUAL = 0.15
SMALL_BELOW = 0.19
LARGE_ABOVE = 0.29
MOST_CANDIDATES = 4


@dataclass(frozen=True)
class Fit:
    """One shape laid over an object: centre and radius in fractions of the picture, overlap as soft IoU in [0, 1]."""

    x: float
    y: float
    radius: float
    overlap: float
    template: Floats


@dataclass(frozen=True)
class DetectedObject:
    """An object in a picture; colour and shape are None where none fits; lengths are fractions of the picture."""

    color: str | None
    shape: str | None
    x: float
    y: float
    radius: float
    color_errors: Mapping[str, float]
    overlaps: Mapping[str, float]

    @classmethod
    def of(cls, color_errors: Mapping[str, float], fits: Mapping[str, Fit]) -> "DetectedObject":
        """The object named by the colour of least error and the shape of most overlap, if they are good enough."""
        color = min(color_errors, key=lambda name: color_errors[name])
        shape, rival = sorted(fits, key=lambda name: fits[name].overlap, reverse=True)[:2]
        fit = fits[shape]
        clear = fit.overlap >= OVERLAP and fit.overlap - fits[rival].overlap >= OVERLAP_MARGIN
        return cls(
            color if color_errors[color] <= COLOR_TOLERANCE else None,
            shape if clear else None,
            fit.x,
            fit.y,
            fit.radius,
            color_errors,
            {name: fit.overlap for name, fit in fits.items()},
        )


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and which of its caption's claims hold; `size` and `relation` hold if they are not claimed.

    `clean` says that nothing but the found objects is in the picture.
    """

    found_background: str | None
    found: tuple[DetectedObject, ...]
    background: bool
    count: bool
    color: bool
    shape: bool
    size: bool
    relation: bool
    clean: bool
    credit: float

    @property
    def strict(self) -> float:
        """1 if every check holds, else 0."""
        checks = (self.background, self.count, self.color, self.shape, self.size, self.relation, self.clean)
        return float(all(checks))

    @property
    def partial(self) -> float:
        """Credit in [0, 1] that grows as the picture comes nearer to its caption; the last quarter is for `strict`."""
        return 0.75 * self.credit + 0.25 * self.strict


def verify(images: Tensor, captions: Sequence[str]) -> list[Verdict]:
    """One verdict a picture, from pictures [B, 3, S, S] in [0, 1] and their captions; each is judged by itself.

    Raises ValueError if the pictures are not square and as many as the captions, or a caption is outside the grammar.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square pictures [B, 3, S, S], got {list(images.shape)}")
    if len(images) != len(captions):
        raise ValueError(f"got {len(images)} pictures but {len(captions)} captions")
    pictures = images.detach().to("cpu", torch.float64).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return [verify_picture(picture, parse_caption(caption)) for picture, caption in zip(pictures, captions, strict=True)]


def verify_picture(picture: Floats, wanted: Description) -> Verdict:
    """The verdict on one picture [S, S, 3] in [0, 1]."""
    ground, frame_share = find_background(picture)
    found, residual = find_objects(picture, ground)
    nouns = [noun for noun in wanted.nouns for _ in range(noun.count)]
    candidates = sorted(found, key=lambda item: item.radius, reverse=True)[:MOST_CANDIDATES]
    candidates += [NOTHING] * (len(nouns) - len(candidates))
    pairings = permutations(candidates, len(nouns))
    pairs = max((list(zip(items, nouns, strict=True)) for items in pairings), key=lambda pairs: similarity(pairs, wanted))
    background = ground == wanted.background and frame_share >= FRAME_SHARE
    surplus = 2 * len(nouns) / (len(nouns) + max(len(nouns), len(found)))
    return Verdict(
        found_background=ground if frame_share >= FRAME_SHARE else None,
        found=tuple(found),
        background=background,
        count=len(found) == len(nouns),
        color=all(item.color == noun.color for item, noun in pairs),
        shape=all(item.shape == noun.shape for item, noun in pairs),
        size=all(fits_size(item, noun) for item, noun in pairs),
        relation=wanted.relation is None or is_related(pairs[0][0], pairs[1][0], wanted.relation),
        clean=residual <= RESIDUAL,
        credit=similarity(pairs, wanted)
        * surplus
        * ramp(frame_share - 0.5, FRAME_SHARE - 0.5)
        * (1.0 if ground == wanted.background else 0.4)
        * (RESIDUAL / max(RESIDUAL, residual)),
    )


def find_background(picture: Floats) -> tuple[str, float]:
    """The background nearest to the median of the outermost pixels, and the share of them that are of its colour."""
    frame = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])
    median = np.median(frame, axis=0)
    name = min(BACKGROUNDS, key=lambda candidate: float(np.linalg.norm(median - BACKGROUNDS[candidate])))
    near = np.linalg.norm(frame - BACKGROUNDS[name], axis=-1) < BACKGROUND_TOLERANCE
    return name, float(near.mean())


def find_objects(picture: Floats, background: str) -> tuple[list[DetectedObject], float]:
    """The objects before `background`, and the largest local difference of a picture drawn from them to `picture`."""
    size = len(picture)
    unit = max(1, round(size / PIXELS))
    ground = np.array(BACKGROUNDS[background])
    covers, errors = unmix(picture, ground)
    cover = np.take_along_axis(covers, errors.argmin(0)[None], 0)[0]
    labels, _ = ndimage.label(cover > 0.5)
    areas = np.bincount(labels.ravel())
    labels[(areas < SMALLEST_AREA * size**2)[labels]] = 0
    grown = np.where(labels > 0, labels, ndimage.grey_dilation(labels, size=2 * unit + 1))
    redrawn = np.broadcast_to(ground, picture.shape).copy()
    found = []
    for label, box in enumerate(ndimage.find_objects(grown), 1):
        if box is None:
            continue
        rows, columns = (slice(max(0, side.start - 2 * unit), side.stop + 2 * unit) for side in box)
        core, region = labels[rows, columns] == label, grown[rows, columns] == label
        color_errors = np.sqrt(errors[:, rows, columns][:, core].mean(1))
        color = int(color_errors.argmin())
        fits = fit_shapes(covers[color, rows, columns] * region, rows.start, columns.start, size)
        found.append(DetectedObject.of(dict(zip(COLORS, color_errors.tolist(), strict=True)), fits))
        template = max(fits.values(), key=lambda fit: fit.overlap).template
        redrawn[rows, columns] += template[..., None] * (PALETTE[color] - ground)
    return found, local_difference(picture, redrawn, 2 * unit + 1)


def local_difference(picture: Floats, redrawn: Floats, width: int) -> float:
    """How far `picture` is from all colours of `redrawn` nearby, as the largest mean over `width` x `width` pixels.

    Edges may thus lie a pixel of 32 aside: how well an outline fits is for the overlap to say.
    """
    window = (width, width, 1)
    above = picture - ndimage.maximum_filter(redrawn, window, mode="nearest")
    below = ndimage.minimum_filter(redrawn, window, mode="nearest") - picture
    excess = np.sqrt(np.square(np.maximum(np.maximum(above, below), 0)).sum(-1))
    return float(ndimage.uniform_filter(excess, width, mode="nearest").max())


def unmix(picture: Floats, ground: Floats) -> tuple[Floats, Floats]:
    """How much of each palette colour covers `ground` in each pixel [8, S, S] in [0, 1], and the squared error left."""
    directions = PALETTE - ground
    offset = picture - ground
    lengths = np.square(directions).sum(-1)[:, None, None]
    products = np.tensordot(directions, offset, axes=(1, 2))
    covers = (products / lengths).clip(0, 1)
    errors = np.square(offset).sum(-1) - covers * (2 * products - covers * lengths)
    return covers, errors.clip(0)


def fit_shapes(cover: Floats, top: int, left: int, size: int) -> dict[str, Fit]:
    """Each shape with the area and centroid of `cover` [H, W], a window at (`top`, `left`) of a picture of `size`."""
    total = cover.sum()
    y_axis = (np.arange(cover.shape[0]) + top + 0.5) / size
    x_axis = (np.arange(cover.shape[1]) + left + 0.5) / size
    x, centroid = float(cover.sum(0) @ x_axis / total), float(cover.sum(1) @ y_axis / total)
    fits = {}
    for shape, (area, drop) in MOMENTS.items():
        radius = float(total / area) ** 0.5 / size
        y = centroid - drop * radius
        template = rasterize(shape, x_axis - x, y_axis - y, radius, size)
        overlap = float(np.minimum(template, cover).sum() / np.maximum(template, cover).sum())
        fits[shape] = Fit(x, y, radius, overlap, template)
    return fits


def rasterize(shape: str, dx: Floats, dy: Floats, radius: float, size: int) -> Floats:
    """Cover [H, W] in [0, 1] of one shape at offsets `dx` [W], `dy` [H] from its centre, edges one pixel soft."""
    offsets = torch.from_numpy(dx)[None, :], torch.from_numpy(dy)[:, None]
    distance = DISTANCES[shape](*offsets, radius)
    cover: Floats = (0.5 - distance * size).clamp(0, 1).numpy()
    return cover


def similarity(pairs: Sequence[tuple[DetectedObject, Noun]], wanted: Description) -> float:
    """Mean likeness in [0, 1] of found to wanted objects; a relation that fails costs a third."""
    mean = sum(object_similarity(item, noun) for item, noun in pairs) / len(pairs)
    return mean if wanted.relation is None or is_related(pairs[0][0], pairs[1][0], wanted.relation) else mean * 2 / 3


def object_similarity(item: DetectedObject, noun: Noun) -> float:
    """How much one object is as wanted, in [0, 1]: colour times shape times size."""
    if item is NOTHING:
        return 0.0
    error, overlap = item.color_errors[noun.color], item.overlaps[noun.shape]
    color = ramp(COLOR_TOLERANCE + min(item.color_errors.values()) - error, COLOR_TOLERANCE)
    paint = ramp(2 * COLOR_TOLERANCE - error, COLOR_TOLERANCE)
    rival = max(other for shape, other in item.overlaps.items() if shape != noun.shape)
    shape = ramp(overlap - rival + 0.25, 0.25 + OVERLAP_MARGIN)
    outline = ramp(overlap - 0.4, OVERLAP - 0.4)
    return color * paint * shape * outline * (1.0 if fits_size(item, noun) else 0.6)


def ramp(value: float, full: float) -> float:
    """`value` / `full`, held within [0, 1]."""
    return min(1.0, max(0.0, value / full))


def fits_size(item: DetectedObject, noun: Noun) -> bool:
    """Whether an object is small or large as claimed; anything fits no claim."""
    if noun.size is None:
        return True
    return item.radius < SMALL_BELOW if noun.size == "small" else item.radius > LARGE_ABOVE


def is_related(first: DetectedObject, second: DetectedObject, relation: Relation) -> bool:
    """Whether the first object stands left of or above the second, and not rather aslant; nothing stands nowhere."""
    right, down = second.x - first.x, second.y - first.y
    return right > abs(down) if relation == "left of" else down > abs(right)


def moments(shape: str, size: int = 256) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below its centre."""
    radius = 0.4
    axis = (np.arange(size) + 0.5) / size - 0.5
    cover = rasterize(shape, axis, axis, radius, size)
    return float(cover.mean()) / radius**2, float(cover.sum(1) @ axis / cover.sum()) / radius


NOTHING = DetectedObject(None, None, math.nan, math.nan, math.nan, {}, {})
PALETTE = np.array(list(COLORS.values()))
MOMENTS = {shape: moments(shape) for shape in SHAPES}
