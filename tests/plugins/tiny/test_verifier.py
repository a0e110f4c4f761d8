import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from flowfactory_tiny.scenes import (
    BACKGROUNDS,
    COLORS,
    DISTANCES,
    RADII,
    RELATIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    compose,
    parse_caption,
    render,
    sample_scene,
    write_caption,
)
from flowfactory_tiny.verifier import Verdict, verify

CHECKS = ("background", "count", "color", "shape", "size", "relation", "clean")


def drawn(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(count)]


def verdicts(scenes: list[Scene], size: int = 32) -> list[Verdict]:
    return verify(render(scenes, size), [scene.caption for scene in scenes])


def strict(found: list[Verdict]) -> float:
    return sum(verdict.strict for verdict in found) / len(found)


def partial(found: list[Verdict]) -> float:
    return sum(verdict.partial for verdict in found) / len(found)


@pytest.fixture(scope="module")
def scenes():
    return drawn(500)


@pytest.fixture(scope="module")
def truth(scenes):
    return verdicts(scenes)


def test_true_pictures_pass(truth):
    assert strict(truth) >= 0.98
    assert partial(truth) >= 0.98


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_a_shift_of_a_pixel_turns_no_verdict(scenes, truth, right, down):
    wide = torch.nn.functional.pad(render(scenes[:200]), (1, 1, 1, 1), mode="replicate")
    shifted = wide[:, :, 1 - down : 33 - down, 1 - right : 33 - right]
    found = verify(shifted, [scene.caption for scene in scenes[:200]])
    assert [verdict.strict for verdict in found] == [verdict.strict for verdict in truth[:200]]


def test_noise_of_two_percent_turns_no_verdict(scenes, truth):
    pictures = render(scenes[:200])
    noisy = pictures + 0.02 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    found = verify(noisy.clamp(0, 1), [scene.caption for scene in scenes[:200]])
    assert [verdict.strict for verdict in found] == [verdict.strict for verdict in truth[:200]]


def test_objects_are_found_where_they_were_drawn(scenes, truth):
    for scene, verdict in zip(scenes, truth, strict=True):
        assert verdict.found_background == scene.background
        assert len(verdict.found) == len(scene.items)
        for item in scene.items:
            found = min(verdict.found, key=lambda other: abs(other.x - item.x) + abs(other.y - item.y))
            assert (found.color, found.shape) == (item.color, item.shape)
            assert np.allclose((found.x, found.y, found.radius), (item.x, item.y, item.radius), atol=0.01)


@pytest.mark.parametrize("size", [48, 64, 128])
def test_every_size_of_picture_is_judged_alike(scenes, size):
    assert strict(verdicts(scenes[:80], size)) >= 0.98


@pytest.mark.parametrize("sigma", [0.3, 0.5])
def test_soft_edges_pass(scenes, sigma):
    soft = ndimage.gaussian_filter(render(scenes[:200]).numpy(), (0, 0, sigma, sigma), mode="nearest")
    assert strict(verify(torch.from_numpy(soft), [scene.caption for scene in scenes[:200]])) >= 0.95


def test_faint_noise_passes(scenes):
    pictures = render(scenes[:200])
    noise = 0.04 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert strict(verify(pictures + noise, [scene.caption for scene in scenes[:200]])) >= 0.95


def test_a_verdict_does_not_depend_on_the_batch(scenes, truth):
    reverse = [scenes[index] for index in range(30, -1, -1)]
    assert verdicts(reverse)[::-1] == truth[:31]
    assert [verdicts([scene])[0] for scene in scenes[:5]] == truth[:5]
    assert verify(torch.zeros(0, 3, 32, 32), []) == []


def test_number_formats_and_gradients_do_not_matter(scenes, truth):
    captions = [scene.caption for scene in scenes[:40]]
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert strict(verify(render(scenes[:40]).to(kind), captions)) == strict(truth[:40])
    assert strict(verify(render(scenes[:40]).requires_grad_(), captions)) == strict(truth[:40])


def recolored(scene: Scene, rng: random.Random) -> Scene:
    item = scene.items[0]
    other = replace(item, color=rng.choice([color for color in COLORS if color != item.color]))
    return replace(scene, items=(other, *scene.items[1:]))


