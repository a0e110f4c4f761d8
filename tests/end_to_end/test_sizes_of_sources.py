"""Sources of prompts may be trained at sizes of their own: an iteration draws at one of them, and they take turns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from record_files import write_records

from flowfactory import testing
from flowfactory.canvas import Canvas
from flowfactory.config.canvases import drawn_from, largest_canvas, main_canvas
from flowfactory.config.loading import validate
from flowfactory.errors import UserError
from flowfactory.training.iteration import collect
from flowfactory.training.metrics import Timer
from flowfactory.training.prompts import prepare_prompts, prompts_of, remarks
from flowfactory.training.setup import prepare_run
from flowfactory.types import Prompt

WIDE, SQUARE = Canvas(16, 32), Canvas(16, 16)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    for name, words in (("photos", "red blue green"), ("signs", "cyan purple"), ("wide", "purple yellow")):
        (tmp_path / f"{name}.txt").write_text("".join(f"a {word} circle on gray\n" for word in words.split()))
    sources: dict[str, Any] = {name: {"file": str(tmp_path / f"{name}.txt")} for name in ("photos", "signs", "wide")}
    sources["photos"]["weight"], sources["wide"]["size"] = 2, [16, 32]
    found = testing.settings(tmp_path, "nft")
    found |= {
        "model": {"name": "tiny", "train": {"lora": {"rank": 2, "targets": ["attn.to_q", "to_out.0"]}}},
        "rewards": {"small": "jpeg-size"},
    }
    found |= {"prompts": {"train": sources}, "training": {"iterations": 4, "batch_size": 4}}
    found["sampling"] = {"groups": 2, "group_size": 2, "size": [16, 16], "steps": 2, "dynamics": "ode", "guidance": 1}
    return found


def test_canvases_take_turns_as_their_sources_weigh(raw: dict[str, Any]) -> None:
    config = validate(raw)
    train = [Prompt(f"{name} {i}", source=name) for name in ("photos", "signs", "wide") for i in range(5)]
    rounds = [prompts_of(config, train, iteration) for iteration in range(24)]
    canvases = [drawn_from(config, iteration).canvas for iteration in range(24)]
    assert Counter(canvases[4:8]) == {SQUARE: 3, WIDE: 1}, "2 + 1 to 1"
    for prompts, canvas in zip(rounds, canvases, strict=True):
        assert {prompt.source == "wide" for prompt in prompts} == {canvas == WIDE}
    drawn = Counter(prompt.source for prompts in rounds for prompt in prompts)
    assert drawn == {"photos": 24, "signs": 12, "wide": 12}
    assert (main_canvas(config), largest_canvas(config)) == (SQUARE, WIDE)


def test_of_one_size_nothing_changes(raw: dict[str, Any]) -> None:
    config = validate(raw)
    raw["prompts"]["train"]["wide"]["size"] = [16, 16]
    same = validate(raw)
    del raw["prompts"]["train"]["wide"]["size"]
    plain = validate(raw)
    for iteration in range(9):
        assert drawn_from(same, iteration) == drawn_from(plain, iteration)
        assert drawn_from(plain, iteration).turn == iteration
    assert drawn_from(config, 3) != drawn_from(plain, 3)


def test_an_iteration_draws_and_compares_at_its_own_size(raw: dict[str, Any]) -> None:
    run = prepare_run(validate(raw))
    run.assembly.hooks.run_started(run.info, run.policy)
    for iteration in range(4):
        canvas = drawn_from(run.config, iteration).canvas
        rollouts = collect(run, iteration, Timer(torch.device("cpu")))
        experience = rollouts.experience
        assert experience.plan.canvas == canvas
        height, width = experience.latents.shape[-2:]
        assert height * canvas.width == width * canvas.height
        assert ("drift/luma" in rollouts.figures) == (canvas == SQUARE)


def test_a_run_learns_at_every_size_and_is_resumed_to_the_bit(raw: dict[str, Any]) -> None:
    trained = testing.check_resumes_bit_for_bit(raw)
    wide = [drawn_from(validate(raw), iteration).canvas == WIDE for iteration in range(4)]
    assert [("velocity_rms/fixed" not in record) for record in trained.records if record["iteration"]] == wide


def test_records_are_encoded_at_the_size_of_their_source(raw: dict[str, Any], tmp_path: Path) -> None:
    file = write_records(tmp_path)
    raw["prompts"]["train"] = {"square": {"file": str(file)}, "wide": {"file": str(file), "size": [16, 32]}}
    run = prepare_run(validate(raw | {"algorithm": "sft", "rewards": {}}))
    shapes = {collect(run, iteration, Timer(torch.device("cpu"))).experience.latents.shape[-2:] for iteration in range(2)}
    assert len(shapes) == 2


def test_what_hardly_was_meant_is_warned_of(raw: dict[str, Any], tmp_path: Path) -> None:
    def told(**changes: Any) -> list[str]:
        config = validate(raw | changes)
        train, _ = prepare_prompts(config)
        return list(remarks(config, train, ()))

    none = "prompts.train: sizes take turns, and of 1 iteration none is at that of wide; set training.iterations higher, or "
    assert told() == []
    assert told(training={"iterations": 1}) == [f"{none}the other weights lower"]
    file = write_records(tmp_path)
    (tmp_path / "few.jsonl").write_text(file.read_text().splitlines()[0])
    raw["prompts"]["train"] = {"square": {"file": str(file)}, "wide": {"file": str(tmp_path / "few.jsonl"), "size": [16, 32]}}
    found = [line for line in told(algorithm="sft", rewards={}) if line.startswith("sampling.groups")]
    few = "sampling.groups 2: there is 1 prompt of 16 x 32, so that an iteration learns more than once; set it lower"
    assert found == [few]


def test_a_reward_that_wants_squares_is_told_of_the_source_that_is_none(raw: dict[str, Any]) -> None:
    raw["rewards"] = {"scene": "scene", "small": "jpeg-size"}
    for name in ("photos", "signs"):
        raw["prompts"]["train"][name]["rewards"] = ["scene", "small"]
    with pytest.raises(UserError, match=r"reward scene judges square pictures, and prompts.train.wide.size is \[16, 32\]"):
        validate(raw)
    raw["prompts"]["train"]["wide"]["rewards"] = ["small"]
    validate(raw)


def test_what_cannot_be_is_told_by_the_name_of_the_source(raw: dict[str, Any]) -> None:
    raw["prompts"]["train"]["wide"]["size"] = [16, 31]
    with pytest.raises(UserError, match=r"prompts\.train\.wide\.size \[16, 31\]: this model draws multiples of"):
        validate(raw)
    raw["prompts"]["train"]["wide"]["size"] = [16, 32]
    raw["training"]["regularise"] = {"sft": 0.1}
    with pytest.raises(UserError, match=r"training\.regularise: targets join iterations of whatever size"):
        validate(raw)
