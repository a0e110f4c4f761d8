from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reward_cases import PROMPTS, find_alive, normalize_image, pictures, randomize_weights, refusal, samples, to_pil_image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from flowfactory import UserError
from flowfactory.testing import check_reward
from flowfactory.testing.tiny_checkpoints import QWEN_SPECIALS, qwen_tokenizer
from flowfactory_rewards.hpsv3 import TEMPLATE, HpsV3Config, format_question

HEADS, KEY_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
SECTIONS = [1, 1, 2]
RELEASED = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
"""SHA-256 of INSTRUCTION and prompt_with_special_token in hpsv3 1.0.0."""


def words() -> Any:
    """A tokenizer of Qwen's that knows the words of the question."""
    return qwen_tokenizer(re.split(r"<\|\w+\|>|{text_prompt}", format_question("{text_prompt}")))


def base(folder: Path) -> tuple[Any, Any]:
    """A tiny Qwen2-VL's config, tokenizer and picture processor in ``folder``; the config and the tokenizer."""
    tokenizer = words()
    ids = {special: tokenizer.convert_tokens_to_ids(special) for special in QWEN_SPECIALS}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 7,  # more than there are tokens, as in the model that was tuned
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": SECTIONS},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    flat = {**config.text_config.to_dict(), **config.to_dict(), "rope_theta": 1e4}  # as the released config is
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": SECTIONS}
    for name in ("text_config", "rope_parameters", "layer_types"):
        flat.pop(name)
    (folder / "config.json").write_text(json.dumps(flat))
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=64 * 28 * 28).save_pretrained(folder)
    return config, tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, and weights under the names that HPSv3.safetensors has."""
    place = tmp_path_factory.mktemp("hpsv3")
    config, tokenizer = base(place)
    config.text_config.vocab_size = len(tokenizer) + 1
    model = randomize_weights(Qwen2VLModel(config), scale=0.2)
    state = {}
    for name, weight in model.state_dict().items():
        text = name.removeprefix("language_model.")
        state[f"model.{text}" if text != name else name] = weight.clone()
    source = torch.Generator().manual_seed(3)
    state["lm_head.weight"] = torch.zeros(len(tokenizer) + 1, WIDTH)
    for number, into, out in ((0, WIDTH, 24), (3, 24, 12), (5, 12, 2)):
        state[f"rm_head.{number}.weight"] = torch.randn(out, into, generator=source) * 0.4
        state[f"rm_head.{number}.bias"] = torch.randn(out, generator=source) * 0.4
    save_file(state, place / "HPSv3.safetensors")
    return place


def options(folder: Path, **others: Any) -> HpsV3Config:
    return HpsV3Config(path=str(folder), base=str(folder), dtype="float32", **others)


def sides(height: int, width: int) -> tuple[int, int]:
    """The released smart_resize for 256 tokens of 28 x 28 pixels, no more and no fewer."""
    area = 256 * 28 * 28
    high, wide = (max(28, round(side / 28) * 28) for side in (height, width))
    beta = math.sqrt(height * width / area)
    if high * wide > area:
        return math.floor(height / beta / 28) * 28, math.floor(width / beta / 28) * 28
    if high * wide < area:
        return math.ceil(height / beta / 28) * 28, math.ceil(width / beta / 28) * 28
    return high, wide


def patches(picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Of a picture: [patches, 3 * 2 * 14 * 14], the four of a token after one another, each twice in time; and its grid."""
    height, width = sides(*picture.shape[1:])
    values = normalize_image(to_pil_image(picture).resize((width, height), Image.Resampling.BICUBIC))
    rows = []
    for top in range(0, height, 28):
        for left in range(0, width, 28):
            for down in (0, 14):
                for right in (0, 14):
                    patch = values[:, top + down : top + down + 14, left + right : left + right + 14]
                    rows.append(torch.stack([patch, patch], 1).flatten())
    return torch.stack(rows), (height // 14, width // 14)


def mean_score(folder: Path, picture: Tensor, prompt: str) -> float:
    """HPSv3 on its released names, a sample by itself, in float64; the vision tower is transformers' own."""
    from safetensors.torch import load_file

    state = {name: value.double() for name, value in load_file(folder / "HPSv3.safetensors").items()}
    config, tokenizer = Qwen2VLConfig.from_pretrained(folder), words()
    model = Qwen2VLModel(config).double().eval()
    model.visual.load_state_dict({n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")})
    seen, grid = patches(picture)
    with torch.no_grad():
        looked = model.visual(seen, grid_thw=torch.tensor([[1, *grid]])).pooler_output
    before, after = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        "<|vision_end|>" + TEMPLATE.format(text_prompt=prompt) + "<|im_end|>\n<|im_start|>assistant\n",
    )
    *said, rest = after.split("<|Reward|>")
    reward = len(tokenizer)
    front, end = tokenizer(before).input_ids, tokenizer(rest).input_ids
    middle = [token for text in said for token in (*tokenizer(text).input_ids, reward)]
    embed = state["model.embed_tokens.weight"]
    states = torch.cat([embed[front], looked, embed[[*middle, *end]]])
    place = len(front) + len(looked) + len(middle) - 1

    head = WIDTH // HEADS
    angles = torch.arange(len(states)).double()[:, None] / 1e4 ** (torch.arange(0, head, 2).double() / head)
    cosine, sine = (torch.cat([turn(angles)] * 2, 1) for turn in (torch.cos, torch.sin))

    def turned(vectors: Tensor) -> Tensor:
        left, right = vectors.chunk(2, -1)
        return vectors * cosine + torch.cat([-right, left], -1) * sine

    def norm(states: Tensor, name: str) -> Tensor:
        return states * (states.square().mean(-1, keepdim=True) + config.text_config.rms_norm_eps).rsqrt() * state[name]

    def linear(states: Tensor, name: str) -> Tensor:
        return functional.linear(states, state[f"{name}.weight"], state.get(f"{name}.bias"))

    ahead = torch.full((len(states), len(states)), float("-inf"), dtype=torch.float64).triu(1)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        normed = norm(states, f"{layer}.input_layernorm.weight")
        query, key, value = (
            linear(normed, f"{layer}.self_attn.{kind}_proj").unflatten(1, (-1, head)).transpose(0, 1) for kind in "qkv"
        )
        key, value = (part.repeat_interleave(HEADS // KEY_HEADS, 0) for part in (turned(key), value))
        mixed = ((turned(query) @ key.transpose(1, 2) / math.sqrt(head) + ahead).softmax(-1) @ value).transpose(0, 1)
        states = states + linear(mixed.flatten(1), f"{layer}.self_attn.o_proj")
        normed = norm(states, f"{layer}.post_attention_layernorm.weight")
        gate, up = (linear(normed, f"{layer}.mlp.{kind}_proj") for kind in ("gate", "up"))
        states = states + linear(functional.silu(gate) * up, f"{layer}.mlp.down_proj")
    last = norm(states, "model.norm.weight")[place]
    return float(linear(linear(linear(last, "rm_head.0").relu(), "rm_head.3").relu(), "rm_head.5")[0])


def test_the_released_file_scores_as_the_released_program(folder: Path) -> None:
    for media in (pictures(64, 64, 2), pictures(48, 120, 1), pictures(900, 500, 1)):
        prompts = PROMPTS[: len(media)]
        scores = check_reward(options(folder), samples(media, prompts), tolerance=2e-5)["under test"]
        expected = [mean_score(folder, picture, prompt) for picture, prompt in zip(media, prompts, strict=True)]
        assert scores.tolist() == pytest.approx(expected, abs=5e-5)
        assert len(media) == 1 or np.std(expected) > 0.01


def test_it_computes_in_half_precision_unless_told_otherwise(folder: Path) -> None:
    media = samples(pictures(64, 64, 1), PROMPTS[:1])
    expected = check_reward(options(folder), media)["under test"]
    half = check_reward(HpsV3Config(path=str(folder), base=str(folder)), media)["under test"]
    assert half.item() == pytest.approx(expected.item(), abs=0.2)
    assert half.item() != expected.item()


def test_the_question_is_the_released_one_to_the_letter() -> None:
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest() == RELEASED
    assert "Textual prompt - a {red} cat\n" in format_question("a {red} cat")


def test_the_chat_template_of_the_model_that_was_tuned_says_the_same() -> None:
    """The part of Qwen2-VL's template for one message with a picture and a text."""
    template = (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = TEMPLATE.format(text_prompt="cat")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    tokenizer = words()
    said = tokenizer.apply_chat_template([message], chat_template=template, tokenize=False, add_generation_prompt=True)
    assert said == format_question("cat")


def test_a_prompt_that_says_the_reward_token_is_scored_at_the_last(folder: Path) -> None:
    media, prompts = pictures(64, 64, 2), ("cat", "cat <|Reward|> cat")
    scores = check_reward(options(folder), samples(media, prompts), tolerance=2e-5)["under test"]
    expected = [mean_score(folder, picture, prompt) for picture, prompt in zip(media, prompts, strict=True)]
    assert scores.tolist() == pytest.approx(expected, abs=5e-5)


def test_two_labels_hold_one_model(folder: Path) -> None:
    before = len(find_alive(Qwen2VLModel))
    rewards = [options(folder, frames=frames).build(str(frames)) for frames in (1, 2)]
    for reward in rewards:
        reward.prepare_reward(torch.device("cpu"))
    assert len(find_alive(Qwen2VLModel)) == before + 1


def test_another_tokenizer_than_the_tuned_models_is_refused(folder: Path, tmp_path: Path) -> None:
    base(tmp_path)
    more = words()
    more.add_tokens(["<|more|>"])
    more.save_pretrained(tmp_path)
    reward = HpsV3Config(path=str(folder), base=str(tmp_path), dtype="float32").build("people")
    with pytest.raises(UserError, match=r"embeds \d+ tokens and the tokenizer in .* has \d+"):
        reward.prepare_reward(torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"more.weight": torch.zeros(2)}, r"holds a weight that this reward does not know, the first more\.weight; get"),
        ({"model.layers.0.more": torch.zeros(2)}, r"holds a weight .*, the first language_model\.layers\.0\.more; get"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"lacks a weight .*, the first language_model\.layers\.1\.mlp\.up_proj"),
        (
            {"model.norm.weight": torch.zeros(3)},
            r"weight of another shape .*: language_model\.norm\.weight is \[3\], not \[32\]",
        ),
        ({"rm_head.3.bias": None}, r"has the layers \[0, 3, 5\] in its predictor; .* the first that differs is 3\.bias"),
        ({"rm_head.3.weight": torch.zeros(12, 5)}, r"layer 3 is \[12, 5\] with a bias \[12\], and 24 features come to it; get"),
    ],
)
def test_a_file_with_other_weights_is_one_line(
    folder: Path, tmp_path: Path, change: dict[str, Tensor | None], told: str
) -> None:
    state = {**load_file(folder / "HPSv3.safetensors"), **change}
    save_file({name: weight for name, weight in state.items() if weight is not None}, tmp_path / "HPSv3.safetensors")
    config = HpsV3Config(path=str(tmp_path), base=str(folder), dtype="float32")
    assert re.search(rf"^HPSv3\.safetensors in .*{told}", refusal(config))


def test_a_base_without_its_tokenizer_is_one_line(folder: Path, tmp_path: Path) -> None:
    base(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    told = refusal(HpsV3Config(path=str(folder), base=str(tmp_path), dtype="float32"))
    assert re.search(r"^the tokenizer in .* has no [\w.]+ in ", told)


def test_a_base_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    base(tmp_path)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    HpsV3Config(path=str(folder), base=str(tmp_path), dtype="float32").build("people").prepare_reward(torch.device("cpu"))


def test_weights_of_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "HPSv3.safetensors")
    reward = HpsV3Config(path=str(tmp_path), base=str(folder)).build("people")
    with pytest.raises(UserError, match=r"has no weight model\.embed_tokens\.weight: it is not what HPSv3 was released as"):
        reward.prepare_reward(torch.device("cpu"))


@pytest.mark.weights
def test_released_weights_score_as_the_released_package() -> None:
    """What the package of the authors says of assets/example1.png and example2.png, in FLOWFACTORY_HPSV3_EXAMPLES."""
    hpsv3 = pytest.importorskip("hpsv3")
    files = [Path(os.environ["FLOWFACTORY_HPSV3_EXAMPLES"]) / f"example{number}.png" for number in (1, 2)]
    prompt = "cute chibi anime cartoon fox, smiling wagging tail with a small cartoon heart above sticker"
    expected = [float(row[0]) for row in hpsv3.HPSv3RewardInferencer().reward([str(file) for file in files], [prompt] * 2)]
    for file, score in zip(files, expected, strict=True):
        with Image.open(file) as opened:
            picture = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
        ours = check_reward(HpsV3Config.model_validate({"device": "cuda"}), samples(picture, (prompt,)), tolerance=0.1)
        assert float(ours["under test"]) == pytest.approx(score, abs=0.1)
