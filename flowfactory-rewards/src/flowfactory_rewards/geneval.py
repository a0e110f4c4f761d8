"""GenEval (arXiv:2310.11513): whether the objects that a prompt names are there, as many, of that colour, in that place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from flowfactory import CheckpointPath, RunError, Samples, UserError, hookimpl
from flowfactory.rewards import load_shared
from flowfactory_rewards.dependencies import require_modules
from flowfactory_rewards.dual_encoder import DualEncoder, load_clip
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.reward_model import RewardModelConfig, to_pil
from flowfactory_rewards.run_checks import check_prompts
from flowfactory_rewards.weights import from_pretrained, load_pretrained

if TYPE_CHECKING:
    from flowfactory import RunConfig

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
SPELLINGS = {
    "airplane": "aeroplane",
    "computer keyboard": "keyboard",
    "computer mouse": "mouse",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
    "tv remote": "remote",
}
"""What some detectors call the classes that GenEval's files call otherwise."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


class GenevalConfig(RewardModelConfig):
    """Whether the objects of a prompt are there, in the asked number, colours and places; in [0, 1], higher is better.

    What is asked for is in the prompt's metadata, as GenEval's released files (arXiv:2310.11513) have it: ``include``,
    ``exclude`` and ``tag``, or a mapping of those under ``geneval``. Objects are found by a detector, either one that is
    told the classes (OWL-ViT, OWLv2, Grounding DINO) or one with COCO's classes (DETR and its kind), colours by CLIP.
    """

    path: CheckpointPath = Field("PekingU/rtdetr_r50vd", description="a folder or a hub id with the detector")
    clip: CheckpointPath = Field("openai/clip-vit-large-patch14", description="a folder or a hub id with the CLIP for colours")
    credit: Literal["strict", "partial"] = Field(
        "strict",
        description="strict: 1 if everything holds, else 0, as GenEval scores; partial: the mean over all that is asked",
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="confidence above which an object counts")
    counting_threshold: float = Field(0.9, ge=0, lt=1, description="the same for prompts with the tag 'counting'")
    max_objects: int = Field(16, ge=1, description="of a class, the most confident ones")
    max_overlap: float = Field(
        1.0, gt=0, le=1, description="intersection over union from which on the less confident of a class is dropped; 1: never"
    )
    position_threshold: float = Field(0.1, ge=0, description="of the boxes' sizes, that centres must be apart beyond")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return self.path, self.clip

    def check(self, run: RunConfig) -> None:
        """Every prompt says what is to be seen."""
        check_prompts(run, self, lambda prompt: wanted(prompt.text, prompt.metadata))

    def build(self, label: str) -> Geneval:
        require_modules("geneval", "transformers", "scipy")
        return Geneval(label, self)


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
class Wanted:
    """What a prompt asks for."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that matter, each once."""
        return tuple(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))


@dataclass(frozen=True)
class Found:
    """An object: its box, the detector's confidence, and its colour where that matters."""

    box: Box
    score: float
    color: str | None = None


Objects = Mapping[str, Sequence[Found]]
"""What is in a picture, by class, the most confident first."""


def wanted(prompt: str, metadata: Mapping[str, Any]) -> Wanted:
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
    include, exclude = (_clauses(given.get(key, []), f"{place}: {key!r}") for key in ("include", "exclude"))
    if any(clause.color or clause.position for clause in exclude):
        raise UserError(f"{place}: 'exclude' has a colour or a position, which GenEval does not look at there")
    return Wanted(tag, include, exclude)


def _clauses(given: Any, place: str) -> tuple[Clause, ...]:
    if not isinstance(given, list):
        raise UserError(f"{place} is {given!r}; expected a list of objects such as {{'class': 'dog', 'count': 1}}")
    return tuple(_clause(item, index, f"{place} number {index + 1}") for index, item in enumerate(given))


def _clause(item: Any, index: int, place: str) -> Clause:
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


def kept(found: Sequence[Found], threshold: float, most: int, overlap: float) -> tuple[Found, ...]:
    """Of the objects of one class those above ``threshold``, the most confident first and at most ``most`` of them.

    Of those, any is dropped whose intersection over union with a better one is ``overlap`` or more, unless that is 1.
    """
    ordered = sorted((one for one in found if one.score > threshold), key=lambda one: -one.score)[:most]
    result: list[Found] = []
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


