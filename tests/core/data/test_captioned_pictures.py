"""A folder of pictures with a caption each is a file of prompts, in the order of the names."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flowfactory.config.loading import validate
from flowfactory.data.prompts import read_prompts
from flowfactory.errors import UserError
from flowfactory.runs.resume import fixed_config
from flowfactory.testing.two_parameter import settings
from flowfactory.types import Prompt


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.lower().endswith(".txt"):
            (folder / name).write_text(f"  what {name} says\n")
        else:
            Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_a_picture_and_its_caption_are_a_prompt(tmp_path: Path) -> None:
    folder = fill(tmp_path / "cats", "b.png", "b.txt", "a$HOME.JPG", "a$HOME.txt", "c.tar.webp", "c.tar.txt", "B.jpeg", "B.TXT")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "b.txt").write_text("\ufefftwo\r\nlines\n")
    expected = [("B.jpeg", "what B.TXT says"), ("a$HOME.JPG", "what a$HOME.txt says"), ("b.png", "two\nlines")]
    expected += [("c.tar.webp", "what c.tar.txt says")]
    assert read_prompts(folder) == tuple(
        Prompt(text, index, target=folder / name) for index, (name, text) in enumerate(expected)
    )


NEITHER = "is no picture, .png, .jpg, .jpeg, .webp, nor a caption, .txt; move it elsewhere"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.png", "a.txt", "b.png"], ": 'b.png' has no caption; write 'b.txt'"),
        (["a.png", "a.txt", "b.txt"], ": 'b.txt' has no picture; delete it, or put its picture beside it"),
        (["a.png", "a.txt", "a.TXT"], ": 'a.TXT' and 'a.txt' would be captions of one picture; delete one"),
        (["a.png", "a.jpg", "a.txt"], ": 'a.jpg' and 'a.png' would share a caption; rename one"),
        (
            ["a.png", "a.txt", "a.gif"],
            f": 'a.gif' {NEITHER}",
        ),
        ([], ": this is a folder without pictures; name a file in it, or put some there"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(names: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read_prompts(fill(tmp_path / "cats", *names))
    assert str(refused.value) == f"prompts {tmp_path / 'cats'}{told}"


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        (b" \n", " a.txt: 'prompt' is empty; write a text, or leave the prompt out"),
        (b"\xe9", ": a.txt line 1: this is no UTF-8; save it as UTF-8"),
        (b"a" * (2**20 + 1), " a.txt: it is longer than 1 Mi characters; no prompt needs that"),
    ],
)
def test_a_caption_that_is_none_is_named(caption: bytes, told: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "cats", "a.png")
    (folder / "a.txt").write_bytes(caption)
    with pytest.raises(UserError) as refused:
        read_prompts(folder)
    assert str(refused.value) == f"prompts {folder}{told}"


def test_a_config_names_the_folder(tmp_path: Path) -> None:
    raw = settings(tmp_path, "policy-gradient")
    raw["prompts"]["train"] = str(fill(tmp_path / "cats", "a.png", "a.txt"))
    config = validate(raw)
    assert config.prompts.train == tmp_path / "cats"
    before = fixed_config(config)["prompts.train"]
    (tmp_path / "cats/a.txt").write_text("another")
    assert fixed_config(config)["prompts.train"] != before
