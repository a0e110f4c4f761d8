"""Training prompts of several named files: each has its share of the groups, its rewards and figures of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.config.schema import RunConfig
from flowfactory.data.batches import prompts_of_iteration
from flowfactory.errors import UserError
from flowfactory.rewards.statistics import source_metrics
from flowfactory.runs.check.checkup import check_run
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.resume import config_changes, fixed_config
from flowfactory.runs.train import train
from flowfactory.training.prompts import prepare_prompts
from flowfactory.types import Prompt

Load = Callable[..., RunConfig]
Figures = Callable[[RunDirectory], list[dict[str, Any]]]
NAMES = ("photos", "signs", "long-ones_3")


def prompts_of(counts: list[int]) -> list[Prompt]:
    sources = [name for name, count in zip(NAMES, counts, strict=False) for _ in range(count)]
    return [Prompt(str(index), index, source=source) for index, source in enumerate(sources)]


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=3), st.integers(1, 9), st.integers(0, 3))
def test_every_source_has_its_share_and_passes_of_its_own(sizes: list[tuple[int, int]], groups: int, seed: int) -> None:
    prompts = prompts_of([count for count, _ in sizes])
    weights = {name: weight for name, (_, weight) in zip(NAMES, sizes, strict=False)}
    total = sum(weights.values())
    rounds = 2 * max(count for count, _ in sizes)
    drawn = [
        prompt
        for iteration in range(rounds * total // groups + 1)
        for prompt in prompts_of_iteration(prompts, iteration, groups, seed, weights)
    ]
    for start in range(0, rounds * total, total):
        assert Counter(prompt.source for prompt in drawn[start : start + total]) == weights
    for name, (count, _) in zip(NAMES, sizes, strict=False):
        own = [prompt.index for prompt in drawn if prompt.source == name]
        everything = sorted(prompt.index for prompt in prompts if prompt.source == name)
        for epoch in range(len(own) // count):
            assert sorted(own[epoch * count : (epoch + 1) * count]) == everything


def test_groups_of_one_source_are_spread_over_the_iterations() -> None:
    drawn = prompts_of_iteration(prompts_of([5, 5]), 0, 8, 0, {"photos": 3, "signs": 1})
    # by hand: whoever lacks most of 3/4 and 1/4 of the groups so far, the first of equals
    assert [prompt.source for prompt in drawn] == ["photos", "photos", "signs", "photos"] * 2


def test_passes_and_sources_have_orders_of_their_own() -> None:
    prompts = prompts_of([20, 20])
    drawn = prompts_of_iteration(prompts, 0, 80, 0, {"photos": 1, "signs": 1})
    orders = [tuple(prompt.index % 20 for prompt in drawn if prompt.source == name) for name in NAMES[:2]]
    assert len({orders[0][:20], orders[0][20:], orders[1][:20], orders[1][20:]}) == 4


def test_figures_of_a_source_are_means_over_its_samples() -> None:
    rewards = {"a": torch.tensor([1.0, 3.0, 5.0, 8.0]), "b": torch.tensor([float("nan"), float("nan"), 2.0, 4.0])}
    found = source_metrics(rewards, ["x", "x", "y", ""])
    assert found == {"source/x/a/mean": 2.0, "source/y/a/mean": 5.0, "source/y/b/mean": 2.0}
    assert source_metrics(rewards, [""] * 4) == {}
    assert source_metrics({"a": rewards["a"]}, ["x"] * 4, held_out=True) == {"source/x/eval/a/mean": 4.25}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """The section ``prompts`` of a config."""
    (tmp_path / "photos.txt").write_text("".join(f"photo {number}\n" for number in range(7)))
    (tmp_path / "signs.jsonl").write_text('{"prompt": "stop"}\n{"prompt": "go", "rewards": ["bright", "again"]}\n')
    (tmp_path / "photos-held.txt").write_text("another photo\n")
    (tmp_path / "signs-held.txt").write_text("turn\nwait\n")
    photos = {"file": "photos.txt", "weight": 3, "heldout": "photos-held.txt"}
    return {"train": {"photos": photos, "signs": {"file": "signs.jsonl", "rewards": ["again"], "heldout": "signs-held.txt"}}}


def test_prompts_are_numbered_over_all_files_and_have_their_sources_rewards(load: Load, sources: dict[str, Any]) -> None:
    config = load({"prompts": sources, "rewards": {"again": {"name": "bright"}}})
    found, heldout = prepare_prompts(config)
    assert [prompt.index for prompt in found] == list(range(9))
    assert [prompt.source for prompt in found] == ["photos"] * 7 + ["signs"] * 2
    assert [prompt.metadata for prompt in found[6:]] == [{}, {"rewards": ["again"]}, {"rewards": ["bright", "again"]}]
    assert [(prompt.text, prompt.index, prompt.source) for prompt in heldout] == [
        ("black", 0, ""),
        ("orange", 1, ""),
        ("another photo", 2, "photos"),
        ("turn", 3, "signs"),
        ("wait", 4, "signs"),
    ]


def test_a_run_tells_of_each_source(load: Load, sources: dict[str, Any], figures: Figures) -> None:
    changes = {"prompts": {**sources, "heldout": None}, "rewards": {"again": {"name": "bright"}}}
    directory = train(load(changes), say=lambda _: None)
    records = figures(directory)
    assert {key for key in records[0] if key.startswith("source/")} == {
        *("source/photos/eval/bright/mean", "source/photos/eval/again/mean", "source/signs/eval/again/mean"),
    }
    for record in records[1:]:
        groups = 3 * record["source/photos/again/mean"] + record["source/signs/again/mean"]
        assert groups / 4 == pytest.approx(record["reward/again/mean"], abs=1e-6)  # three of four groups are photos
        assert record["source/photos/bright/mean"] == record["source/photos/again/mean"]
    ahead = train(load({**changes, "prompts": {**changes["prompts"], "encode_ahead": 1}}, "ahead"), say=lambda _: None)
    assert figures(ahead) == records


def test_one_source_of_all_is_learned_from_as_its_weights_say_and_one_file_as_ever(load: Load, figures: Figures) -> None:
    """Where there are no names, nothing is told of them, and nothing is drawn otherwise."""
    plain = train(load(), say=lambda _: None)
    assert not any(key.startswith("source/") for record in figures(plain) for key in record)
    named = train(load({"prompts": {"train": {"all": {"file": "train.txt", "weight": 5}}}}, "named"), say=lambda _: None)
    assert [record["source/all/bright/mean"] for record in figures(named)[1:]] == pytest.approx(
        [record["reward/bright/mean"] for record in figures(named)[1:]]
    )
    assert saved.tensors(plain.checkpoints / "000003").keys() == saved.tensors(named.checkpoints / "000003").keys()


def test_a_resumed_run_may_not_change_its_sources(load: Load, sources: dict[str, Any], tmp_path: Path) -> None:
    rewards = {"again": {"name": "bright"}}
    config = load({"prompts": sources, "rewards": rewards})
    before = fixed_config(config)
    assert config_changes(before, config) == []
    (tmp_path / "signs.jsonl").write_text('{"prompt": "stop!"}\n')
    (tmp_path / "photos.txt").rename(tmp_path / "moved.txt")
    sources["train"]["photos"] = {**sources["train"]["photos"], "file": "moved.txt", "weight": 2}
    assert config_changes(before, load({"prompts": sources, "rewards": rewards})) == [
        "prompts.train.photos.weight (3 then, 2 now)",
        "prompts.train.signs.file: its content has changed since",
    ]


@pytest.mark.parametrize(
    ("train_", "told"),
    [
        ({}, "prompts.train: names no file; write at least one, NAME: {file: …}"),
        ({"a b": {"file": "train.txt"}}, "prompts.train: a source is called 'a b'; call it by letters, digits, - and _ alone"),
        ({"a": "train.txt"}, "prompts.train.a: got 'train.txt'; give {file: …}, with its weight if it is not 1"),
        ({"a": {"file": "train.txt", "weight": 0}}, "prompts.train.a.weight: got 0; give a whole number from 1 to 10000"),
        ({"a": {"file": "no.txt"}}, "prompts.train.a.file: no file {folder}/no.txt"),
        ({"a": {"fiel": "train.txt"}}, "prompts.train.a.fiel: unknown key; did you mean 'file'?"),
        (
            {"a": {"file": "train.txt", "rewards": ["brihgt"]}},
            "prompts.train.a.rewards: 'brihgt' is no label of the config; did you mean 'bright'?",
        ),
    ],
)
def test_a_source_that_is_wrong_is_told_of(train_: Any, told: str, load: Load, config_file: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load({"prompts": None}, sets=[f"prompts={{train: {train_}}}".replace("'", '"')])
    assert any(sentence.endswith(told.replace("{folder}", str(tmp_path))) for sentence in refused.value.sentences)
    found = check_run(config_file({"prompts": {"train": None}}), [f"prompts.train={train_}"])
    assert any(sentence.endswith(told.replace("{folder}", str(tmp_path))) for sentence in found.errors), found.errors
