from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.errors import UserError
from flowfactory.prompts import chosen, grouped, read
from flowfactory.types import NoiseKey, Prompt


def many(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", i) for i in range(count)]


def test_a_line_is_a_prompt_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red circle\r\n\n   \n  un été  \n猫".encode())
    assert read(path) == (Prompt("a red circle", 0), Prompt("un été", 1), Prompt("猫", 2))


def test_just_a_line_feed_ends_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\u2028and\x0bthe same\ntwo\n", encoding="utf-8")
    assert [prompt.text for prompt in read(path)] == ["one\u2028and\x0bthe same", "two"]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_without_prompts_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"^prompts .*p\.txt: there is no prompt in it; write one a line$"):
        read(tmp_path / "p.txt")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=r"^prompts .*p\.txt: .*utf-8"):
        read(tmp_path / "p.txt")


def test_members_of_a_group_stand_together_with_a_key_each() -> None:
    batch = grouped([Prompt("b", 4), Prompt("a", 2)], 3)
    assert batch.texts == ("b", "b", "b", "a", "a", "a")
    assert batch.keys == tuple(NoiseKey(prompt, member) for prompt in (4, 2) for member in range(3))
    assert batch.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.groups.dtype == torch.int64


def test_a_prompt_that_comes_twice_is_two_groups_with_other_noise() -> None:
    batch = grouped([Prompt("a", 2), Prompt("b", 3), Prompt("a", 2)], 2)
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.keys == ((2, 0), (2, 1), (3, 0), (3, 1), (2, 2), (2, 3))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_has_each_prompt_once(count: int, groups: int, epoch: int, seed: int) -> None:
    prompts = many(count)
    iterations = range((epoch + 1) * count // groups + 1)
    sequence = [prompt.index for iteration in iterations for prompt in chosen(prompts, iteration, groups, seed)]
    assert sorted(sequence[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 50))
def test_the_choice_is_a_function_of_its_arguments(count: int, groups: int, iteration: int) -> None:
    assert chosen(many(count), iteration, groups, 3) == chosen(many(count), iteration, groups, 3)
    assert len(chosen(many(count), iteration, groups, 3)) == groups


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    prompts = many(20)
    orders = {tuple(p.index for p in chosen(prompts, epoch, 20, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9
