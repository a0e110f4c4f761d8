"""Weights that are not finite, and families with one mistake each, seen on Stable Diffusion 3: none draws in silence."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from families import train_two_iterations
from safetensors.torch import load_file, save_file

from flowfactory import Canvas, Prompt, RunError, UserError, models
from flowfactory.models import Entry, Family, Parts
from flowfactory.testing import check_model
from flowfactory_sd3.sd3 import SD3, SD3Config

WEIGHTS = {
    "vae": ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
    "transformer": ("transformer/diffusion_pytorch_model.safetensors", "proj_out.bias"),
    "text": ("text_encoder/model.safetensors", "text_model.final_layer_norm.bias"),
}
LATENTS = (
    r"latents that are not finite for the prompt 'a photo of a red circle' and 3 more of 4 samples, "
    r"from step 1 of 3 on \(sigma 1 to 0\.\d+\)"
)


@pytest.fixture
def broken(checkpoint: Any, tmp_path: Path) -> Callable[[str, float], Path]:
    """A copy of the checkpoint in which one number of a part is another."""

    def build(part: str, value: float) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(checkpoint(), folder)
        file, name = WEIGHTS[part]
        weights = load_file(folder / file)
        weights[name][0] = value
        save_file(weights, folder / file, metadata={"format": "pt"})
        return folder

    return build


def train(path: Path, tmp_path: Path, **options: Any) -> None:
    model = {"name": "sd3", "path": str(path), "max_sequence_length": 16, "train": "full", **options}
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na photo of a red circle\n")
    train_two_iterations(model, {"name": "reinforce"}, prompts, tmp_path, sampling={"size": [32, 32]})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            "vae",
            "media that are not finite for the prompt 'a photo of a red circle' and 3 more of 4 samples, of latents that are; "
            "look at its",
        ),
        ("transformer", LATENTS),
        ("text", "encode made '(embeds|pooled)' that is not finite, for the prompt 'a cat'; look at the weights and the dtype"),
    ],
)
def test_one_weight_that_is_not_finite_ends_the_run_before_anything_is_scored(
    broken: Callable[[str, float], Path], tmp_path: Path, part: str, value: float, sentence: str
) -> None:
    with pytest.raises(RunError, match=sentence):
        train(broken(part, value), tmp_path)


def read_nothing(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    yield from SD3.encode(parts, [Prompt("a cat") for _ in prompts], canvas)


def quarter(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    channels, height, width = SD3.shape(parts, canvas)
    return channels, height // 2, width // 2


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "decodes to [-1, 1]": (
        {"decode": lambda parts, latents: 2 * SD3.decode(parts, latents) - 1},
        r"the model's media lie outside \[0, 1\] by 0\.\d+ of their contrast, and 0\.15 is the most",
    ),
    "decodes to 0..255": (
        {"decode": lambda parts, latents: 255 * SD3.decode(parts, latents)},
        r"the model's media lie outside \[0, 1\] by",
    ),
    "has no zero at the end": (
        {"sigmas": lambda parts, steps, canvas: SD3.sigmas(parts, steps, canvas)[:-1]},
        r"its sigmas have shape \[\d\] for \d steps; return \[\d\], with the 0 at the end",
    ),
    "ends above zero": (
        {"sigmas": lambda parts, steps, canvas: models.scheduler_sigmas(parts, steps + 1)[:-1]},
        "its sigmas end at 0.008929; they must end at 0, clean latents",
    ),
    "begins below one": (
        {"sigmas": lambda parts, steps, canvas: models.scheduler_sigmas(parts, steps + 1)[1:]},
        r"its sigmas begin at 0\.\d+; they must begin at 1, noise",
    ),
    "draws half the size": ({"shape": quarter}, "it drew 16 x 16 pixels on a canvas of 32 x 32 pixels; have the shape of its"),
    "names no block": (
        {"blocks": ("JointTransformerBlock", "SD3SingleBlock")},
        "its blocks name 'SD3SingleBlock', which is no class of its repeated blocks; those of SD3Transformer2DModel are JointT",
    ),
    "reads no prompt": ({"encode": read_nothing}, "preflight: the conditions of .* are the same, so that no prompt is seen"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_family_with_a_mistake_breaks_its_contract(checkpoint: Any, mistake: str) -> None:
    changed, sentence = MISTAKES[mistake]

    class WrongConfig(SD3Config):
        family: ClassVar[Family] = replace(SD3, **changed)

    options = {"path": str(checkpoint()), "max_sequence_length": 16, "train": "full"}
    with pytest.raises(AssertionError, match=sentence):
        check_model(WrongConfig.model_validate(options), size=(32, 32))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_family_with_a_mistake_does_not_train(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    changed, sentence = MISTAKES[mistake]
    monkeypatch.setattr(SD3Config, "family", replace(SD3, **changed))
    with pytest.raises((RunError, UserError), match=sentence):
        train(checkpoint(), tmp_path)


def test_a_family_hears_which_prompt_is_the_negative_one(checkpoint: Any, tmp_path: Path) -> None:
    heard: dict[str, bool] = {}

    def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
        heard.update({prompt.text: prompt.is_negative for prompt in prompts})
        yield from SD3.encode(parts, prompts, canvas)

    class ListeningConfig(SD3Config):
        family: ClassVar[Family] = replace(SD3, encode=encode)

    options = {"path": str(checkpoint()), "max_sequence_length": 16, "train": "full"}
    check_model(ListeningConfig.model_validate(options), ["a cat", "green square, large"], (32, 32), guidance=4.0)
    assert heard == {"a cat": False, "green square, large": False, "": True}


def test_torch_is_what_makes_a_pixel_of_an_infinity() -> None:
    """The reason to look before media are clamped."""
    assert torch.tensor([math.inf, -math.inf]).clamp(0, 1).tolist() == [1.0, 0.0]
