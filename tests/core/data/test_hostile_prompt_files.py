"""Prompt files that would fill memory or hang are refused in one line, and so are configs, in a process that stays small."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flowfactory.data.prompt_files import LONGEST
from flowfactory.data.prompts import read_prompts
from flowfactory.errors import UserError
from flowfactory.types import Prompt

TOO_LONG = "it is longer than 1 Mi characters; no prompt needs that"
CHILD = """
import json, resource, sys, time
from pathlib import Path
from flowfactory.config.text_files import read_text
from flowfactory.config.yaml import parse_yaml
from flowfactory.data.prompts import read_prompts
from flowfactory.errors import UserError

def peak():  # of this process alone, and not of the one that it was forked from
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

before = peak()
for path in map(Path, sys.argv[1:]):
    started = time.process_time()
    try:
        parse_yaml(read_text(path, path.name), path.name) if path.suffix == ".yaml" else read_prompts(path)
        said = ""
    except UserError as error:
        said = str(error)
    print(json.dumps([path.name, time.process_time() - started, (peak() - before) / 2**20, said]))
"""


def measure(*paths: Path) -> Mapping[str, tuple[float, float, str]]:
    """Seconds of processor time, MiB that the process grew by until then, and the sentence, by name of file."""
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, timeout=300, check=True, env=os.environ
    )
    lines = map(json.loads, ran.stdout.splitlines())
    return {name: (seconds, grown, said.replace(f"{paths[0].parent}/", "")) for name, seconds, grown, said in lines}


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process had at most is read from /proc")
def test_what_is_refused_takes_little_memory_and_time(tmp_path: Path) -> None:
    with (tmp_path / "line.txt").open("w") as file:
        file.write('["')
        for _ in range(220):
            file.write("x" * 2**20)
    for suffix in ("jsonl", "json", "csv", "tsv"):
        os.link(tmp_path / "line.txt", tmp_path / f"line.{suffix}")
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(2**31)
    (tmp_path / "lists.json").write_text('[{"prompt": "a", "x": [' + "[]," * 5_000_000)
    (tmp_path / "lists.jsonl").hardlink_to(tmp_path / "lists.json")
    (tmp_path / "quote.csv").write_text('prompt\n"' + "a\n" * 1_000_000)
    (tmp_path / "cells.csv").write_text("prompt\n" + '"\n",' * 5_000_000)
    (tmp_path / "keys.jsonl").write_text("{" + ",".join(f'"{i % 60_000}":0' for i in range(90_000)) + "}")
    (tmp_path / "columns.csv").write_text("prompt," + "x," * 300_000)
    laughs = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])
    (tmp_path / "laughs.yaml").write_text(laughs)
    (tmp_path / "merges.yaml").write_text(laughs.replace("[x]", "{b: 1}").replace("[*", "{<<: [*").replace("]", "]}"))
    (tmp_path / "deep.yaml").write_text("[" * 200_000)
    os.link(tmp_path / "sparse.txt", tmp_path / "large.yaml")
    os.mkfifo(tmp_path / "pipe.txt")
    found = measure(*sorted(tmp_path.iterdir()))
    assert {name: said for name, (_, _, said) in found.items()} == {
        "cells.csv": f"prompts cells.csv line 2: {TOO_LONG}",
        "columns.csv": "prompts columns.csv line 1: two columns are called 'x'; rename one",
        "deep.yaml": "deep.yaml: it is nested more than 32 deep; no config needs that",
        "keys.jsonl": "prompts keys.jsonl line 1: key '0' stands twice",
        "large.yaml": "large.yaml: it is larger than 256 KiB; give a config",
        "laughs.yaml": "laughs.yaml: it holds more than 10,000 values, aliases written out; no config needs that",
        **{f"line.{kind}": f"prompts line.{kind} line 1: {TOO_LONG}" for kind in ("csv", "json", "jsonl", "tsv", "txt")},
        "lists.json": f"prompts lists.json line 1: {TOO_LONG}",
        "lists.jsonl": f"prompts lists.jsonl line 1: {TOO_LONG}",
        "merges.yaml": "merges.yaml: it holds more than 10,000 values, aliases written out; no config needs that",
        "pipe.txt": "prompts pipe.txt: it is no file; give a file of text",
        "quote.csv": "prompts quote.csv line 2: a cell has more than 131,072 characters; end a text in quotes with its"
        " quote, or write a .jsonl file",
        "sparse.txt": "prompts sparse.txt line 1: it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8",
    }
    assert max(grown for _, grown, _ in found.values()) < 200
    assert max(seconds for seconds, _, _ in found.values()) < 20  # most take milliseconds


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.csv"])
def test_a_prompt_is_as_long_as_a_prompt_may_be_wherever_it_stands(tmp_path: Path, name: str) -> None:
    """The pieces that a file is read in make no difference."""

    def written(*texts: str) -> str:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([["prompt", "more"], *([t[:100_000], t[100_000:]] for t in texts)])
        return {
            "p.txt": "\n".join(texts),
            "p.jsonl": "\n".join(map(json.dumps, texts)),
            "p.json": json.dumps(texts),
            "p.csv": table.getvalue(),
        }[name]

    def read(*texts: str) -> list[int]:
        (tmp_path / name).write_text(written(*texts))
        found = read_prompts(tmp_path / name)
        return [len(prompt.text) + len(prompt.metadata.get("more", "")) for prompt in found]

    around = {"p.txt": 0, "p.jsonl": 2, "p.json": 2, "p.csv": 1}[name]
    if name == "p.csv":  # a cell is at most 131,072 characters
        assert read("a" * 230_000) == [230_000]
        return
    for before in (0, 1, 200_000, 900_000):
        first = ["b" * before] * bool(before)
        assert read(*first, "a" * (LONGEST - around), "c")[-2:] == [LONGEST - around, 1]
        with pytest.raises(UserError, match=TOO_LONG):
            read(*first, "a" * (LONGEST - around + 1), "c")


def test_large_files_of_right_prompts_are_read_piece_by_piece(tmp_path: Path) -> None:
    """Characters of several bytes, ends of lines of two and white space of any length stand over where pieces meet."""
    texts = [f"猫{i} {'é🚀' * (i % 700)}x" for i in range(3000)]
    rows = [json.dumps({"prompt": text, "i": i}, ensure_ascii=False) for i, text in enumerate(texts)]
    expected = tuple(Prompt(text, i, {"i": i}) for i, text in enumerate(texts))
    gap = "\n" * 50_000
    for name, content in (
        ("p.txt", "\r\n".join(texts)),
        ("p.jsonl", "\r\n".join(rows)),
        ("p.json", "[" + f",{gap * 60}".join(rows[:2]) + "," + ",\r\n".join(rows[2:]) + "]" + gap),
        ("lines.json", "\r".join(rows)),
    ):
        (tmp_path / name).write_bytes(content.encode())
        found = read_prompts(tmp_path / name)
        assert [prompt.text for prompt in found] == texts
        assert name == "p.txt" or found == expected


LONG = "a" * 1000


@pytest.mark.parametrize(
    ("name", "row", "end", "says"),
    [
        ("p.txt", f"{LONG}\r\n", "\0", "it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8"),
        ("p.jsonl", f'{{"prompt": "{LONG}"}}\r', '{"prompt": }', "no JSON: Expecting value at character 12"),
        ("p.json", f'{{"prompt": "{LONG}"}}\n', '{"prompt": }', "no JSON: Expecting value at character 12"),
    ],
)
def test_the_line_of_a_mistake_is_right_far_into_a_file(tmp_path: Path, name: str, row: str, end: str, says: str) -> None:
    (tmp_path / name).write_bytes((row * 5000 + end).encode())
    with pytest.raises(UserError) as refused:
        read_prompts(tmp_path / name)
    assert str(refused.value) == f"prompts {tmp_path / name} line 5001: {says}"


def test_a_mistake_far_into_one_line_is_told_by_its_character(tmp_path: Path) -> None:
    rows = '["a", ' + f'"{LONG}", ' * 5000
    (tmp_path / "p.json").write_text(f"{rows}x]")
    with pytest.raises(UserError, match=rf"line 1: no JSON: Expecting value at character {len(rows) + 1}$"):
        read_prompts(tmp_path / "p.json")


def test_invalid_utf_8_far_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("é\n".encode() * 400_000 + b"\xe9")
    with pytest.raises(UserError, match=r"line 400001: this is no UTF-8; save it as UTF-8$"):
        read_prompts(tmp_path / "p.txt")
