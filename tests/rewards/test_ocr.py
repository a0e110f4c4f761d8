from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from reward_run import config_with_reward

from flowfactory import RunError, Samples, UserError
from flowfactory.rewards import to_pixels
from flowfactory.testing import check_reward
from flowfactory_rewards.ocr import OcrConfig, parse_texts, score_lines


def drawn(*lines: str, size: int = 256, ink: str = "black", paper: str = "white") -> torch.Tensor:
    """``lines`` below one another on a picture [3, size, size]."""
    picture = Image.new("RGB", (size, size), paper)
    for number, line in enumerate(lines):
        place = (size // 16, size // 4 + number * size // 5)
        ImageDraw.Draw(picture).text(place, line, ink, ImageFont.load_default(size // 8))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def samples(media: torch.Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> Samples:
    return Samples(media, tuple(prompts), torch.arange(len(media)), tuple(metadata or [{}] * len(media)))


def scores(config: OcrConfig, given: Samples) -> list[float]:
    return check_reward(config, given, varies=False)["under test"].tolist()


TEXTS = ("Hello World", "OPEN 24 HOURS", "flow matching", "No. 7, Main St", "Don't panic!")


def test_rendered_texts_score_high_and_blank_or_wrong_ones_near_nothing() -> None:
    prompts = [f'a sign that says "{text}"' for text in TEXTS]
    right = torch.stack([drawn(text) for text in TEXTS])
    wrong = torch.stack([drawn(text) for text in ("zebra", "quick jumps", "xyz", "bbbb", "qqq")])
    assert min(scores(OcrConfig(), samples(right, prompts))) >= 0.95
    assert max(scores(OcrConfig(), samples(wrong, prompts))) <= 0.3
    assert scores(OcrConfig(), samples(torch.ones(2, 3, 256, 256), prompts[:2])) == [0, 0]


@pytest.mark.parametrize("size", [128, 512])
def test_text_is_read_in_small_and_large_pictures(size: int) -> None:
    media = drawn("Hello World", size=size)[None]
    assert scores(OcrConfig(), samples(media, ['"Hello World"']))[0] >= 0.95


def test_colours_are_read_in_the_right_order() -> None:
    """Faint texts that are read in one order of the channels and not in the other, against RapidOCR's reading of Pillow's."""
    inks = ["#248fc2", "#161280", "#685d6a", "#6959b1", "#4759cd", "#b9e09d"]
    papers = ["#1682b3", "#16158e", "#6a707b", "#6457b3", "#344fc7", "#b5ffa3"]
    media = torch.stack([drawn("Hello", size=128, ink=ink, paper=paper) for ink, paper in zip(inks, papers, strict=True)])
    reward = OcrConfig().build("read")
    found = reward.compute_reward(samples(media, ['"Hello"'] * len(inks)))["read"]
    read = [reward._reader(Image.fromarray(to_pixels(picture)), use_cls=False).txts for picture in media]
    assert found.tolist() == pytest.approx([score_lines(lines or (), ["Hello"]) for lines in read])
    assert found.max() == 1


def test_pictures_of_one_channel_are_read() -> None:
    assert scores(OcrConfig(), samples(drawn("Hello World")[None, :1], ['"Hello World"']))[0] >= 0.95


def test_a_video_scores_the_mean_of_its_frames() -> None:
    blank = torch.ones(3, 256, 256)
    clips = torch.stack([torch.stack([drawn("Hello"), blank, drawn("Hello"), blank]), torch.stack([drawn("Hello")] * 4)])
    assert scores(OcrConfig(), samples(clips, ['"Hello"'] * 2)) == pytest.approx([0.5, 1.0])
    assert scores(OcrConfig(frames=1), samples(clips, ['"Hello"'] * 2)) == pytest.approx([1.0, 1.0])


def test_a_wrong_letter_costs_its_share_of_the_text() -> None:
    media = drawn("Hello Wurld")[None]
    assert scores(OcrConfig(), samples(media, ['"Hello World"']))[0] == pytest.approx(1 - 1 / 10)
    assert scores(OcrConfig(spaces=True), samples(media, ['"Hello World"']))[0] == pytest.approx(1 - 1 / 11)


def test_texts_of_the_metadata_come_before_those_of_the_prompt() -> None:
    media = torch.stack([drawn("Hello", "World")] * 2)
    found = scores(OcrConfig(), samples(media, ['"zebra"'] * 2, [{"text": "World"}, {"text": ["World", "Hello"]}]))
    assert found == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open" and "Closed"', ("Open", "Closed")),
        ("a sign “Open”", ("Open",)),
        ("a sign ‘don’t’", ("don’t",)),
        ("a sign 'Open' on a door", ("Open",)),
        ("it doesn't say 'don't stop' but 'go'", ("don't stop", "go")),
        ("the dogs' bowl says 'Rex'", ("Rex",)),
        ('a sign that says "don\'t panic"', ("don't panic",)),
        ("""a wall with 'he said "no"'""", ('he said "no"',)),
        ("a sign 「営業中」 and « Ouvert »", ("営業中", " Ouvert ")),
        ('an empty "" and " " and "x"', ("x",)),
        ('the ’90s’ „Offen“ on a 5" screen', ("Offen",)),
    ],
)
def test_texts_are_what_stands_in_quotation_marks(prompt: str, texts: tuple[str, ...]) -> None:
    assert parse_texts(prompt, {}) == texts


@pytest.mark.parametrize(
    "prompt", ["a cat", "a dog that doesn't mind the cats' toys and isn't mine", 'a 5" screen', '"" and " "', "rock 'n' roll"]
)
def test_a_prompt_without_text_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="has no text to read; put it in quotation marks"):
        parse_texts(prompt, {})


