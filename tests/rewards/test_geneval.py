from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_detectors
import torch
from reward_run import config_with_reward
from tiny_detectors import LABELS
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, Owlv2ForObjectDetection
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput
from transformers.models.owlv2.modeling_owlv2 import Owlv2ObjectDetectionOutput

from flowfactory import RunError, Samples, UserError
from flowfactory.testing import check_reward
from flowfactory_rewards.geneval import GenevalConfig
from flowfactory_rewards.geneval_models import ColorClassifier, Detector, crop
from flowfactory_rewards.geneval_rules import (
    COLORS,
    Detection,
    evaluate,
    filter_detections,
    intersection_over_union,
    parse_requirements,
    relative_positions,
)

CPU = torch.device("cpu")
RELEASED = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 3}],
        "exclude": [{"class": "clock", "count": 4}],
        "prompt": "a photo of three clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cat left of a dog",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cow", "count": 1, "color": "blue"}, {"class": "tie", "count": 1, "color": "red"}],
        "prompt": "a photo of a blue cow and a red tie",
    },
]
"""Lines as GenEval releases them."""


def at(x: float, y: float, color: str | None = None, size: float = 10, score: float = 0.9) -> Detection:
    return Detection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), score, color)


def judged(asked: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]]) -> tuple[float, float]:
    """By strict and by partial credit."""
    what = parse_requirements("a", asked)
    return evaluate(what, objects, "strict"), evaluate(what, objects, "partial")


CAT, TWO_CATS = {"class": "cat", "count": 1}, {"class": "cat", "count": 2}


@pytest.mark.parametrize(
    ("asked", "objects", "strict", "partial"),
    [
        ({"include": [CAT]}, {"cat": [at(0, 0)]}, 1, 1),
        ({"include": [CAT]}, {}, 0, 0),
        ({"include": [CAT]}, {"dog": [at(0, 0)]}, 0, 0),
        ({"include": [CAT]}, {"cat": [at(0, 0)] * 2}, 1, 0),  # more than asked: right by GenEval, one too many of one
        ({"include": [TWO_CATS]}, {"cat": [at(0, 0)] * 3}, 1, 0.5),
        ({"include": [TWO_CATS]}, {"cat": [at(0, 0)]}, 0, 0.5),
        ({"include": [TWO_CATS]}, {"cat": [at(0, 0)] * 9}, 1, 0),  # not below zero
        ({"include": [CAT, {"class": "dog", "count": 1}]}, {"cat": [at(0, 0)]}, 0, 0.5),
        ({"include": [TWO_CATS], "exclude": [{"class": "cat", "count": 3}]}, {"cat": [at(0, 0)] * 2}, 1, 1),
        ({"include": [TWO_CATS], "exclude": [{"class": "cat", "count": 3}]}, {"cat": [at(0, 0)] * 3}, 0, 0.5),
        ({"include": [CAT], "exclude": [{"class": "dog", "count": 1}]}, {"cat": [at(0, 0)]}, 1, 1),
        ({"include": [CAT], "exclude": [{"class": "dog", "count": 1}]}, {"cat": [at(0, 0)], "dog": [at(9, 9)]}, 0, 0.5),
        ({"exclude": [{"class": "dog", "count": 1}]}, {}, 1, 1),
    ],
)
def test_objects_are_counted(asked: dict[str, Any], objects: dict[str, Any], strict: float, partial: float) -> None:
    assert judged(asked, objects) == (strict, partial)


@pytest.mark.parametrize(
    ("count", "colours", "strict", "partial"),
    [
        (1, ["red"], 1, 1),
        (1, ["blue"], 0, 1 / 2),  # the count holds, the colour does not
        (2, ["red", "red"], 1, 1),
        (2, ["red", "blue"], 0, (1 + 0.5) / 2),
        (2, ["red"], 0, (0.5 + 0) / 2),  # no share of colours where the count is off
        (1, ["red", "blue"], 1, 0),  # GenEval looks at the most confident one
        (1, ["blue", "red"], 0, 0),
    ],
)
def test_colours_are_those_of_the_most_confident(count: int, colours: list[str], strict: float, partial: float) -> None:
    asked = {"include": [{"class": "cat", "count": count, "color": "red"}]}
    assert judged(asked, {"cat": [at(0, 0, colour) for colour in colours]}) == (strict, pytest.approx(partial))


