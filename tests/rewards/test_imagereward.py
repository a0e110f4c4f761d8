from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reward_cases import PROMPTS, normalize_image, pictures, refusal, samples, to_pil_image
from torch import Tensor
from torch.nn import functional
from transformers import BertTokenizer

from flowfactory import UserError
from flowfactory.testing import check_reward
from flowfactory_rewards.imagereward import ImageRewardConfig

HEAD, PATCH, GRID, LAYERS = 64, 8, 3, 2
VISION, TEXT, INNER, PLACES = 128, 64, 48, 40
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "red", "blue", "circle", "square", "cat")
SIZE = PATCH * GRID


def released() -> dict[str, Tensor]:
    """Weights under the names and in the shapes that ImageReward.pt has, those that the reward does not use among them."""
    source = torch.Generator().manual_seed(2)

    def drawn(*shape: int, scale: float = 0.15) -> Tensor:
        return torch.randn(shape, generator=source) * scale

    def linear(name: str, out: int, into: int) -> dict[str, Tensor]:
        return {f"{name}.weight": drawn(out, into), f"{name}.bias": drawn(out)}

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + drawn(width), f"{name}.bias": drawn(width)}

    state = {
        "blip.visual_encoder.cls_token": drawn(1, 1, VISION),
        "blip.visual_encoder.pos_embed": drawn(1, GRID**2 + 1, VISION),
        "blip.visual_encoder.patch_embed.proj.weight": drawn(VISION, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": drawn(VISION),
        **norm("blip.visual_encoder.norm", VISION),
        "blip.text_encoder.embeddings.position_ids": torch.arange(PLACES)[None],
        "blip.text_encoder.embeddings.word_embeddings.weight": drawn(len(WORDS) + 2, TEXT, scale=0.5),
        "blip.text_encoder.embeddings.position_embeddings.weight": drawn(PLACES, TEXT),
        **norm("blip.text_encoder.embeddings.LayerNorm", TEXT),
        **linear("blip.vision_proj", 256, VISION),
        **linear("blip.text_proj", 256, TEXT),
    }
    for i in range(LAYERS):
        block = f"blip.visual_encoder.blocks.{i}"
        state |= norm(f"{block}.norm1", VISION) | norm(f"{block}.norm2", VISION)
        state |= linear(f"{block}.attn.qkv", 3 * VISION, VISION) | linear(f"{block}.attn.proj", VISION, VISION)
        state |= linear(f"{block}.mlp.fc1", INNER, VISION) | linear(f"{block}.mlp.fc2", VISION, INNER)
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for attention, width in (("attention", TEXT), ("crossattention", VISION)):
            state |= linear(f"{layer}.{attention}.self.query", TEXT, TEXT)
            state |= linear(f"{layer}.{attention}.self.key", TEXT, width)
            state |= linear(f"{layer}.{attention}.self.value", TEXT, width)
            state |= linear(f"{layer}.{attention}.output.dense", TEXT, TEXT)
            state |= norm(f"{layer}.{attention}.output.LayerNorm", TEXT)
        state |= linear(f"{layer}.intermediate.dense", INNER, TEXT) | linear(f"{layer}.output.dense", TEXT, INNER)
        state |= norm(f"{layer}.output.LayerNorm", TEXT)
    widths = (TEXT, 24, 16, 12, 8, 1)
    for number, into, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        state |= {f"mlp.layers.{number}.weight": drawn(out, into, scale=0.25), f"mlp.layers.{number}.bias": drawn(out)}
    return state


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of [n, L, width] each, in heads of 64."""

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(2, (-1, HEAD)).transpose(1, 2)

    weights = heads(query) @ heads(key).transpose(-1, -2) / math.sqrt(HEAD)
    if mask is not None:
        weights = weights.masked_fill(mask[:, None, None] == 0, float("-inf"))
    return (weights.softmax(-1) @ heads(value)).transpose(1, 2).flatten(2)


def reward(seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """What ImageReward says of what it sees [n, 3, S, S] and n tokenized prompts [n, L], in float64."""
    state = {name: value.double() for name, value in released().items()}

    def linear(name: str, states: Tensor) -> Tensor:
        return states @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, states: Tensor, eps: float) -> Tensor:
        return functional.layer_norm(states, states.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    vit = "blip.visual_encoder"
    kernel, bias = state[f"{vit}.patch_embed.proj.weight"], state[f"{vit}.patch_embed.proj.bias"]
    patches = functional.conv2d(seen, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2)
    states = torch.cat([state[f"{vit}.cls_token"].expand(len(seen), 1, -1), patches], 1) + state[f"{vit}.pos_embed"]
    for i in range(LAYERS):
        block = f"{vit}.blocks.{i}"
        joint = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", states, 1e-6))
        states = states + linear(f"{block}.attn.proj", attended(*joint.chunk(3, -1)))
        inner = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", states, 1e-6)))
        states = states + linear(f"{block}.mlp.fc2", inner)
    looked = norm(f"{vit}.norm", states, 1e-6)

    bert = "blip.text_encoder"
    states = state[f"{bert}.embeddings.word_embeddings.weight"][ids]
    states = states + state[f"{bert}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    states = norm(f"{bert}.embeddings.LayerNorm", states, 1e-12)
    for i in range(LAYERS):
        layer = f"{bert}.encoder.layer.{i}"
        for attention, others, seen_by in (("attention", None, mask), ("crossattention", looked, None)):
            own = f"{layer}.{attention}"
            read = states if others is None else others
            mixed = attended(
                linear(f"{own}.self.query", states), linear(f"{own}.self.key", read), linear(f"{own}.self.value", read), seen_by
            )
            states = norm(f"{own}.output.LayerNorm", linear(f"{own}.output.dense", mixed) + states, 1e-12)
        inner = functional.gelu(linear(f"{layer}.intermediate.dense", states))
        states = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + states, 1e-12)
    first = states[:, 0]
    for number in (0, 2, 4, 6, 7):
        first = linear(f"mlp.layers.{number}", first)
    return (first[:, 0] - 0.16717362830052426) / 1.0333394966054072


def middle(picture: Tensor) -> Tensor:
    """torchvision's Resize, CenterCrop and Normalize of a file: [3, S, S], float64."""
    file = to_pil_image(picture)
    width, height = file.size
    if width <= height:
        width, height = SIZE, int(SIZE * height / width)
    else:
        width, height = int(SIZE * width / height), SIZE
    small = np.asarray(file.resize((width, height), Image.Resampling.BICUBIC))
    top, left = int(round((height - SIZE) / 2.0)), int(round((width - SIZE) / 2.0))  # noqa: RUF046 as torchvision says it
    return normalize_image(Image.fromarray(small[top : top + SIZE, left : left + SIZE]))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imagereward")
    torch.save(released(), place / "ImageReward.pt")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(place)
    return place


@pytest.mark.parametrize(("height", "width"), [(24, 24), (48, 48), (48, 54), (70, 30)])
def test_the_released_file_scores_as_the_released_program(folder: Path, height: int, width: int) -> None:
    media = pictures(height, width)
    scores = check_reward(ImageRewardConfig(path=str(folder), tokenizer=str(folder)), samples(media))["under test"]
    ids = [[2, *(WORDS.index(word) for word in prompt.split()), 3] for prompt in PROMPTS]
    filled = torch.tensor([row + [0] * (35 - len(row)) for row in ids])
    expected = reward(torch.stack([middle(picture) for picture in media]), filled, (filled != 0).long())
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=2e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_about_the_same(folder: Path, dtype: str) -> None:
    raw = {"path": str(folder), "tokenizer": str(folder)}
    expected = check_reward(ImageRewardConfig.model_validate(raw), samples(pictures()))["under test"]
    half = check_reward(ImageRewardConfig.model_validate({**raw, "dtype": dtype}), samples(pictures()), tolerance=0.05)[
        "under test"
    ]
    assert half.tolist() == pytest.approx(expected.tolist(), abs=0.1)
    assert not half.equal(expected)


def test_a_prompt_is_read_up_to_35_tokens(folder: Path) -> None:
    config = ImageRewardConfig(path=str(folder), tokenizer=str(folder))
    media = pictures(count=1).expand(3, -1, -1, -1)
    prompts = (" ".join(["red"] * 33), " ".join(["red"] * 33 + ["cat"]), " ".join(["red"] * 32 + ["cat"]))
    scores = check_reward(config, samples(media, prompts))["under test"]
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-6)
    assert scores[0].item() != pytest.approx(scores[2].item(), abs=1e-4)


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ("blip.visual_encoder.blocks.0.mlp", r"no weight that becomes encoder\.layers\.0\.mlp\.fc1\.weight"),
        (
            "blip.text_encoder.encoder.layer.0.crossattention",
            r"no weight blip\.text_encoder\.encoder\.layer\.0\.crossattention\.self\.key\.weight",
        ),
        (
            "blip.text_encoder.encoder.layer.1.output.dense.weight",
            r"lacks a weight .*BlipTextModel.*, the first encoder\.layer\.1\.output\.dense\.weight;",
        ),
        ("mlp.layers.7", r"has the layers \[0, 2, 4, 6\]"),
    ],
)
def test_weights_that_lack_a_part_are_refused(folder: Path, tmp_path: Path, without: str, told: str) -> None:
    torch.save({name: value for name, value in released().items() if not name.startswith(without)}, tmp_path / "less.pt")
    made = ImageRewardConfig(path=str(tmp_path), file="less.pt", tokenizer=str(folder)).build("people")
    with pytest.raises(UserError, match=rf"less\.pt in .*{told}"):
        made.prepare_reward(torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"more.weight": torch.zeros(2)}, r"holds a weight that this reward does not know, the first more\.weight; get"),
        ({"blip.text_encoder.more": torch.zeros(2)}, r"holds a weight .*, the first more; get"),
        (
            {"blip.visual_encoder.norm.weight": torch.zeros(3)},
            r"weight of another shape .*: post_layernorm\.weight is \[3\], not",
        ),
        ({"mlp.layers.0.weight": torch.zeros(24, 5)}, r"layer 0 is \[24, 5\] with a bias \[24\], and 64 features come to it"),
    ],
)
def test_a_file_with_other_weights_is_one_line(folder: Path, tmp_path: Path, change: dict[str, Tensor], told: str) -> None:
    torch.save(released() | change, tmp_path / "other.pt")
    config = ImageRewardConfig(path=str(tmp_path), file="other.pt", tokenizer=str(folder))
    assert re.search(rf"^other\.pt in .*{told}", refusal(config))


