from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reward_cases import CLIP_MEAN, CLIP_STD, PROMPTS, pictures, refusal, samples, to_pil_image
from safetensors.torch import save_file
from tiny_clip import SIZE, clip_folder, embeddings
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from flowfactory import UserError
from flowfactory.testing import check_reward
from flowfactory.testing.tiny_checkpoints import clip_tokenizer
from flowfactory_rewards.hpsv2 import HpsV2Config, letterbox

LAYERS, PATCH, GRID, LENGTH, SHARED = 2, 8, 3, 10, 24
VISION, TEXT = 160, 128  # two heads each, as wide as those of ViT-H-14


def released() -> dict[str, Tensor]:
    """Weights under the names and in the shapes that HPSv2's checkpoints have."""
    source = torch.Generator().manual_seed(2)

    def drawn(*shape: int, scale: float = 0.12) -> Tensor:
        return torch.randn(shape, generator=source) * scale

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + drawn(width), f"{name}.bias": drawn(width)}

    def tower(prefix: str, width: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i in range(LAYERS):
            block = f"{prefix}transformer.resblocks.{i}"
            found |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
            for name, out, into in (("attn.out_proj", width, width), ("mlp.c_fc", 96, width), ("mlp.c_proj", width, 96)):
                found |= {f"{block}.{name}.weight": drawn(out, into), f"{block}.{name}.bias": drawn(out)}
            found |= {f"{block}.attn.in_proj_weight": drawn(3 * width, width), f"{block}.attn.in_proj_bias": drawn(3 * width)}
        return found

    return {
        **tower("visual.", VISION),
        **tower("", TEXT),
        **norm("visual.ln_pre", VISION),
        **norm("visual.ln_post", VISION),
        **norm("ln_final", TEXT),
        "visual.class_embedding": drawn(VISION),
        "visual.positional_embedding": drawn(GRID**2 + 1, VISION),
        "visual.conv1.weight": drawn(VISION, 3, PATCH, PATCH),
        "visual.proj": drawn(VISION, SHARED),
        "token_embedding.weight": drawn(len(clip_tokenizer()), TEXT, scale=0.5),
        "positional_embedding": drawn(LENGTH, TEXT),
        "text_projection": drawn(TEXT, SHARED),
        "logit_scale": torch.tensor(4.6),
    }


def blocks(state: dict[str, Tensor], prefix: str, states: Tensor, head: int, mask: Tensor | None = None) -> Tensor:
    """open_clip's transformer: pre-norm, GELU, attention whose query, key and value are one matrix."""
    n, length, width = states.shape
    for i in range(LAYERS):
        block = {name.removeprefix(f"{prefix}transformer.resblocks.{i}."): value for name, value in state.items()}
        normed = functional.layer_norm(states, (width,), block["ln_1.weight"], block["ln_1.bias"], 1e-5)
        joint = normed @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
        query, key, value = joint.reshape(n, length, 3, width // head, head).permute(2, 0, 3, 1, 4)
        weights = query @ key.transpose(-1, -2) / head**0.5 + (0 if mask is None else mask)
        mixed = (weights.softmax(-1) @ value).transpose(1, 2).reshape(n, length, width)
        states = states + mixed @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
        normed = functional.layer_norm(states, (width,), block["ln_2.weight"], block["ln_2.bias"], 1e-5)
        inner = functional.gelu(normed @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"])
        states = states + inner @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return states


def cosines(released_state: dict[str, Tensor], seen: Tensor, ids: list[list[int]]) -> Tensor:
    """HPSv2's score of what the model sees [n, 3, S, S] and n tokenized prompts, in float64."""
    state = {name: value.double() for name, value in released_state.items()}
    patches = functional.conv2d(seen, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(seen), 1, -1)
    states = torch.cat([first, patches], 1) + state["visual.positional_embedding"]
    states = functional.layer_norm(states, (VISION,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"], 1e-5)
    states = blocks(state, "visual.", states, 80)[:, 0]
    states = functional.layer_norm(states, (VISION,), state["visual.ln_post.weight"], state["visual.ln_post.bias"], 1e-5)
    looked = functional.normalize(states @ state["visual.proj"], dim=1)
    told = []
    for row in ids:  # filled up with zeros, as open_clip does, and read at the highest id
        tokens = torch.tensor([row + [0] * (LENGTH - len(row))])
        states = state["token_embedding.weight"][tokens] + state["positional_embedding"]
        ahead = torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)
        states = blocks(state, "", states, 64, ahead)
        states = functional.layer_norm(states, (TEXT,), state["ln_final.weight"], state["ln_final.bias"], 1e-5)
        told.append(functional.normalize(states[0, tokens.argmax()] @ state["text_projection"], dim=0))
    return (looked * torch.stack(told)).sum(1)


def framed(picture: Tensor, size: int) -> Tensor:
    """What HPSv2 makes of a file: its longer side resized, black beside, normalised; [3, size, size], float64."""
    values = torch.from_numpy(np.asarray(to_pil_image(picture)).copy()).permute(2, 0, 1).double() / 255
    longer = max(values.shape[1:])
    height, width = (round(side * size / longer) for side in values.shape[1:])
    small = functional.interpolate(values[None], (height, width), mode="bicubic", antialias=True)[0]
    canvas = torch.zeros(3, size, size, dtype=torch.float64)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[:, top : top + height, left : left + width] = small
    return (canvas - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    clip_tokenizer(LENGTH).save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hpsv2")
    torch.save({"epoch": 1, "name": "HPS", "state_dict": released()}, place / "HPS_v2.1_compressed.pt")
    save_file(released(), place / "hps.safetensors")
    return place


@pytest.mark.parametrize(("height", "width"), [(24, 24), (48, 48), (33, 48), (50, 20)])
def test_the_released_file_scores_as_the_released_program(folder: Path, words: Path, height: int, width: int) -> None:
    media = pictures(height, width)
    scores = check_reward(HpsV2Config(path=str(folder), tokenizer=str(words)), samples(media))["under test"]
    tokenizer = CLIPTokenizer.from_pretrained(words)
    seen = torch.stack([framed(picture, PATCH * GRID) for picture in media])
    expected = cosines(released(), seen, [tokenizer(prompt).input_ids for prompt in PROMPTS])
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=5e-6)
    assert expected.std() > 0.01


def test_safetensors_are_read_too(folder: Path, words: Path) -> None:
    config: Any = {"path": str(folder), "tokenizer": str(words)}
    expected = check_reward(HpsV2Config(**config), samples(pictures()))["under test"]
    assert check_reward(HpsV2Config(file="hps.safetensors", **config), samples(pictures()))["under test"].equal(expected)


def test_a_checkpoint_of_transformers_gives_its_cosine(tmp_path: Path) -> None:
    media = pictures(SIZE, SIZE)  # where both ways of resizing leave pictures as they are
    scores = check_reward(HpsV2Config(path=str(clip_folder(tmp_path, seed=3)), file=None), samples(media))["under test"]
    looked, told = embeddings(tmp_path, media, PROMPTS)
    assert scores.tolist() == pytest.approx((looked * told).sum(1).tolist(), abs=2e-6)


def test_all_of_a_long_picture_is_seen_with_black_beside() -> None:
    seen = (
        letterbox(torch.ones(1, 3, 20, 60), 30) * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    )
    rows = seen[0, 0].mean(1)
    assert rows[:10].abs().max() < 1e-6
    assert (rows[10:20] - 1).abs().max() < 1e-5
    assert rows[20:].abs().max() < 1e-6


def test_a_missing_weight_is_no_random_one(folder: Path, words: Path, tmp_path: Path) -> None:
    short = {name: value for name, value in released().items() if name != "visual.ln_pre.weight"}
    torch.save(short, tmp_path / "short.pt")
    reward = HpsV2Config(path=str(tmp_path), file="short.pt", tokenizer=str(words)).build("hps")
    with pytest.raises(
        UserError, match=r"short\.pt in .* lacks a weight .*CLIPModel.*, the first vision_model\.pre_layrnorm\.weight;"
    ):
        reward.prepare_reward(torch.device("cpu"))


@pytest.mark.parametrize("name", ["more.weight", "visual.transformer.resblocks.0.more.weight", "module.logit_scale"])
def test_a_weight_that_it_does_not_know_is_one_line(words: Path, tmp_path: Path, name: str) -> None:
    torch.save(released() | {name: torch.zeros(2)}, tmp_path / "more.pt")
    told = refusal(HpsV2Config(path=str(tmp_path), file="more.pt", tokenizer=str(words)))
    assert told.startswith(
        f"more.pt in {tmp_path} holds a weight that this reward does not know, the first {name}; get it again"
    )


def test_what_open_clip_has_besides_is_let_pass(folder: Path, words: Path, tmp_path: Path) -> None:
    torch.save(released() | {"attn_mask": torch.zeros(2, 2), "vocab_size": torch.tensor(9)}, tmp_path / "more.pt")
    more = HpsV2Config(path=str(tmp_path), file="more.pt", tokenizer=str(words))
    expected = check_reward(HpsV2Config(path=str(folder), tokenizer=str(words)), samples(pictures()))["under test"]
    assert check_reward(more, samples(pictures()))["under test"].equal(expected)


def test_weights_of_something_else_are_refused(words: Path, tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    reward = HpsV2Config(path=str(tmp_path), file="other.pt", tokenizer=str(words)).build("hps")
    with pytest.raises(UserError, match="has no weight positional_embedding, which a CLIP of open_clip has"):
        reward.prepare_reward(torch.device("cpu"))


@pytest.mark.weights
def test_released_weights_score_as_the_released_package() -> None:
    """What ``hpsv2.score`` of the package of the authors says of the same pictures; needs that package."""
    released_package = pytest.importorskip("hpsv2")
    media = pictures(256, 384)
    config = HpsV2Config.model_validate({"path": os.environ.get("FLOWFACTORY_HPSV2", "xswu/HPSv2")})
    scores = check_reward(config, samples(media), tolerance=1e-4)["under test"]
    for picture, prompt, score in zip(media, PROMPTS, scores, strict=True):
        assert float(score) == pytest.approx(float(released_package.score(to_pil_image(picture), prompt, "v2.1")[0]), abs=2e-3)