@pytest.mark.parametrize(
    ("cats", "dogs", "strict", "partial"),
    [
        ([at(0, 0)], [at(50, 0)], 1, 1),
        ([at(50, 0)], [at(0, 0)], 0, 2 / 3),
        ([at(0, 0)], [], 0, 1 / 3),  # nothing to stand beside
        ([], [at(50, 0)], 0, 1 / 3),
        ([at(0, 0), at(90, 0)], [at(50, 0)], 1, (0 + 1 + 0) / 3),  # one cat too many
        ([at(0, 0)], [at(50, 0), at(-50, 0)], 1, (1 + 0 + 0) / 3),
    ],
)
def test_places_are_seen_from_the_other_objects(
    cats: list[Detection], dogs: list[Detection], strict: float, partial: float
) -> None:
    assert judged(RELEASED[2], {"cat": cats, "dog": dogs}) == (strict, pytest.approx(partial))


def test_an_object_of_the_wrong_colour_is_no_place_to_stand_beside() -> None:
    asked = {"include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "position": ["above", 0]}]}
    right, wrong = ({"dog": [at(0, 50, colour)], "cat": [at(0, 0)]} for colour in ("red", "blue"))
    assert judged(asked, right) == (1, 1)
    assert judged(asked, wrong) == (0, pytest.approx((1 + 0 + 1 + 0) / 4))


def test_every_pair_must_stand_as_asked() -> None:
    asked = {"include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 2, "position": ["below", 0]}]}
    dogs, cats = [at(0, 0), at(20, 0)], [at(0, 90), at(20, 90)]
    assert judged(asked, {"dog": dogs, "cat": cats}) == (1, 1)
    assert judged(asked, {"dog": dogs, "cat": [cats[0], at(20, -90)]}) == (0, pytest.approx(2 / 3))
    assert judged(asked, {"dog": [dogs[0], at(20, 300)], "cat": cats}) == (0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((-50, 0), {"left of"}),
        ((50, 0), {"right of"}),
        ((0, -50), {"above"}),
        ((0, 50), {"below"}),
        ((-50, -50), {"left of", "above"}),
        ((50, 20), {"right of"}),  # 0.37 of the distance is less than half
        ((0, 0), set()),
        ((2, 0), set()),  # within a tenth of both sizes
        ((2.1, 0), set()),  # beyond it by a tenth of a pixel, and no more than half of the distance
        ((4.1, 0), {"right of"}),
        ((3.9, 0), set()),
    ],
)
def test_a_relation_is_most_of_the_distance_of_the_centres(place: tuple[float, float], expected: set[str]) -> None:
    assert relative_positions(at(*place).box, at(0, 0).box) == expected


def released_relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """The arithmetic of GenEval's evaluation, in NumPy."""
    boxes = np.array([a, b], dtype=np.float64).reshape(2, 2, 2)
    centres, sizes = boxes.mean(axis=1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    revised = np.maximum(np.abs(offset) - 0.1 * (sizes[0] + sizes[1]), 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    x, y = revised / np.linalg.norm(offset)
    names = (("left of", x < -0.5), ("right of", x > 0.5), ("above", y < -0.5), ("below", y > 0.5))
    return {name for name, holds in names if holds}


def released_verdict(asked: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]]) -> float:
    """The rules of GenEval's evaluation, on dictionaries as they come."""
    correct, groups = True, []
    for clause in asked.get("include", []):
        found = list(objects.get(clause["class"], []))[: clause["count"]]
        fits = len(found) == clause["count"]
        if fits and "color" in clause:
            fits = [one.color for one in found].count(clause["color"]) >= clause["count"]
        if fits and "position" in clause:
            name, other = clause["position"]
            group = groups[other]
            fits = group is not None and all(name in released_relations(a.box, b.box) for a in found for b in group)
        correct &= fits
        groups.append(found if fits else None)
    for clause in asked.get("exclude", []):
        correct &= len(objects.get(clause["class"], [])) < clause["count"]
    return float(correct)


def test_strict_credit_is_the_released_evaluation_s_on_random_scenes() -> None:
    source = np.random.default_rng(0)
    outcomes = []
    for _ in range(3000):
        names = ("cat", "dog")
        objects = {
            name: [
                at(*source.integers(0, 60, 2), str(source.choice(COLORS[:2])), source.integers(2, 40)) for _ in range(number)
            ]
            for name, number in zip(names, source.integers(0, 4, 2), strict=True)
        }
        include: list[dict[str, Any]] = [{"class": str(source.choice(names)), "count": int(source.integers(1, 3))}]
        if source.random() < 0.6:
            include.append({"class": "cat", "count": 1, "position": [str(source.choice(["left of", "above"])), 0]})
        if source.random() < 0.5:
            include[0]["color"] = "red"
        asked = {"include": include, "exclude": [{"class": "dog", "count": int(source.integers(1, 5))}]}
        outcomes.append(released_verdict(asked, objects))
        assert judged(asked, objects)[0] == outcomes[-1]
        for a in objects["cat"]:
            for b in objects["dog"]:
                assert relative_positions(a.box, b.box) == released_relations(a.box, b.box)
    assert 0.05 < np.mean(outcomes) < 0.98


def test_the_most_confident_objects_above_the_threshold_are_kept() -> None:
    found = [at(0, 0, score=score) for score in (0.3, 0.95, 0.31, 0.5)]
    assert [one.score for one in filter_detections(found, 0.3, 16, 1)] == [0.95, 0.5, 0.31]
    assert [one.score for one in filter_detections(found, 0.3, 2, 1)] == [0.95, 0.5]


def test_what_overlaps_a_better_one_is_dropped_on_request() -> None:
    found = [at(0, 0, score=0.5), at(1, 0, score=0.9), at(30, 0, score=0.8)]
    assert intersection_over_union(found[0].box, found[1].box) == pytest.approx(10 * 11 / (2 * 121 - 110))
    assert [one.score for one in filter_detections(found, 0.1, 16, 0.8)] == [0.9, 0.8]
    assert [one.score for one in filter_detections(found, 0.1, 16, 0.9)] == [0.9, 0.8, 0.5]
    assert [one.score for one in filter_detections([found[0]] * 3, 0.1, 16, 1)] == [0.5] * 3


def test_the_limit_is_on_what_the_detector_finds_not_on_what_is_left() -> None:
    """In the released evaluation the number is limited first."""
    found = [at(0, 0, score=0.9), at(0, 0, score=0.8), at(50, 0, score=0.7)]
    assert [one.score for one in filter_detections(found, 0.1, 2, 0.5)] == [0.9]


def test_metadata_is_read_from_released_lines_and_from_under_geneval() -> None:
    for line in RELEASED:
        rest = {key: value for key, value in line.items() if key != "prompt"}
        assert parse_requirements("a", rest) == parse_requirements("a", {"geneval": line, "include": "not this"})
    position = parse_requirements("a", RELEASED[2]).include[1]
    assert (position.name, position.count, position.color, position.position) == ("cat", 1, None, ("left of", 0))
    assert parse_requirements("a", RELEASED[1]).tag == "counting"
    assert parse_requirements("a", RELEASED[1]).names == ("clock",)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "says no objects to look for"),
        ({"geneval": 3}, "says no objects to look for"),
        ({"include": []}, "says no objects to look for"),
        ({"include": "cat"}, "'include' is 'cat'; expected a list"),
        ({"include": ["cat"]}, "'include' number 1 is 'cat'"),
        ({"include": [CAT, {"class": "dog"}]}, "'include' number 2 has the count None"),
        ({"include": [{"class": "cat", "count": 0}]}, "count 0; expected a whole number from 1 on"),
        ({"include": [{"class": "cat", "count": True}]}, "count True"),
        ({"include": [{"class": " ", "count": 1}]}, "the class ' '; expected a word"),
        ({"include": [{"class": ["cat"], "count": 1}]}, "the class"),
        ({"include": [{**CAT, "color": "crimson"}]}, "the color 'crimson'; there are red, orange"),
        ({"include": [{**CAT, "colour": "red"}]}, "has 'colour'; there are"),
        ({"include": [{**CAT, "position": "left of"}]}, "expected a pair such as"),
        ({"include": [CAT, {**CAT, "position": ["beside", 0]}]}, "expected a pair such as"),
        ({"include": [CAT, {**CAT, "position": ["left of", 1]}]}, "not that of an earlier one"),
        ({"include": [CAT, {**CAT, "position": ["left of", -1]}]}, "not that of an earlier one"),
        ({"include": [CAT], "exclude": [{**CAT, "color": "red"}]}, "does not look at there"),
        ({"include": [CAT], "tag": 3}, "the tag 3"),
    ],
)
def test_what_is_wrong_in_the_metadata_is_named(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="'a photo'") as error:
        parse_requirements("a photo", metadata)
    assert said in str(error.value)