def relations(a: Box, b: Box, threshold: float = 0.1) -> frozenset[str]:
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


def verdict(
    asked: Wanted, objects: Objects, credit: Literal["strict", "partial"] = "strict", position_threshold: float = 0.1
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
    parts = [*_parts(asked, objects, exact, position_threshold)]
    parts += [float(len(objects.get(clause.name, ())) < clause.count) for clause in excluded]
    return sum(parts) / len(parts) if exact else float(all(part == 1 for part in parts))


def _parts(asked: Wanted, objects: Objects, exact: bool, threshold: float) -> Iterator[float]:
    matched: list[Sequence[Found] | None] = []
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
            holds = holds and target is not None and _stand(relation, found, target, threshold)
            yield float(holds)
        matched.append(found if holds else None)


def _stand(relation: str, these: Sequence[Found], those: Sequence[Found], threshold: float) -> bool:
    return all(relation in relations(a.box, b.box, threshold) for a in these for b in those)


class Geneval:
    """Each picture by itself, each frame of a video too; the score of a video is the mean over its frames."""

    pointwise = True

    def __init__(self, label: str, config: GenevalConfig) -> None:
        self.label, self._config = label, config
        self._detector: Detector | None = None
        self._painter: Painter | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights of the detector and of CLIP. UserError: ``path`` has no detector."""
        config = self._config
        self._detector = load_shared(Detector, config.path, *config.device_and_dtype(device))
        self._painter = load_shared(Painter, config.clip, *config.device_and_dtype(device))

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``. RunError: a prompt says no objects, or some that the detector has no class for."""
        if self._detector is None:
            self.prepare_reward(samples.media.device)
        try:
            asked = [wanted(*both) for both in zip(samples.prompts, samples.metadata, strict=True)]
        except UserError as error:
            raise RunError(str(error)) from error
        clips = sample_frames(samples.media, self._config.frames)
        frames = clips.shape[1]
        pictures = clips.flatten(0, 1)
        pictures = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        size, scores = self._config.batch_size, []
        with torch.inference_mode():
            for what, alike in groupby(range(len(pictures)), key=lambda row: asked[row // frames]):
                rows = list(alike)
                for start in range(0, len(rows), size):
                    scores += self._scores(pictures[rows[start : start + size]], what)
        return {self.label: torch.tensor(scores).reshape(len(clips), frames).mean(1)}

    def _scores(self, pictures: Tensor, asked: Wanted) -> list[float]:
        assert self._detector is not None
        config = self._config
        threshold = config.counting_threshold if asked.tag == "counting" else config.threshold
        scores = []
        for picture, found in zip(pictures, self._detector(pictures, asked.names, threshold), strict=True):
            objects = {name: kept(found[name], threshold, config.max_objects, config.max_overlap) for name in asked.names}
            painted = self._coloured(picture, objects, asked)
            scores.append(verdict(asked, painted, config.credit, config.position_threshold))
        return scores

    def _coloured(self, picture: Tensor, objects: Objects, asked: Wanted) -> Objects:
        """The objects, with the colours of those that a clause looks at."""
        assert self._painter is not None
        most: dict[str, int] = {}
        for clause in asked.include:
            if clause.color:
                most[clause.name] = max(clause.count, most.get(clause.name, 0))
        painted = dict(objects)
        for name, count in most.items():
            seen = objects[name][:count]
            colours = self._painter(picture, [one.box for one in seen], name)
            painted[name] = [
                *(replace(one, color=color) for one, color in zip(seen, colours, strict=True)),
                *objects[name][count:],
            ]
        return painted


class Detector:
    """The objects of given classes in pictures, as the detector in ``path`` sees them."""

    def __init__(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_OBJECT_DETECTION_MAPPING,
            MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING,
        )

        config = from_pretrained(AutoConfig, path)
        self._told = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
        models = MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING if self._told else MODEL_FOR_OBJECT_DETECTION_MAPPING
        if type(config) not in models:
            raise UserError(f"{path} holds a model of type {config.model_type!r}, which is no detector that transformers has")
        self._path = path
        self._one_at_a_time = config.model_type.endswith("grounding-dino")
        self._processor = from_pretrained(AutoProcessor if self._told else AutoImageProcessor, path)
        self._model = load_pretrained(models[type(config)], path, device, dtype)

    def __call__(self, pictures: Tensor, names: Sequence[str], threshold: float) -> list[dict[str, list[Found]]]:
        """Of each of the pictures [n, 3, H, W] the objects of each class above ``threshold``, in no order.

        RunError: a detector with classes of its own has none of a name.
        """
        if not self._told:
            inputs = self._processor(to_pil(pictures), return_tensors="pt")
            places: dict[int | None, str] = {place: name for name in names for place in self._places(name)}
            return self._found(inputs, pictures, places, threshold)
        if self._one_at_a_time:
            # it answers with pieces of the text, which cannot be told apart where names share a word
            alone = [self._told_of(pictures, f"{name}.", {None: name}, threshold) for name in names]
            return [{name: found for one in same for name, found in one.items()} for same in zip(*alone, strict=True)]
        return self._told_of(pictures, [f"a photo of a {name}" for name in names], dict(enumerate(names)), threshold)

    def _told_of(
        self, pictures: Tensor, text: str | list[str], places: Mapping[int | None, str], threshold: float
    ) -> list[dict[str, list[Found]]]:
        inputs = self._processor(images=to_pil(pictures), text=[text] * len(pictures), return_tensors="pt")
        return self._found(inputs, pictures, places, threshold)

    def _found(
        self, inputs: Any, pictures: Tensor, places: Mapping[int | None, str], threshold: float
    ) -> list[dict[str, list[Found]]]:
        outputs = self._model(**inputs.to(self._model.device, self._model.dtype))
        return self.read(outputs, pictures.shape[-2:], places, threshold)

    def read(
        self, outputs: Any, size: Sequence[int], places: Mapping[int | None, str], threshold: float
    ) -> list[dict[str, list[Found]]]:
        """What the detector's ``outputs`` for n pictures of ``size`` (H, W) say is there, by class.

        ``places``: what the numbers of its classes stand for; None stands for all of them.
        """
        reader = (
            self._processor.post_process_grounded_object_detection
            if self._told
            else self._processor.post_process_object_detection
        )
        results = []
        for answer in reader(outputs, threshold=threshold, target_sizes=[tuple(size)] * len(outputs.logits)):
            found: dict[str, list[Found]] = {name: [] for name in places.values()}
            numbers = [None] * len(answer["scores"]) if None in places else answer["labels"].tolist()
            for number, score, box in zip(numbers, answer["scores"].tolist(), answer["boxes"].tolist(), strict=True):
                if number in places:
                    found[places[number]].append(Found(tuple(box), score))
            results.append(found)
        return results

    def _places(self, name: str) -> list[int]:
        labels = self._model.config.id2label
        found = [place for place, label in labels.items() if label in (name, SPELLINGS.get(name))]
        if not found:
            raise RunError(
                f"the detector {self._path} has no class {name!r}; it has {', '.join(sorted(labels.values()))[:200]}"
            )
        return found


class Painter:
    """The colours of objects, by a CLIP, as the released evaluation finds them: that whose texts are nearest to the crop."""

    def __init__(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        self._clip: DualEncoder = load_clip(path, path, device, dtype)
        self._known: dict[str, Tensor] = {}

    def __call__(self, picture: Tensor, boxes: Sequence[Box], name: str) -> list[str]:
        """One of COLORS for each of ``boxes`` in the picture [3, H, W], in which there is a thing called ``name``."""
        if name not in self._known:
            texts = (f"a photo of a {{}} {name}", f"a photo of a {{}}-colored {name}", "a photo of a {} object")
            means = [self._clip.embed_texts([text.format(color) for text in texts]).mean(0) for color in COLORS]
            self._known[name] = functional.normalize(torch.stack(means), dim=-1)
        nearest = [(self._clip.embed_images(crop(picture, box)[None]) @ self._known[name].T).argmax() for box in boxes]
        return [COLORS[int(place)] for place in nearest]


def crop(picture: Tensor, box: Box) -> Tensor:
    """The part of the picture [C, H, W] in ``box``, whole pixels and at least one; nothing beyond the picture."""
    bounds = []
    for axis, length in ((0, picture.shape[2]), (1, picture.shape[1])):
        first = min(max(round(box[axis]), 0), length - 1)
        bounds.append(slice(first, max(min(round(box[axis + 2]), length), first + 1)))
    return picture[:, bounds[1], bounds[0]]
