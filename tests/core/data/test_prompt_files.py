"""A prompt file is read as what it is, or refused in one line that says where and why."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.data.prompts import read_prompts
from flowfactory.errors import UserError
from flowfactory.types import Prompt

TWO = (Prompt("a cat, sitting", 0), Prompt('a "red" ball', 1))
OBJECTS = '{"prompt": "a cat, sitting"}\n{"prompt": "a \\"red\\" ball"}\n'


def read(folder: Path, name: str, content: str | bytes) -> tuple[Prompt, ...]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompts(folder / name)


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(UserError) as refused:
        read(folder, name, content)
    start, sentence = f"prompts {folder / name}", str(refused.value)
    assert sentence.startswith(start)
    assert "\n" not in sentence
    assert len(sentence) < len(start) + 250
    return sentence.removeprefix(start).removeprefix(":").strip()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", 'a cat, sitting\na "red" ball\n'),
        ("p.TXT", '\ufeffa cat, sitting\r\n\r\n  a "red" ball'),
        ("p.jsonl", OBJECTS),
        ("TRAIN.JSONL", OBJECTS.replace("\n", "\r\n\r\n")),
        ("p.ndjson", "\ufeff" + OBJECTS),
        ("p.jsonl", '"a cat, sitting"\n"a \\"red\\" ball"'),
        ("p.json", json.dumps([prompt.text for prompt in TWO])),
        ("p.json", json.dumps([{"prompt": prompt.text} for prompt in TWO], indent=2)),
        ("lines.json", OBJECTS),
        ("p.Json", '[\n"a cat, sitting",\n\n{"prompt":\n"a \\"red\\" ball"}]\n'),
        ("p.csv", 'prompt\n"a cat, sitting"\n"a ""red"" ball"\n'),
        ("p.CSV", '\ufeff"prompt"\r\n"a cat, sitting"\r\n\r\n"a ""red"" ball"'),
        ("p.tsv", 'PROMPT\na cat, sitting\na "red" ball\n'),
        ("p.csv", ',Prompt \n0,"a cat, sitting"\n1,"a ""red"" ball"\n'),
    ],
)
def test_every_kind_of_file_says_the_same(name: str, content: str, tmp_path: Path) -> None:
    assert read(tmp_path, name, content) == TWO


def test_a_table_brings_files_and_metadata_as_text(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"x")
    table = 'Prompt,IMAGE,negative_prompt,Count,\n"a\ncat",cat.png,,3,0\na dog,,blurry,,1\n,,,,\n'
    expected = (
        Prompt("a\ncat", 0, {"Count": "3"}, None, (tmp_path / "cat.png",)),
        Prompt("a dog", 1, {}, "blurry"),
    )
    assert read(tmp_path, "p.csv", table) == expected
    assert read(tmp_path, "p.tsv", table.replace(",", "\t")) == expected


def test_null_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"x")
    line = (
        '{"prompt": "a", "image": null, "images": null, "negative_prompt": null, "video": null, "rewards": null, "count": null}'
    )
    assert read(tmp_path, "p.jsonl", line) == (Prompt("a"),)
    line = '{"prompt": "a", "image": "cat.png", "images": null}\n{"prompt": "a", "image": null, "images": ["cat.png"]}'
    assert [prompt.images for prompt in read(tmp_path, "p.jsonl", line)] == [(tmp_path / "cat.png",)] * 2


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1), min_size=1))
def test_whatever_python_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    texts = [f"{text}x".strip() for text in texts]
    folder = tmp_path_factory.mktemp("written")
    table = io.StringIO()
    csv.writer(table).writerows([["prompt"], *([text] for text in texts)])
    for name, content in (
        ("p.jsonl", "\n".join(json.dumps({"prompt": text}) for text in texts)),
        ("p.json", json.dumps(texts, ensure_ascii=False)),
        ("p.csv", table.getvalue()),
    ):
        assert [prompt.text for prompt in read(folder, name, content)] == texts


@pytest.mark.parametrize("name", ["p", "p.gz", "p.arrow", "p.yaml", "p.jsonl.zip"])
def test_other_files_are_refused_with_the_list_of_those_that_are_read(name: str, tmp_path: Path) -> None:
    sentence = refusal(tmp_path, name, "a cat\n")
    assert sentence.startswith(f"files of the kind '{Path(name).suffix}' are" if "." in name else "files without a suffix are")
    for suffix in (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"):
        assert f"{suffix} " in sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", "a cat\nb\0", "line 2: it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8"),
        (
            "p.txt",
            "a cat\n".encode("utf-16-le"),
            "line 1: it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8",
        ),
        ("p.txt", "a cat\n".encode("utf-16"), "this is UTF-16 or UTF-32; save it as UTF-8"),
        ("p.csv", "prompt\na\n".encode("utf-16"), "this is UTF-16 or UTF-32; save it as UTF-8"),
        ("p.jsonl", b"\n\xe9", "line 2: this is no UTF-8; save it as UTF-8"),
        (
            "p.txt",
            'a\n{"prompt": "b"}\n',
            "line 2: this is a JSON object, which is read from a file that ends in .jsonl; rename it",
        ),
        ("p.txt", '[\n"b"\n]\n', "line 1: this is JSON, which is read from a file that ends in .json; rename it"),
        (
            "p.txt",
            '[\n{"prompt": "a"},\n]\n',
            "line 1: '[' looks like JSON, and not all here is; mend it, and name the file .jsonl or",
        ),
        ("p.txt", '["a cat",\n"a dog",\n]\n', "line 1: '[\"a cat\",' looks like JSON"),
        ("p.txt", 'a\n{"prompt": "a"},\n', 'line 2: \'{"prompt": "a"},\' looks like JSON'),
        ("p.txt", "{'prompt': 'a'}\n", "line 1: \"{'prompt': 'a'}\" looks like JSON"),
        ("p.txt", '{\n  "prompt": "a",\n}\n', 'line 2: \'"prompt": "a",\' looks like JSON'),
        ("p.txt", "a\n]\n", "line 2: ']' looks like JSON"),
        (
            *("p.txt", "\nprompt\na cat\n"),
            "line 2: this is the header of a table, which is read from a file that ends in .csv or .tsv; rename it",
        ),
        ("p.txt", "id,Prompt,image\n0,a cat,b.png\n", "line 1: this is the header of a table"),
        ("p.txt", '"prompt"\t"image"\na cat\tb.png\n', "line 1: this is the header of a table"),
        (
            *("p.jsonl", '[\n{"prompt": "a"}\n]'),
            "line 1: expected an object with a 'prompt'; a list is read from a file that ends in .json",
        ),
        (
            "p.jsonl",
            '{"prompt": "a"} {"prompt": "b"}',
            "line 1: no JSON: something stands behind the object, from character 17 on",
        ),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: key 'prompt' stands twice"),
        (
            "p.jsonl",
            '{"prompt": "a\\ud83d"}',
            r"line 1: a text in it holds \ud83d, half a character; write both halves, or neither",
        ),
        (
            *("p.jsonl", '{"prompt": "a"}\n{"prompt": "a", "x": [{"\\u0000": 1}]}'),
            r"line 2: a text in it holds \u0000, which is no character; leave it out",
        ),
        ("p.json", '["a",\n"\\u0000"]', r"line 2: a text in it holds \u0000, which is no character; leave it out"),
        (
            "p.jsonl",
            '{"prompt": "a", "x": ' + "[" * 33 + "]" * 33 + "}",
            "line 1: it is nested more than 32 deep; no prompt needs that",
        ),
        ("p.jsonl", "[" * 100_000, "line 1: expected an object with a 'prompt'; a list is read from a file that ends in .json"),
        ("p.json", '["a",\n' + "[" * 100_000, "line 2: it is nested more than 32 deep; no prompt needs that"),
        (
            *("p.jsonl", '{"prompt": "a", "x": ' + "9" * 5000 + "}"),
            "line 1: Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
        ("p.json", "[]", "there is no prompt in it; write one a line"),
        ("p.json", "", "there is no prompt in it; write one a line"),
        ("p.json", "3", "line 1: expected an object with a 'prompt'"),
        ("p.json", '["a",\n3]', "line 2: expected an object with a 'prompt'"),
        ("p.json", '["a",\n" "]', "line 2: 'prompt' is empty; write a text, or leave the prompt out"),
        ("p.json", '{"prompts": ["a"]}', "line 1: 'prompt' is missing; rename 'prompts', if it is meant"),
        ("p.json", '["a",\n"b"', "line 2: no JSON: the list should go on with ',' or end with ']' here"),
        ("p.json", '["a"]\nx', "line 1: no JSON: the list should go on with ',' or end with ']' here"),
        (
            *("p.json", '["a",\n{"prompt":\n "b",\n x}]'),
            "line 4: no JSON: Expecting property name enclosed in double quotes at character 2",
        ),
        ("p.csv", "a cat\n", "line 1: the header, 'a cat', has no 'prompt'; write one, with ',' between columns"),
        ("p.csv", "prompt;image\n", "line 1: the header, 'prompt;image', has no 'prompt'; write one, with ',' between columns"),
        ("p.csv", "prompt\n", "there is no prompt in it; write one a line"),
        ("p.csv", "prompt,x,x\n", "line 1: two columns are called 'x'; rename one"),
        ("p.csv", "prompt,images\n", "line 1: 'images' is a list, which no cell holds; write a .jsonl file"),
        ("p.csv", "prompt\na cat, sitting", "line 2: 2 cells under a header of 1; write text with ',' in quotes"),
        ("p.tsv", "prompt\tx\n\na cat", "line 3: 1 cells under a header of 2; put a tab between all, empty ones too"),
        ("p.csv", "prompt,x\na,b\n,c\n", "line 3: 'prompt' is empty; write a text, or leave the prompt out"),
        (
            "p.csv",
            'prompt,x\n"a\nb",c\n"d,e\nf,g\n',
            "line 4: unexpected end of data; a text in quotes ends with its quote, and a quote ",
        ),
        (
            "p.tsv",
            'prompt\tx\n"a" b\tc\n',
            "line 2: a tab expected after '\"'; a text in quotes ends with its quote, and a quote ",
        ),
    ],
)
def test_what_no_prompt_can_be_made_of_is_refused(name: str, content: str | bytes, sentence: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, name, content).startswith(sentence)


def test_braces_and_brackets_in_a_text_are_text(tmp_path: Path) -> None:
    texts = [
        "[masterpiece], a cat",
        "{red|blue} ball",
        "{",
        "[1",
        "[{red|blue} hat:0.5]",
        "{{a}}",
        "prompt",
        '"prompt" on a sign',
    ]
    texts += ['["quoted"] a cat', "{a, 'b'} cat", "(prompt, engineer)", "'a' and \"b\": two letters", "a cat, prompt"]
    assert [prompt.text for prompt in read(tmp_path, "p.txt", "\n".join(texts))] == texts


@pytest.mark.parametrize("first", ["a prompt, a cat", "prompt: a cat", "prompt service, smiling", "prompted"])
def test_a_text_about_prompts_is_no_header(first: str, tmp_path: Path) -> None:
    assert [prompt.text for prompt in read(tmp_path, "p.txt", f"{first}\na dog")] == [first, "a dog"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").mkdir()
    with pytest.raises(UserError, match=r"p\.txt: this is a folder without pictures; name a file in it, or put some there$"):
        read_prompts(tmp_path / "p.txt")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, "shard-0000.tar", b"x" * 512)
    assert sentence == "archives, as WebDataset writes them, are not read; unpack it, and name the folder"


def test_media_are_found_from_the_file_the_home_folder_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MEDIA", str(home))
    for path in (home / "a.png", tmp_path / "b.png", tmp_path / "$MEDIA.png"):
        path.write_bytes(b"x")
    names = ["~/a.png", "$MEDIA/a.png", "b.png", "home/../b.png", "$MEDIA.png"]
    (prompt,) = read(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "images": names}))
    assert [path.resolve() for path in prompt.images] == [
        *[home / "a.png"] * 2,
        *[tmp_path / "b.png"] * 2,
        tmp_path / "$MEDIA.png",
    ]


def test_a_hundred_thousand_prompts_are_read_in_seconds(tmp_path: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        return {"prompt": f"prompt {number}", "x": {"y": [1, 2]}}

    (tmp_path / "p.json").write_text(json.dumps([row(number) for number in range(100_000)], indent=1))
    start = time.process_time()
    prompts = read_prompts(tmp_path / "p.json")
    assert time.process_time() - start < 10  # a second on a fast processor
    assert prompts[-1] == Prompt("prompt 99999", 99999, {"x": {"y": [1, 2]}})


def test_a_cell_that_is_too_long_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,name\n" + "a" * 200_000 + ",b\n")
    with pytest.raises(UserError, match=r"line 2: a cell has more than 131,072 characters; end .* write a \.jsonl file$"):
        read_prompts(tmp_path / "p.csv")