def test_what_blip_is_pretrained_with_besides_is_let_pass(folder: Path, tmp_path: Path) -> None:
    names = ("blip.itm_head.weight", "blip.visual_encoder_m.norm.weight", "blip.text_decoder.cls.bias", "blip.temp")
    torch.save(released() | {name: torch.zeros(2) for name in names}, tmp_path / "more.pt")
    more = ImageRewardConfig(path=str(tmp_path), file="more.pt", tokenizer=str(folder))
    expected = check_reward(ImageRewardConfig(path=str(folder), tokenizer=str(folder)), samples(pictures()))["under test"]
    assert check_reward(more, samples(pictures()))["under test"].equal(expected)


def test_another_tokenizer_or_none_is_one_line(folder: Path, tmp_path: Path) -> None:
    vocabulary = {word: i for i, word in enumerate((*WORDS, *"bdeghij"))}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    config = ImageRewardConfig(path=str(folder), tokenizer=str(tmp_path))
    assert re.search(r"^the tokenizer in .* has ids up to \d+, and its encoder has 15 embeddings; get the tok", refusal(config))
    for file in tmp_path.iterdir():
        file.unlink()
    assert re.search(r"^the tokenizer in .* has no [\w.]+ in ", refusal(config))


@pytest.mark.weights
def test_released_weights_reproduce_the_published_example() -> None:
    """assets/images/1.webp to 4.webp of the authors' repository, in the folder FLOWFACTORY_IMAGEREWARD_EXAMPLES."""
    examples = Path(os.environ["FLOWFACTORY_IMAGEREWARD_EXAMPLES"])
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    path = os.environ.get("FLOWFACTORY_IMAGEREWARD", "zai-org/ImageReward")
    config = ImageRewardConfig.model_validate({"path": path})
    for number, published in enumerate((0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492), 1):
        with Image.open(examples / f"{number}.webp") as file:
            picture = torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
        score = check_reward(config, samples(picture, (prompt,)))["under test"]
        assert float(score) == pytest.approx(published, abs=0.01)