def reshaped(scene: Scene, rng: random.Random) -> Scene:
    item = scene.items[0]
    other = replace(item, shape=rng.choice([shape for shape in SHAPES if shape != item.shape]))
    return replace(scene, items=(other, *scene.items[1:]))


def one_less(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, items=scene.items[1:])


def one_more(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one more small object where there is room, else with one object less."""
    item = scene.items[0]
    for _ in range(2000):
        x, y, radius = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), 0.1
        if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 0.08 for o in scene.items):
            return replace(scene, items=(*scene.items, Item(item.shape, item.color, x, y, radius)))
    return one_less(scene, rng)


def elsewhere(scene: Scene, rng: random.Random) -> Scene:
    background = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    return replace(scene, background=background)


def turned(scene: Scene, rng: random.Random) -> Scene:
    """A pair in another relation: turned by 90 degrees, or its objects in each other's place."""
    first, second = scene.items
    if rng.random() < 0.5 and (first.color, first.shape) != (second.color, second.shape):
        places = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
        return replace(scene, items=places)
    return replace(scene, items=tuple(replace(item, x=item.y, y=item.x) for item in scene.items))


def resized(scene: Scene, rng: random.Random) -> Scene:
    """A single object that is small where large is claimed, large or of middle size where small is."""
    meaning = parse_caption(scene.caption)
    noun = meaning.nouns[0]
    other = rng.choice([size for size in (*SIZES, None) if size != noun.size])
    drawn = compose(replace(meaning, nouns=(replace(noun, size=other),)), rng)
    return replace(drawn, caption=scene.caption)


FAULTS: list[tuple[Callable[[Scene, random.Random], Scene], str]] = [
    (recolored, "color"),
    (reshaped, "shape"),
    (one_less, "count"),
    (one_more, "count"),
    (elsewhere, "background"),
    (turned, "relation"),
    (resized, "size"),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS)
def test_one_fault_fails_its_check(scenes, truth, fault, check):
    rng = random.Random(0)
    suited = [
        scene
        for scene in scenes
        if (check != "relation" or parse_caption(scene.caption).relation)
        and (check != "size" or parse_caption(scene.caption).nouns[0].size)
    ]
    wrong = verdicts([fault(scene, rng) for scene in suited])
    assert len(suited) > 80
    assert strict(wrong) <= 0.02
    assert partial(wrong) <= partial(truth) - 0.25
    assert sum(not getattr(verdict, check) for verdict in wrong) >= 0.98 * len(wrong)


def test_a_strange_caption_fails(scenes):
    captions = [scene.caption for scene in scenes]
    shifted = captions[7:] + captions[:7]
    wrong = verify(render(scenes), shifted)
    assert strict(wrong) <= 0.02
    assert partial(wrong) <= 0.2


def noise(kind: str, count: int = 100) -> Tensor:
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return torch.from_numpy(rng.random((count, 3, 32, 32)))
    if kind.startswith("gaussian"):
        deviation = float(kind.split()[1])
        return torch.from_numpy(0.5 + deviation * rng.standard_normal((count, 3, 32, 32))).clamp(0, 1)
    sigma = float(kind.split()[1])
    field = ndimage.gaussian_filter(rng.standard_normal((count, 3, 32, 32)), (0, 0, sigma, sigma))
    return torch.from_numpy(0.5 + 0.35 * field / field.std()).clamp(0, 1)


@pytest.mark.parametrize(
    "kind",
    [
        "uniform",
        "gaussian 0.05",
        "gaussian 0.2",
        "gaussian 0.6",
        "blurred 0.7",
        "blurred 1.5",
        "blurred 3",
        "blurred 6",
    ],
)
def test_noise_earns_nothing(scenes, kind):
    found = verify(noise(kind), [scene.caption for scene in scenes[:100]])
    assert max(verdict.strict for verdict in found) == 0
    assert max(verdict.partial for verdict in found) <= 0.15


@pytest.mark.parametrize("color", [*BACKGROUNDS.values(), *COLORS.values(), (0, 0, 0), (1, 1, 1), (0.25, 0.25, 0.25)])
def test_a_blank_picture_earns_nothing(scenes, color):
    blank = torch.tensor(color, dtype=torch.float32)[None, :, None, None].expand(60, 3, 32, 32)
    found = verify(blank, [scene.caption for scene in scenes[:60]])
    assert max(verdict.strict for verdict in found) == 0
    assert max(verdict.partial for verdict in found) <= 0.15


def painted(background: str, color: str, cover: Tensor) -> Tensor:
    """A picture [1, 3, S, S]: `color` over `background` where `cover` [S, S] is 1."""
    ground, paint = (torch.tensor(names)[:, None, None] for names in (BACKGROUNDS[background], COLORS[color]))
    return torch.lerp(ground, paint, cover)[None]


def grid(size: int = 32) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size) + 0.5) / size - 0.5
    return torch.meshgrid(axis, axis, indexing="xy")


