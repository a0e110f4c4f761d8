from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.config.component import Takes
from flowfactory.data.batches import make_batch, prompts_of_iteration, split_whole_groups
from flowfactory.data.prompts import check_media, read_prompts
from flowfactory.errors import UserError
from flowfactory.types import NoiseKey, Prompt


def many(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", i) for i in range(count)]


def test_a_line_is_a_prompt_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red circle\r\n\n   \n  un été  \n猫".encode())
    assert read_prompts(path) == (Prompt("a red circle", 0), Prompt("un été", 1), Prompt("猫", 2))


def test_just_a_line_feed_ends_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\u2028and\x0bthe same\ntwo\n", encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(path)] == ["one\u2028and\x0bthe same", "two"]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_without_prompts_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"^prompts .*p\.txt: there is no prompt in it; write one a line$"):
        read_prompts(tmp_path / "p.txt")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=r"^prompts .*p\.txt line 1: this is no UTF-8; save it as UTF-8$"):
        read_prompts(tmp_path / "p.txt")


def test_members_of_a_group_stand_together_with_a_key_each() -> None:
    batch = make_batch([Prompt("b", 4), Prompt("a", 2)], 3)
    assert batch.texts == ("b", "b", "b", "a", "a", "a")
    assert batch.keys == tuple(NoiseKey(prompt, member) for prompt in (4, 2) for member in range(3))
    assert batch.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.groups.dtype == torch.int64