def test_a_prompt_without_objects_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    config_with_reward(tmp_path, {"name": "geneval"}, RELEASED, [{"prompt": "a cat", "geneval": RELEASED[0]}])
    with pytest.raises(UserError, match=r"prompt 2 of train.jsonl: 'a cat' says no objects"):
        config_with_reward(tmp_path, {"name": "geneval"}, [RELEASED[0], {"prompt": "a cat"}], RELEASED)
    assert config_with_reward(tmp_path, {"name": "geneval"}, [{"prompt": "a cat", "rewards": ["light"]}], RELEASED)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="session")
def clip(folder: Path) -> str:
    return str(tiny_detectors.clip(folder / "clip"))


def pictures(count: int = 3) -> torch.Tensor:
    """Noise of several colours [count, 3, 40, 64]."""
    source = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 40, 64, generator=source) * torch.rand(count, 3, 1, 1, generator=source)


DETECTORS: dict[str, Callable[[Path], Path]] = {
    "owlvit": partial(tiny_detectors.owl, second=False),
    "owlv2": partial(tiny_detectors.owl, second=True),
    "grounding-dino": tiny_detectors.grounding_dino,
    "rt-detr": tiny_detectors.rt_detr,
    "detr": tiny_detectors.detr,
}


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("frames", [None, 2])
def test_every_kind_of_detector_keeps_the_contract(kind: str, frames: int | None, folder: Path, clip: str) -> None:
    path = folder / kind
    if not path.is_dir():
        DETECTORS[kind](path)
    media = pictures(6) if frames is None else pictures(6).reshape(3, 2, 3, 40, 64)
    one = {"tag": "color_attr", "include": [{"class": "dog", "count": 1, "color": "red"}, {**CAT, "position": ["above", 0]}]}
    other = {"tag": "two_object", "include": [CAT, {"class": "dog", "count": 3}]}
    count = len(media)
    samples = Samples(media, ("a",) * count, torch.zeros(count).long(), tuple([one, one, other, other, one, other][:count]))
    config = GenevalConfig(path=str(path), clip=clip, threshold=0.0, credit="partial", batch_size=2, max_objects=3)
    scores = check_reward(config, samples)["under test"]
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_a_model_that_detects_nothing_is_refused(clip: str) -> None:
    with pytest.raises(UserError, match="type 'clip', which is no detector"):
        GenevalConfig(path=clip, clip=clip).build("seen").prepare_reward(CPU)