def captions_of(background: str, color: str) -> list[str]:
    singles = [f"a {size}{color} {shape} on {background}" for size in ("", "small ", "large ") for shape in SHAPES]
    plurals = [f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES]
    return singles + [f"{count} {color} {shape} on {background}" for count in ("two", "three") for shape in plurals]


@pytest.mark.parametrize("period", [1, 2, 4, 8])
def test_a_checkerboard_is_no_scene(period):
    index = torch.arange(32) // period
    board = ((index[:, None] + index[None, :]) % 2).float()
    captions = captions_of("white", "red")
    found = verify(painted("white", "red", board).expand(len(captions), -1, -1, -1), captions)
    assert max(verdict.strict for verdict in found) == 0
    assert max(verdict.partial for verdict in found) <= 0.3


def test_one_giant_blob_is_no_scene():
    captions = captions_of("white", "red")
    x, y = grid()
    wobble = 0.42 + 0.05 * torch.sin(3 * torch.atan2(y, x)) + 0.04 * torch.cos(5 * torch.atan2(y, x))
    blob = (torch.hypot(x, y) < wobble).float()
    found = verify(painted("white", "red", blob).expand(len(captions), -1, -1, -1), captions)
    assert max(verdict.strict for verdict in found) == 0
    full = verify(painted("white", "red", torch.ones(32, 32)).expand(len(captions), -1, -1, -1), captions)
    assert max(verdict.partial for verdict in full) <= 0.15


@pytest.mark.parametrize("radius", [0.14, 0.18, 0.25, 0.35])
@pytest.mark.parametrize(
    ("one", "other"), [("circle", "square"), ("circle", "ring"), ("square", "triangle"), ("square", "cross")]
)
def test_between_two_shapes_there_is_at_most_one(one, other, radius):
    x, y = grid()
    size = torch.tensor(radius)
    captions = [f"a red {shape} on white" for shape in SHAPES]
    for weight in torch.linspace(0, 1, 11):
        distance = torch.lerp(DISTANCES[one](x, y, size), DISTANCES[other](x, y, size), weight)
        picture = painted("white", "red", (0.5 - distance * 32).clamp(0, 1))
        assert sum(verdict.strict for verdict in verify(picture.expand(len(captions), -1, -1, -1), captions)) <= 1


def test_a_blob_half_way_from_circle_to_square_is_neither():
    x, y = grid()
    blob = (0.5 - 32 * ((x.abs() ** 3.5 + y.abs() ** 3.5) ** (1 / 3.5) - 0.24)).clamp(0, 1)
    found = verify(painted("black", "cyan", blob).expand(2, -1, -1, -1), ["a cyan circle on black", "a cyan square on black"])
    assert [verdict.strict for verdict in found] == [0, 0]
    assert found[0].found[0].shape is None


