"""The gradient of guidance through both of its velocities, and through the one with the prompt alone, for every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import nudge, relative_difference
from family_cases import CASES, prompts
from torch import Tensor

from flowfactory import Prompt, Step
from flowfactory.config.component_slots import config_class
from flowfactory.discovery.discover import discover
from flowfactory.testing import ODE, Bench, bench

WAN = ("wan-t2v", "wan-i2v", "wan-flf2v", "wan-v2v")
HUNYUAN = ("hunyuan-video-1.5", "hunyuan-video-1.5-i2v")
THREE = ("chroma", "flux2-klein", "qwen-image-2.1", "sana", *HUNYUAN, *WAN)
GUIDED = (*THREE, "krea2", "lumina2", "qwen-image", "qwen-image-edit", "z-image")

FACTORS = {"krea2": 4.0, "z-image": 4.0} | dict.fromkeys(THREE, 3.0)
"""How far the guided velocity moves with the prompt's, where guidance is linear, at the guidance of :func:`place`."""


@pytest.fixture
def made(checkpoints: Callable[[str], Path], cache: Path, tmp_path: Path) -> Callable[[str], Bench]:
    """A tiny checkpoint with moved LoRA, and prompts of two lengths."""

    def make(key: str) -> Bench:
        case = CASES[key]
        kind = config_class(discover([]).find("model", case.name))
        train = {"lora": {"rank": 3, "alpha": 6}}
        config = kind.model_validate({"path": str(checkpoints(key)), "train": train, **case.options})
        lines = [json.loads(line) for line in prompts(case, tmp_path).read_text().splitlines()]
        told = [
            Prompt(
                line["prompt"],
                images=tuple(Path(image) for image in line.get("images", ())),
                video=Path(line["video"]) if "video" in line else None,
            )
            for line in lines
        ]
        found = bench(config, cache, told, case.size, 2, 3.0, 1, dynamics=ODE(), negative="dull")
        nudge(found)
        return found

    return make


def place(made: Bench, detached: bool) -> Step:
    """Noise at two sigmas, where the velocity is asked for."""
    drawn = made.draw(2).latents
    latents = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))
    assert made.conditions.negative is not None
    conditions = replace(made.conditions, negative=replace(made.conditions.negative, detached=detached))
    return Step(latents, torch.tensor([0.9, 0.6]), conditions, 3.0, ODE())


def learned(made: Bench, step: Step) -> tuple[Tensor, list[Tensor], int]:
    """The velocity, the gradients of its sum in some direction, and the bytes of activations that it saved for them."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.requires_grad and not tensor.is_leaf:  # no weight, and no table of positions
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        velocity = made.policy.evaluate(step).velocity
    parameters = list(made.policy.parameters.values())
    direction = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((velocity * direction).sum(), parameters, allow_unused=True)
    gradients = [torch.zeros_like(own) if one is None else one for one, own in zip(found, parameters, strict=True)]
    return velocity.detach(), gradients, sum(saved.values())


@pytest.mark.parametrize("key", GUIDED)
def test_the_gradient_of_the_prompts_velocity_alone_takes_half_of_the_memory(made: Callable[[str], Bench], key: str) -> None:
    one = made(key)
    exact, through_both, saved = learned(one, place(one, detached=False))
    velocity, gradients, less = learned(one, place(one, detached=True))
    assert relative_difference(velocity, exact) < 1e-5  # of forwards of other batch sizes
    assert 0.45 < less / saved < 0.55, f"{less} of {saved} bytes"
    apart = max(float((one - other).abs().max()) for one, other in zip(gradients, through_both, strict=True))
    assert apart > 1e-4, "the gradient is the same"
    if key in FACTORS:
        step = place(one, detached=True)
        _, alone, _ = learned(one, replace(step, conditions=replace(step.conditions, negative=None), guidance=1.0))
        for found, expected in zip(gradients, alone, strict=True):
            torch.testing.assert_close(found, FACTORS[key] * expected, rtol=1e-3, atol=1e-4)
