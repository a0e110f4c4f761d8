"""How often ranks that hold the weights together have to ask one another which forwards they need."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_qwen_image
import tiny_wan
import torch

from flowfactory.canvas import Canvas
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import ODE
from flowfactory.models.family_model import FamilyModel
from flowfactory.testing.two_parameter import settings
from flowfactory.types import Conditions, NoiseKey, Prompt, Runtime, SamplingPlan, Step

STEPS = 4
PROMPTS = ("a cat", "a photo of a red circle", "a dog in the rain, from far away")


class Asked:
    """A model, the conditions of three prompts and how often it asked what other ranks need."""

    def __init__(self, config: Any, canvas: Canvas, guidance: float) -> None:
        self.kinds: list[Sequence[Hashable]] = []
        self.model: FamilyModel = config.model.build("model")
        self.model.load(Runtime(torch.device("cpu"), torch.float32, self._agree))
        entries = [tuple(self.model.encode([Prompt(text) for text in texts], canvas)) for texts in (PROMPTS, [""] * 3)]
        self.conditions = Conditions(entries[0], Conditions(entries[1]))
        keys = tuple(NoiseKey(i, 0) for i in range(3))
        self.plan = SamplingPlan(STEPS, canvas, guidance, ODE(), 0, 0, keys, recorded=frozenset({0, STEPS - 1}))

    def _agree(self, kinds: Sequence[Hashable]) -> Sequence[Hashable]:
        self.kinds.append(kinds)
        return kinds

    def draw(self, shapes_are_told: bool) -> tuple[Step, ...]:
        self.kinds.clear()
        told = self.conditions.own_shapes() if shapes_are_told else frozenset()
        with torch.no_grad():
            return self.model.sample(replace(self.conditions, shapes=told), self.plan).steps


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))

    def build(name: str, checkpoint: Path, canvas: Canvas) -> Asked:
        raw = settings(tmp_path, {"name": "nft"})
        sampling = {
            "size": [canvas.height, canvas.width],
            "frames": canvas.frames,
            "guidance": 3.0,
            "groups": 2,
            "steps": STEPS,
        }
        model = {"name": name, "path": str(checkpoint), "train": {"lora": {}}}
        return Asked(validate(raw | {"model": model, "sampling": sampling}), canvas, 3.0)

    return build


def test_conditions_that_may_share_a_forward_wherever_they_are_need_no_agreement(made: Any, tmp_path: Path) -> None:
    asked = made("qwen-image", tiny_qwen_image.qwen_image(tmp_path / "model"), Canvas(16, 16, None))
    assert len(asked.conditions.own_shapes()) > 1, "lengths differ, and are padded"
    steps = asked.draw(shapes_are_told=True)
    assert asked.kinds == []
    asked.model.log_prob(steps[0])
    assert asked.kinds == []


def test_where_others_conditions_are_not_known_a_drawing_asks_once_and_a_forward_each_time(made: Any, tmp_path: Path) -> None:
    asked = made("qwen-image", tiny_qwen_image.qwen_image(tmp_path / "model"), Canvas(16, 16, None))
    steps = asked.draw(shapes_are_told=False)
    assert len(asked.kinds) == 1
    for step in steps:
        asked.model.log_prob(step)
    assert len(asked.kinds) == 1 + len(steps)


def test_a_negative_branch_without_a_gradient_is_agreed_on_apart(made: Any, tmp_path: Path) -> None:
    asked = made("qwen-image", tiny_qwen_image.qwen_image(tmp_path / "model"), Canvas(16, 16, None))
    exact = asked.draw(shapes_are_told=True)
    asked.conditions = replace(asked.conditions, negative=replace(asked.conditions.negative, detached=True))
    steps = asked.draw(shapes_are_told=False)
    assert len(asked.kinds) == 2, "one for each of the two forwards"
    for ours, theirs in zip(steps, exact, strict=True):
        torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-4)
    asked.model.log_prob(steps[0])
    assert len(asked.kinds) == 4


def test_conditions_that_cannot_share_a_forward_are_agreed_on_though_a_ranks_own_are_alike(made: Any, tmp_path: Path) -> None:
    asked = made("qwen-image", tiny_qwen_image.qwen_image(tmp_path / "model"), Canvas(16, 16, None))
    others = asked.conditions.own_shapes() | {(("another", (3, 3)),)}
    with torch.no_grad():
        asked.model.sample(replace(asked.conditions, shapes=others), asked.plan)
    assert len(asked.kinds) == 1


def test_experts_are_agreed_on_where_ranks_are_at_different_sigmas_alone(made: Any, tmp_path: Path) -> None:
    asked = made("wan-t2v", tiny_wan.text_to_video(tmp_path / "model", "a14b"), Canvas(16, 16, 1))
    steps = asked.draw(shapes_are_told=True)
    assert asked.kinds == [], "all ranks draw at one sigma"
    for step in steps:
        asked.model.log_prob(step)
    assert [list(kinds) for kinds in asked.kinds] == [["transformer"], ["transformer_2"]]


def test_rows_of_conditions_know_what_there_is_beside_them(made: Any, tmp_path: Path) -> None:
    entries = tuple({"x": torch.zeros(size)} for size in (2, 3))
    known = Conditions(entries, Conditions(({"x": torch.zeros(4)},) * 2))
    told = replace(known, shapes=known.own_shapes())
    assert told.shapes == {(("x", (size,)),) for size in (2, 3, 4)}
    assert told.rows([1]).shapes == told.shapes
    assert told.rows([1]).own_shapes() == {(("x", (size,)),) for size in (3, 4)}