def spoiled(name: str, pictures: Tensor, scenes: list[Scene]) -> Tensor:
    """Pictures with one thing in them that no caption speaks of."""
    result = pictures.clone()
    for picture, scene in zip(result, scenes, strict=True):
        color = torch.tensor(COLORS[scene.items[0].color])[:, None, None]
        first = scene.items[0]
        if name == "smear":
            row = min(range(32), key=lambda r: -min(abs((r + 0.5) / 32 - item.y) - item.radius for item in scene.items))
            picture[:, max(0, row - 1) : row + 2] = torch.lerp(picture[:, max(0, row - 1) : row + 2], color, 0.45)
        elif name == "half an object":
            picture[:, :, : int(first.x * 32)] = torch.tensor(BACKGROUNDS[scene.background])[:, None, None]
        elif name == "stripe":
            picture[:, :, 15:17] = color
        elif name == "dark corner":
            picture[:, :9, :9] = 0.25
        else:
            top, left = int((first.y - 0.06) * 32), int((first.x - 0.06) * 32)
            other = "blue" if first.color not in ("blue", "purple") else "yellow"
            picture[:, top : top + 4, left : left + 4] = torch.tensor(COLORS[other])[:, None, None]
    return result


@pytest.mark.parametrize("name", ["smear", "half an object", "stripe", "dark corner", "patch of another colour"])
def test_what_no_caption_speaks_of_fails(scenes, name):
    chosen = [scene for scene in scenes if all(item.shape != "ring" for item in scene.items)][:150]
    spoils = verify(spoiled(name, render(chosen), chosen), [scene.caption for scene in chosen])
    assert strict(spoils) <= 0.05


def test_touching_objects_are_not_counted_apart():
    items = (Item("circle", "red", 0.36, 0.5, 0.15), Item("circle", "red", 0.62, 0.5, 0.15))
    verdict = verdicts([Scene("black", items, "two red circles on black")])[0]
    assert not verdict.count
    assert verdict.strict == 0


def test_a_speckle_is_forgiven():
    picture = render([Scene("black", (Item("square", "red", 0.5, 0.5, 0.25),), "")])
    picture[:, :, 3, 3] = 0.6
    assert verify(picture, ["a red square on black"])[0].strict == 1


def test_shaped_credit_grows_with_what_is_right():
    text = "three green crosses on white"
    scene = compose(parse_caption(text), random.Random(1))
    two = replace(scene, items=scene.items[:2])
    one = replace(scene, items=scene.items[:1])
    none = replace(scene, items=())
    blue = replace(one, items=tuple(replace(item, color="blue") for item in one.items))
    credits = [verdict.partial for verdict in verdicts([none, blue, one, two, scene])]
    assert credits == sorted(credits)
    assert credits[0] == 0
    assert credits[-1] == 1
    assert credits[2] < credits[3] < 0.75


def test_credit_is_full_only_when_every_check_holds(truth):
    for verdict in truth:
        assert 0 <= verdict.partial <= 1
        assert verdict.strict == float(all(getattr(verdict, check) for check in CHECKS))


@pytest.mark.parametrize("relation", RELATIONS)
def test_equal_objects_in_a_relation_pass(relation):
    text = f"a red ring {relation} a red ring on gray"
    scene = compose(parse_caption(text), random.Random(0))
    assert write_caption(parse_caption(text)) == text
    assert verdicts([scene, replace(scene, items=scene.items[::-1])])[1].strict == 1


def test_sizes_that_nobody_claims_are_free():
    for size, (smallest, largest) in RADII.items():
        for radius in (smallest, largest):
            item = Item("triangle", "green", 0.5, 0.5, radius)
            plain = verdicts([Scene("gray", (item,), "a green triangle on gray")])[0]
            assert plain.strict == 1
            claims = verdicts([Scene("gray", (item,), f"a {claim} green triangle on gray") for claim in SIZES])
            assert [verdict.strict for verdict in claims] == [float(size == claim) for claim in SIZES]


@pytest.mark.parametrize(
    ("shape", "captions", "message"),
    [
        ((1, 1, 32, 32), ["a red ring on gray"], "square pictures"),
        ((1, 3, 32, 48), ["a red ring on gray"], "square pictures"),
        ((3, 32, 32), ["a red ring on gray"], "square pictures"),
        ((2, 3, 32, 32), ["a red ring on gray"], "2 pictures but 1 captions"),
        ((1, 3, 32, 32), ["a red dragon on gray"], "not a caption"),
    ],
)
def test_wrong_input_is_refused(shape, captions, message):
    with pytest.raises(ValueError, match=message):
        verify(torch.zeros(shape), captions)