def sure(folder: Path, name: str, **options: Any) -> str:
    """A DETR that finds three of LABELS' first with probability 0.843 in the same box, whatever the picture."""
    return str(tiny_detectors.detr(folder / name, certain=(3.0, 0.0, 0.0, 0.0), **options))  # e³ / (e³ + 2 + 1) = 0.870


def test_thresholds_and_overlaps_decide_what_is_counted(folder: Path, clip: str) -> None:
    """Through the whole reward: three cats in one place, of probability e³ / (e³ + 3) = 0.870."""
    path = sure(folder, "three-cats")

    def scored(tag: str, count: int, **options: Any) -> float:
        metadata = {
            "tag": tag,
            "include": [{"class": "cat", "count": count}],
            "exclude": [{"class": "cat", "count": count + 1}],
        }
        samples = Samples(pictures(1), ("a",), torch.tensor([0]), (metadata,))
        return check_reward(GenevalConfig(path=path, clip=clip, **options), samples)["under test"].item()

    assert [scored("", count) for count in (2, 3, 4)] == [0, 1, 0]
    assert scored("counting", 3) == 0  # 0.870 is below 0.9
    assert scored("counting", 3, counting_threshold=0.86) == 1
    assert scored("counting", 3, counting_threshold=0.88) == 0
    assert scored("", 3, threshold=0.88) == 0
    assert scored("", 1, max_overlap=0.5) == 1
    assert scored("", 2, max_objects=2) == 1


