import random
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory_tiny.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTED_RADII,
    GAP,
    KINDS,
    MARGIN,
    RELATIONS,
    SHAPES,
    SIZES,
    WORDS,
    Description,
    Item,
    Noun,
    Scene,
    compose,
    enumerate_captions,
    enumerate_descriptions,
    parse_caption,
    render,
    sample_mistaken_scene,
    sample_scene,
    write_caption,
)
from flowfactory_tiny.verifier import verify

colors, shapes, backgrounds = (st.sampled_from(list(names)) for names in (COLORS, SHAPES, BACKGROUNDS))
plain = st.builds(Noun, st.just(1), st.none(), colors, shapes)
singles = st.tuples(st.builds(Noun, st.just(1), st.sampled_from([None, *SIZES]), colors, shapes))
counted = st.tuples(st.builds(Noun, st.sampled_from([2, 3]), st.none(), colors, shapes))
meanings = st.one_of(
    st.builds(Description, backgrounds, singles | counted),
    st.builds(Description, backgrounds, st.tuples(plain, plain), st.sampled_from(RELATIONS)),
)


@given(meanings)
def test_a_caption_means_what_it_was_made_from(meaning):
    assert parse_caption(write_caption(meaning)) == meaning


@given(st.text() | st.lists(st.sampled_from(WORDS), max_size=10).map(" ".join))
def test_any_other_text_is_refused(text):
    try:
        meaning = parse_caption(text)
    except ValueError:
        return
    assert write_caption(meaning) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a caption"),
        ("a red circle", "not a caption"),
        ("a pink circle on black", "not a caption"),
        ("four red circles on black", "not a caption"),
        ("two red circle on black", "not a caption"),
        ("A red circle on black", "not a caption"),
        ("a red circle on black.", "not a caption"),
        ("a orange ring on gray", "an orange ring on gray"),
        ("an red ring on gray", "a red ring on gray"),
    ],
)
def test_a_wrong_caption_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text)


def test_the_examples_of_the_grammar():
    assert parse_caption("a large red circle on white") == Description("white", (Noun(1, "large", "red", "circle"),))
    pair = (Noun(1, None, "blue", "square"), Noun(1, None, "orange", "ring"))
    assert parse_caption("a blue square above an orange ring on black") == Description("black", pair, "above")
    assert parse_caption("three cyan crosses on gray") == Description("gray", (Noun(3, None, "cyan", "cross"),))


def test_all_captions_are_different_and_spelled_with_the_known_words():
    every = list(enumerate_captions())
    assert len(every) == len(set(every)) == 360 + 9600 + 240
    assert {word for text in every for word in text.split()} == set(WORDS)
    assert [len(list(enumerate_descriptions(kind))) for kind in KINDS] == [360, 9600, 240]
    assert all(meaning.kind == kind for kind in KINDS for meaning in enumerate_descriptions(kind))


def test_drawing_repeats_with_the_seed_and_is_balanced():
    scenes = [sample_scene(random.Random(seed)) for seed in range(1500)]
    assert scenes == [sample_scene(random.Random(seed)) for seed in range(1500)]
    kinds = [parse_caption(scene.caption).kind for scene in scenes]
    assert all(kinds.count(kind) > 420 for kind in KINDS)
    counts = [len(scene.items) for scene in scenes if parse_caption(scene.caption).kind == "counted"]
    assert min(counts.count(2), counts.count(3)) > 200


def test_objects_lie_inside_and_never_touch():
    rng = random.Random(1)
    for scene in (sample_scene(rng) for _ in range(1000)):
        for item in scene.items:
            assert min(item.x, item.y) - item.radius >= MARGIN - 1e-9
            assert max(item.x, item.y) + item.radius <= 1 - MARGIN + 1e-9
        for a, b in combinations(scene.items, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius >= GAP - 1e-9
    assert GAP * 32 >= 3


def test_a_scene_shows_what_its_caption_says():
    rng = random.Random(2)
    for scene in (sample_scene(rng) for _ in range(500)):
        meaning = parse_caption(scene.caption)
        nouns = [noun for noun in meaning.nouns for _ in range(noun.count)]
        assert [(item.color, item.shape) for item in scene.items] == [(noun.color, noun.shape) for noun in nouns]
        if meaning.relation == "left of":
            assert scene.items[0].x < scene.items[1].x
        if meaning.relation == "above":
            assert scene.items[0].y < scene.items[1].y


def test_a_share_of_captions_is_mistaken_in_what_can_be_seen():
    rng = random.Random(2)
    scenes = [sample_mistaken_scene(rng, wrong=0.4) for _ in range(1000)]
    right = [bool(verdict.strict) for verdict in verify(render(scenes), [scene.caption for scene in scenes])]
    # some mistakes undo or change nothing: two equal objects may swap places
    assert 0.57 < sum(right) / len(right) < 0.66
    for scene in scenes[:200]:
        parse_caption(scene.caption)


def test_without_mistakes_captions_are_true():
    rng = random.Random(3)
    scenes = [sample_mistaken_scene(rng, wrong=0.0) for _ in range(200)]
    assert all(verdict.strict for verdict in verify(render(scenes), [scene.caption for scene in scenes]))


def test_rendering_is_independent_of_the_batch():
    rng = random.Random(3)
    scenes = [sample_scene(rng) for _ in range(12)]
    together = render(scenes)
    assert together.shape == (12, 3, 32, 32)
    assert 0 <= together.min() <= together.max() <= 1
    for scene, picture in zip(scenes, together, strict=True):
        # what is left over at the end of a vector may be rounded otherwise
        torch.testing.assert_close(render([scene])[0], picture, rtol=0, atol=1e-5)


def test_larger_pictures_show_the_same():
    rng = random.Random(4)
    scenes = [sample_scene(rng) for _ in range(20)]
    small, large = render(scenes, 32), torch.nn.functional.avg_pool2d(render(scenes, 128), 4)
    assert (small - large).abs().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box(shape):
    inside = (render([Scene("black", (Item(shape, "red", 0.5, 0.5, 0.25),), "")], 128)[0, 0] > 0.45).nonzero()
    (top, left), (bottom, right) = inside.min(0).values.tolist(), inside.max(0).values.tolist()
    assert min(top, left) >= 31
    assert max(bottom, right) <= 96
    assert right - left >= 0.84 * 64
    assert abs((top + bottom) / 2 - 63.5) <= 1
    assert left + right == 127


def test_no_scene_renders_to_no_picture():
    assert render([]).shape == (0, 3, 32, 32)


def test_counted_objects_have_one_size():
    scene = compose(parse_caption("three red rings on black"), random.Random(0))
    assert len({item.radius for item in scene.items}) == 1
    assert COUNTED_RADII[0] <= scene.items[0].radius <= COUNTED_RADII[1]
