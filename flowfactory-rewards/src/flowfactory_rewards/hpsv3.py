"""HPSv3 (arXiv:2508.03789): a Qwen2-VL that was asked about a picture, tuned on which pictures people prefer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowfactory import CheckpointPath, UserError
from flowfactory.models import load_tokenizer
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig, Scorer, to_pil
from flowfactory_rewards.weights import (
    build_linear_layers,
    from_pretrained,
    from_state_dict,
    load_config,
    read_tensors,
    refuse_other_names,
    strip_prefix,
)

REWARD, IMAGE = "<|Reward|>", "<|image_pad|>"
PIXELS = 256 * 28 * 28
"""What every picture is resized to have, roughly: sides are whole tokens of 28 pixels."""


class HpsV3Config(RewardModelConfig):
    """How people would like the picture for the prompt (arXiv:2508.03789), about -5 to 15; higher is better.

    It is the mean of the score, which is predicted with an uncertainty; models in the authors' benchmark have -0.2 to 10.6.
    """

    known_as = ("hps", "hps-v3")

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "MizzenAI/HPSv3": "see its page; the authors' code is MIT",
        "Qwen/Qwen2-VL-7B-Instruct": "Apache-2.0",
    }

    path: CheckpointPath = Field("MizzenAI/HPSv3", description="a folder or a hub id with the released file")
    file: str = Field("HPSv3.safetensors", description="the released file there")
    base: CheckpointPath = Field(
        "Qwen/Qwen2-VL-7B-Instruct",
        description="a folder or a hub id of the model that was tuned: its config, tokenizer and picture processor",
    )
    dtype: Literal["float32", "bf16", "fp16"] = Field("bf16", description="what the model computes in; bf16 as released")
    batch_size: int = Field(4, ge=1, le=100_000, description="pictures in one forward; does not change the scores")

    def lacking(self) -> str | None:
        return missing_module("hpsv3", "transformers")

    @property
    def files(self) -> tuple[tuple[str, str | None], ...]:
        return ((self.path, self.file),)

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, _load_scorer, self.path, self.file, self.base)


def _load_scorer(path: str, file: str, base: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

    source = f"{file} in {path}"
    # the small files before the weights, which take longer
    words = load_tokenizer(Qwen2Tokenizer, base, f"the tokenizer in {base}")
    words.add_tokens([REWARD], special_tokens=True)
    words.padding_side = "right"
    # one processor with the tokenizer would need torchvision, for videos
    processor = from_pretrained(Qwen2VLImageProcessorPil, base, size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
    config = load_config(Qwen2VLConfig, base)
    state, head_state = convert_released(read_tensors(path, file, "model"), source)
    config.text_config.vocab_size = state["language_model.embed_tokens.weight"].shape[0]
    if len(words) != config.text_config.vocab_size:
        raise UserError(
            f"{source} embeds {config.text_config.vocab_size} tokens and the tokenizer in {base} has {len(words)}: "
            "it is not that of the model that was tuned"
        )
    model = from_state_dict(Qwen2VLModel, config, state, source, device, dtype)
    first, second, third = build_linear_layers(head_state, (0, 3, 5), config.text_config.hidden_size, source)
    # to the mean of the score and the logarithm of its standard deviation
    rating = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).to(device)
    reward, area = words.convert_tokens_to_ids(REWARD), processor.merge_size**2

    def score(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = processor(to_pil(pictures), return_tensors="pt")
        counts = (seen["image_grid_thw"].prod(1) // area).tolist()
        asked = [
            format_question(prompt).replace(IMAGE, IMAGE * count, 1) for prompt, count in zip(prompts, counts, strict=True)
        ]
        told = words(asked, padding=True, return_tensors="pt").to(device)
        rows, length = told.input_ids.shape
        states = model(
            input_ids=told.input_ids,
            attention_mask=told.attention_mask,
            # the released model counts tokens along each of the three axes, a picture's too: it was trained without M-RoPE
            position_ids=torch.arange(length, device=device).expand(3, rows, length),
            pixel_values=seen["pixel_values"].to(device, dtype),
            image_grid_thw=seen["image_grid_thw"].to(device),
            use_cache=False,
        ).last_hidden_state
        last = length - 1 - (told.input_ids == reward).flip(1).int().argmax(1)  # a prompt may say the token too
        found: Tensor = rating(states[torch.arange(rows, device=device), last].float())[:, 0]
        return found

    return score


def format_question(prompt: str) -> str:
    """What the model is asked about a picture drawn for ``prompt``, with one token in the picture's place."""
    asked = TEMPLATE.replace("{text_prompt}", prompt)
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{IMAGE}<|vision_end|>{asked}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


TEMPLATE = files("flowfactory_rewards").joinpath("hpsv3.txt").read_bytes().decode()
"""The released instruction to the letter, blanks at the ends of lines included (MizzenAI/HPSv3, MIT)."""


UNREAD = (r"lm_head\.weight",)
"""What the released file has besides: it is tuned from a model that writes."""


def convert_released(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a Qwen2VLModel and of the head, of the names that HPSv3 was released with.

    UserError, which names ``source``: these are not such weights.
    """
    if lacking := [name for name in ("model.embed_tokens.weight", "rm_head.0.weight") if name not in state]:
        raise UserError(f"{source} has no weight {lacking[0]}: it is not what HPSv3 was released as")
    refuse_other_names(state, [r"(model|visual|rm_head)\..*"], UNREAD, source)
    texts = {f"language_model.{name}": weight for name, weight in strip_prefix(state, "model.").items()}
    pictures = {f"visual.{name}": weight for name, weight in strip_prefix(state, "visual.").items()}
    return texts | pictures, strip_prefix(state, "rm_head.")