def test_one_channel_is_seen_as_grey(folder: Path, clip: str) -> None:
    config = GenevalConfig(path=sure(folder, "grey"), clip=clip)
    metadata = ({"include": [{"class": "cat", "count": 3, "color": "red"}]},)
    grey = pictures(1)[:, :1]
    for media in (grey, grey.expand(-1, 3, -1, -1)):
        assert check_reward(config, Samples(media, ("a",), torch.tensor([0]), metadata))["under test"].isfinite().all()


def test_a_class_that_the_detector_has_not_is_named(folder: Path, clip: str) -> None:
    reward = GenevalConfig(path=sure(folder, "narrow"), clip=clip).build("seen")
    with pytest.raises(RunError, match="has no class 'zebra'; it has cat, dog, keyboard"):
        reward.compute_reward(Samples(pictures(1), ("a",), torch.tensor([0]), ({"include": [{"class": "zebra", "count": 1}]},)))


def test_a_prompt_without_objects_ends_the_run_rather_than_scoring_nothing(folder: Path, clip: str) -> None:
    reward = GenevalConfig(path=sure(folder, "unasked"), clip=clip).build("seen")
    with pytest.raises(RunError, match="'a cat' says no objects"):
        reward.compute_reward(Samples(pictures(1), ("a cat",), torch.tensor([0]), ({},)))


def test_boxes_come_in_pixels_of_the_picture_and_under_the_name_asked_for(folder: Path) -> None:
    """DETR's answers, made by hand, through its real post-processing: centre and size in shares of a 200 x 100 picture."""
    detector = Detector(sure(folder, "by-hand"), CPU, torch.float32)
    logits = torch.tensor([[[9.0, 0, 0, 0], [0, 0, 4, 0], [0, 5, 0, 0], [0, 0, 0, 9]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.2, 0.2], [0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1]]])
    places = {place: name for name in ("computer keyboard", "cat") for place in detector._class_ids(name)}
    assert places == {2: "computer keyboard", 0: "cat"}
    [found] = detector.post_process(DetrObjectDetectionOutput(logits=logits, pred_boxes=boxes), (100, 200), places, 0.3)
    assert list(found) == ["computer keyboard", "cat"]  # the dog was not asked for, and the last is nothing
    [keyboard], [cat] = found.values()
    assert cat.box == pytest.approx((80, 30, 120, 70))
    assert cat.score == pytest.approx(np.exp(9) / (np.exp(9) + 3))
    assert keyboard.box == pytest.approx((0, 80, 40, 100))


def test_boxes_of_owlv2_are_shares_of_the_padded_square(folder: Path) -> None:
    """OWLv2 sees the picture with grey below or beside it; its answers by hand, through its real post-processing."""
    detector = Detector(str(tiny_detectors.owl(folder / "padded", second=True)), CPU, torch.float32)
    logits = torch.tensor([[[2.0, -2.0], [-3.0, 1.0], [-9.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.25, 0.2, 0.3], [0.25, 0.1, 0.1, 0.2], [0.5, 0.5, 1, 1]]])
    outputs = Owlv2ObjectDetectionOutput(logits=logits, pred_boxes=boxes)
    [found] = detector.post_process(outputs, (100, 200), {0: "cat", 1: "dog"}, 0.3)
    assert [one.box for one in found["cat"]] == [pytest.approx((80, 20, 120, 80))]
    assert [one.score for one in found["cat"]] == [pytest.approx(1 / (1 + np.exp(-2)))]
    assert [one.box for one in found["dog"]] == [pytest.approx((40, 0, 60, 40))]