def test_a_prompt_that_comes_twice_is_two_groups_with_other_noise() -> None:
    batch = make_batch([Prompt("a", 2), Prompt("b", 3), Prompt("a", 2)], 2)
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.keys == ((2, 0), (2, 1), (3, 0), (3, 1), (2, 2), (2, 3))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_has_each_prompt_once(count: int, groups: int, epoch: int, seed: int) -> None:
    prompts = many(count)
    iterations = range((epoch + 1) * count // groups + 1)
    sequence = [prompt.index for iteration in iterations for prompt in prompts_of_iteration(prompts, iteration, groups, seed)]
    assert sorted(sequence[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 50))
def test_the_choice_is_a_function_of_its_arguments(count: int, groups: int, iteration: int) -> None:
    assert prompts_of_iteration(many(count), iteration, groups, 3) == prompts_of_iteration(many(count), iteration, groups, 3)
    assert len(prompts_of_iteration(many(count), iteration, groups, 3)) == groups


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    prompts = many(20)
    orders = {tuple(p.index for p in prompts_of_iteration(prompts, epoch, 20, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def lines(path: Path, *objects: object) -> Path:
    path.write_text("\n".join(json.dumps(item) for item in objects) + "\n\n", encoding="utf-8")
    return path


def test_a_jsonl_line_brings_all_that_a_prompt_can(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for name in ("a.png", "b.png", "c.mp4", "d.wav"):
        (tmp_path / "media" / name).write_bytes(b"x")
    media = tmp_path / "media"
    path = lines(
        tmp_path / "p.jsonl",
        {"prompt": " a cat ", "negative_prompt": "a dog", "image": "media/a.png", "count": 2, "text": {"said": "no"}},
        {"prompt": "two", "images": ["media/a.png", str(media / "b.png")], "video": "media/c.mp4", "audio": "media/d.wav"},
    )
    assert read_prompts(path) == (
        Prompt("a cat", 0, {"count": 2, "text": {"said": "no"}}, "a dog", (media / "a.png",)),
        Prompt("two", 1, {}, None, (media / "a.png", media / "b.png"), media / "c.mp4", media / "d.wav"),
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a"', "no JSON: "),
        ('["a"]', "expected an object with a 'prompt'"),
        ('{"text": "a"}', "'prompt' is missing"),
        ('{"prompt": 3}', "'prompt' is no text: 3"),
        ('{"prompt": null}', "'prompt' is missing"),
        ('{"prompt": " "}', "'prompt' is empty; write a text, or leave the prompt out"),
        ('{"Prompt": "a"}', "'prompt' is missing; rename 'Prompt', if it is meant"),
        ('{"prompt": true}', "'prompt' is no text: true"),
        ('{"prompt": "a", "images": ["b.png", null]}', "'images' is no list of paths: [\"b.png\", null]"),
        ('{"prompt": "a", "image": ""}', "'image' is empty; write a path, or leave it out"),
        ('{"prompt": "\\u200b"}', "'prompt' is empty; write a text, or leave the prompt out"),
        ('{"prompt": "a", "x": [NaN]}', "a number in it is NaN, and each should be finite; write null, or leave it out"),
        ('{"prompt": "a", "x": {"y": -1e400}}', "a number in it is -Infinity, and each should be finite"),
        ('{"prompt": "a", "video": "$NO_SUCH_VARIABLE/a.mp4"}', "'$NO_SUCH_VARIABLE/a.mp4': the environment variable"),
        (
            '{"prompt": "a", "image": "data:image/png;base64,%s"}' % ("A" * 5000),
            "'image' is a data URL, data:image/png;base64,",
        ),
        ('{"prompt": "a", "images": ["HTTPS://a.org/b.png"]}', "'images' is a URL, HTTPS://a.org/b.png…; save what it holds"),
        ('{"prompt": "a", "audio": "%s"}' % ("A" * 5000), "'audio': no file AAAAAA"),
        ('{"prompt": "a", "negative_prompt": []}', "'negative_prompt' is no text: []"),
        ('{"prompt": "a", "image": "b.png"}', "no file .*b.png"),
        ('{"prompt": "a", "images": "b.png"}', "'images' is no list of paths: \"b.png\""),
        ('{"prompt": "a", "image": "b", "images": ["c"]}', "has both 'image' and 'images'; write all of them as 'images'"),
    ],
)
def test_a_jsonl_line_that_is_none_is_named(line: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(
        UserError, match=rf"^prompts .*p\.jsonl line 3: {re.escape(sentence).replace(re.escape('.*'), '.*')}"
    ) as refused:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(refused.value)


PICTURE, CLIP = Path("a.png"), Path("c.mp4")


@pytest.mark.parametrize(
    ("prompt", "takes", "sentence"),
    [
        (Prompt("a", images=(PICTURE,)), Takes(), "brings 1 images, and model 'm' takes 0"),
        (
            Prompt("a"),
            Takes(images=(1, 1)),
            "brings 0 images, and model 'm' takes 1; write them into a .jsonl file under 'images'",
        ),
        (Prompt("a", images=(PICTURE,) * 3), Takes(images=(1, 2)), "brings 3 images, and model 'm' takes 1 to 2"),
        (
            Prompt("a"),
            Takes(images=(1, float("inf"))),
            "brings 0 images, and model 'm' takes 1 or more; write them into a .jsonl file under 'images'",
        ),
        (Prompt("a", video=CLIP), Takes(images=(0, 2)), "brings 1 video, and model 'm' takes 0"),
        (Prompt("a", audio=CLIP), Takes(), "brings 1 audio, and model 'm' takes 0"),
    ],
)
def test_media_that_the_model_does_not_take_or_lacks_are_refused(prompt: Prompt, takes: Takes, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        check_media([prompt], takes, "m")
    assert str(refused.value) == f"prompts: 'a' {sentence}"


def test_media_that_the_model_takes_are_welcome() -> None:
    check_media([Prompt("a", images=(PICTURE,)), Prompt("b", images=(PICTURE,) * 5)], Takes(images=(1, float("inf"))), "m")
    check_media([Prompt("a", video=CLIP)], Takes(video=(1, 1)), "m")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("Image", "image"),
        ("IMAGES", "images"),
        ("imgae", "image"),
        ("videos", "video"),
        ("audios", "audio"),
        ("negative-prompt", "negative_prompt"),
        ("negative prompt", "negative_prompt"),
        ("negativ_prompt", "negative_prompt"),
        ("negative_prompts", "negative_prompt"),
    ],
)
def test_a_key_that_is_misspelt_is_refused(key: str, meant: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b", key: "x"}) + "\n")
    with pytest.raises(UserError) as refused:
        read_prompts(file)
    told = f"unknown key {key!r}; did you mean {meant!r}? For metadata, take another name"
    assert str(refused.value) == f"prompts {file} line 2: {told}"


def test_other_keys_are_metadata_whatever_they_are_like(tmp_path: Path) -> None:
    words = "image_id image2 img video_id videoid audience prompts prompt2 prompt_en negative positive_prompt reward magic tags"
    metadata = dict.fromkeys(words.split(), "x")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", "Image": None, **metadata}))
    (prompt,) = read_prompts(tmp_path / "p.jsonl")
    assert prompt.metadata == metadata


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 20))
def test_pieces_hold_whole_groups_and_all_samples_in_order(groups: int, group_size: int, size: int) -> None:
    batch = make_batch(many(groups), group_size)
    pieces = list(split_whole_groups(batch, size))
    assert [row for piece in pieces for row in piece] == list(range(groups * group_size))
    for piece in pieces:
        part = batch.rows(piece)
        assert len(part.keys) % group_size == 0
        assert len(part.keys) <= max(size, group_size)
        assert [prompt.index for prompt in part.prompts] == [key.prompt for key in part.keys]
    if size >= 2 * group_size and groups > 1:
        assert len(pieces) == -(-groups // (size // group_size)), "pieces are smaller than they may be"