@pytest.mark.parametrize("text", ["", " ", [], ["a", ""], [1], {"a": 1}, 7])
def test_metadata_that_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(UserError, match="expected a text or a list of texts"):
        parse_texts("a sign", {"text": text})


def test_more_texts_than_can_be_told_apart_are_refused() -> None:
    assert len(parse_texts("a", {"text": ["x"] * 8})) == 8
    with pytest.raises(UserError, match="9 texts to read, and 8 are the most"):
        parse_texts("a", {"text": ["x"] * 9})


@pytest.mark.parametrize(
    ("lines", "texts", "options", "expected"),
    [
        (["Hello World"], ["hello world"], {}, 1),
        (["Hello World"], ["hello world"], {"case": True}, 1 - 2 / 10),
        (["Hel lo"], ["hello"], {}, 1),
        (["Hel lo"], ["hello"], {"spaces": True}, 1 - 1 / 5),
        (["Hello", "World"], ["hello world"], {"spaces": True}, 1),  # over lines
        (["OPEN 24 HOURS"], ["24"], {}, 1),  # within a line
        (["OPEN 24 HOURS"], ["24"], {"only": True}, 0),  # nine characters too many for two
        (["OPEN 24"], ["OPEN"], {"only": True}, 1 - 2 / 4),
        (["OPEN"], ["CLOSED"], {}, 1 - 4 / 6),  # OPEN to CLOSED: insert C, L, S for P, D for N
        (["abc"], ["xyz"], {}, 0),
        ([], ["xyz"], {}, 0),
        (["b", "a"], ["a", "b"], {}, 1),  # any order
        (["a"], ["a", "a"], {}, 0.5),  # wanted twice
        (["a a"], ["a", "a"], {}, 1),
        (["cat", "cart"], ["cart", "cat"], {}, 1),
        (["cart"], ["cat", "cart"], {}, 0.5),
        (["New", "York", "City"], ["York City", "New"], {"spaces": True}, 1),
        (["欢迎光临"], ["光临"], {}, 1),
        (["don’t"], ["don't"], {"spaces": True}, 1),
        (["①"], ["1"], {}, 1),
    ],
)
def test_scores_are_those_worked_out_by_hand(
    lines: list[str], texts: list[str], options: dict[str, bool], expected: float
) -> None:
    assert score_lines(lines, texts, **options) == pytest.approx(expected)


def test_words_are_dealt_as_well_as_trying_all_ways_deals_them() -> None:
    """Against a search through every choice of disjoint runs, with the textbook's edit distance."""
    source = torch.Generator().manual_seed(0)

    def text() -> str:
        letters = torch.randint(0, 3, (int(torch.randint(1, 5, (), generator=source)),), generator=source)
        return "".join("abc"[letter] for letter in letters)

    for _ in range(60):
        lines = [text() for _ in range(5)]
        texts = [text() for _ in range(3)]
        assert score_lines(lines, texts) == pytest.approx(exhaustive(lines, texts) / 3)


def exhaustive(read: list[str], texts: list[str]) -> float:
    if not texts:
        return 0.0
    first, *others = texts
    ways = [exhaustive(read, others)]
    for start in range(len(read)):
        for end in range(start + 1, len(read) + 1):
            if None not in read[start:end]:
                similar = max(0.0, 1 - edits("".join(read[start:end]), first) / len(first))
                used: list[Any] = [None] * (end - start)
                ways.append(similar + exhaustive([*read[:start], *used, *read[end:]], others))
    return max(ways)


def edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_a_prompt_without_text_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    lines = [{"prompt": 'a "sign"'}, {"prompt": "a sign", "text": "x"}, {"prompt": "a cat"}]
    with pytest.raises(UserError, match=r"prompt 3 of train.jsonl: 'a cat' has no text to read"):
        config_with_reward(tmp_path, {"name": "ocr"}, lines)
    with pytest.raises(UserError, match=r"prompt 1 of heldout.jsonl: 'a cat' has no text to read"):
        config_with_reward(tmp_path, {"name": "ocr"}, lines[:2], lines[2:])


def test_only_prompts_that_the_reward_judges_need_a_text(tmp_path: Path) -> None:
    cat, sign = {"prompt": "a cat"}, {"prompt": 'a "sign"'}
    config_with_reward(tmp_path, {"name": "ocr"}, [{"prompt": "a cat", "rewards": ["light"]}], [sign])
    with pytest.raises(UserError, match="has no text to read"):
        config_with_reward(tmp_path, {"name": "ocr"}, [{"prompt": "a cat", "rewards": ["light", "judge"]}], [sign])
    config_with_reward(tmp_path, None, [cat], [sign], evaluation={"name": "ocr"})
    config_with_reward(tmp_path, {"name": "ocr"}, [sign], [cat], evaluation={"name": "bright"})
    with pytest.raises(UserError, match=r"prompt 1 of heldout.jsonl"):
        config_with_reward(tmp_path, None, [sign], [cat], evaluation={"name": "ocr"})
    with pytest.raises(UserError, match=r"prompt 1 of train.jsonl"):
        config_with_reward(tmp_path, {"name": "ocr"}, [cat], [cat], evaluation={"name": "bright"})


def test_a_prompt_without_text_ends_the_run_rather_than_scoring_nothing() -> None:
    with pytest.raises(RunError, match="'a cat' has no text to read"):
        OcrConfig().build("read").compute_reward(samples(torch.ones(1, 3, 64, 64), ["a cat"]))


def test_labels_share_a_reader() -> None:
    one, two = OcrConfig().build("one"), OcrConfig(case=True).build("two")
    for reward in (one, two):
        reward.prepare_reward(torch.device("cpu"))
    assert one._reader is two._reader