def test_a_told_detector_is_asked_for_photos_of_the_classes(folder: Path) -> None:
    """OWLv2's logits of two classes are those of the two texts, asked for in the released way."""
    path = tiny_detectors.owl(folder / "told", second=True)
    detector = Detector(str(path), CPU, torch.float32)
    with torch.inference_mode():
        [found] = detector(pictures(1), ["cat", "dog"], 0.0)
        model = Owlv2ForObjectDetection.from_pretrained(path).eval()
        texts = ["a photo of a cat", "a photo of a dog"]
        inputs = detector._processor.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
        values = detector._processor.image_processor(tiny_images(pictures(1)), return_tensors="pt").pixel_values
        logits = model(**inputs, pixel_values=values).logits[0]
    largest, which = logits.max(1)
    for place, name in enumerate(("cat", "dog")):
        assert sorted(one.score for one in found[name]) == pytest.approx(
            sorted(largest[which == place].sigmoid().tolist()), abs=1e-5
        )


def tiny_images(media: torch.Tensor) -> list[np.ndarray]:
    return [(picture * 255).round().byte().permute(1, 2, 0).numpy() for picture in media]


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((2, 3, 7, 9), (3, 9), (2, 7)),
        ((1.6, 2.4, 5.5, 8.6), (2, 9), (2, 6)),
        ((-5, -5, 900, 900), (0, 10), (0, 20)),
        ((4, 4, 4, 4), (4, 5), (4, 5)),  # at least a pixel
        ((30, 30, 40, 40), (9, 10), (19, 20)),
    ],
)
def test_crops_are_the_pixels_in_the_box(box: Any, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    picture = torch.arange(3 * 10 * 20).reshape(3, 10, 20)
    assert torch.equal(crop(picture, box), picture[:, slice(*rows), slice(*columns)])


def test_colours_are_those_that_clip_says_of_the_crops(clip: str) -> None:
    """Against GenEval's zero-shot classifier, written out: three texts a colour, normalised, averaged, normalised."""
    model = CLIPModel.from_pretrained(clip).double().eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(clip), CLIPImageProcessorPil.from_pretrained(clip)
    columns = []
    for color in COLORS:
        texts = [f"a photo of a {color} cat", f"a photo of a {color}-colored cat", f"a photo of a {color} object"]
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        embedded = functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1).mean(0)
        columns.append(embedded / embedded.norm())
    painter = ColorClassifier(clip, CPU, torch.float32)
    boxes = [(float(x), float(y), float(x + 20), float(y + 12)) for x in (0, 8, 30) for y in (1, 20)]
    seen = []
    for picture in pictures():
        expected = []
        for left, top, right, bottom in boxes:
            part = picture[:, int(top) : int(bottom), int(left) : int(right)][None]
            values = processor(tiny_images(part), return_tensors="pt").pixel_values.double()
            cosines = functional.normalize(model.get_image_features(values).pooler_output, dim=-1) @ torch.stack(columns).T
            expected.append(COLORS[int(cosines.argmax())])
        with torch.inference_mode():
            assert painter(picture, boxes, "cat") == expected
        seen += expected
    assert len(set(seen)) > 1


def test_labels_share_the_weights(folder: Path, clip: str) -> None:
    path = sure(folder, "shared")
    one, two = (GenevalConfig(path=path, clip=clip, credit=credit).build(credit) for credit in ("strict", "partial"))
    for reward in (one, two):
        reward.prepare_reward(CPU)
    assert one._detector is two._detector
    assert one._color_classifier is two._color_classifier


@pytest.mark.weights
def test_the_default_detector_sees_the_two_cats_of_its_documentation() -> None:
    """COCO's picture 39769: two cats, two remotes and a couch."""
    from io import BytesIO
    from urllib.request import urlopen

    from PIL import Image

    with urlopen("http://images.cocodataset.org/val2017/000000039769.jpg") as answer:
        picture = np.array(Image.open(BytesIO(answer.read())).convert("RGB"))
    media = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    include = [{"class": "cat", "count": 2}, {"class": "tv remote", "count": 2}, {"class": "couch", "count": 1}]
    metadata = {"tag": "counting", "include": include, "exclude": [{"class": "cat", "count": 3}]}
    assert check_reward(GenevalConfig(), Samples(media, ("a",), torch.tensor([0]), (metadata,)))["under test"].item() == 1


def test_released_lines_are_as_json_has_them() -> None:
    assert json.loads(json.dumps(RELEASED)) == RELEASED
    assert set(LABELS.values()) == {"cat", "dog", "keyboard"}
