"""A config, or what is typed in its place, that would fill memory, hang, or flood the terminal: lines of ours, soon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory.control_characters import LONGEST

Invoke = Callable[..., tuple[int, str, str]]
MUCH = 2**18 - 100
TEN = ", ".join(["*{}"] * 10)
SECONDS = 20.0
"""Of processor time, far from what any of these takes, and farther from what it would."""


def multiplied(first: str, again: str, times: int = 12) -> str:
    """``first``, and ten times what came before in each of ``times`` more lines."""
    lines = [f"k0: &k0 {first}"]
    return "\n".join(lines + [f"k{i}: &k{i} {again.format(TEN.format(*[f'k{i - 1}'] * 10))}" for i in range(1, times)])


TEXTS = {
    "aliases": (multiplied("[x]", "[{}]"), "holds more than 10,000 values, aliases written out; no config needs that"),
    "merges": (multiplied("{a: 1}", "{{<<: [{}]}}"), "holds more than 10,000 values"),
    "itself": ("a: &a [*a]", "line 1: this holds itself; write it out"),
    "merged itself": ("a: &a {<<: *a}", "line 1: this holds itself; write it out"),
    "alias in alias": (
        "\n".join(["k0: &k0 [x]", *(f"k{i}: &k{i} [*k{i - 1}]" for i in range(1, 1000))]),
        "is nested more than",
    ),
    "deep lists": ("a: " + "[" * 100_000, "is nested more than 32 deep; no config needs that"),
    "deep mappings": ("a: " + "{a: " * 50_000, "is nested more than 32 deep"),
    "deep blocks": ("- " * 100_000, "is nested more than 32 deep"),
    "deep indentation": ("\n".join(f"{' ' * i}a:" for i in range(700)), "is nested more than 32 deep"),
    "many values": ("a: [" + "1," * (MUCH // 2), "holds more than 10,000 values"),
    "many keys": ("\n".join(f"k{i}: 1" for i in range(MUCH // 11)), "holds more than 10,000 values"),
    "large": ("#" * (MUCH + 200), "is larger than 256 KiB; give a config"),
    "number": ("seed: " + "1" * MUCH, "cannot be read as !!int"),
    "hexadecimal": ("seed: 0x" + "f" * MUCH, "cannot be read as !!int"),
    "float": ("seed: 1" + "0" * MUCH + ".5", "seed: got .inf"),
    "long key": ("x" * 1000 + ": 1", "unknown key"),
    "longer key": ("? " + "x" * MUCH + "\n: 1", "unknown key"),
    "long key twice": (f"? {'x' * 1000}\n: 1\n? {'x' * 1000}\n: 1", "stands twice"),
    "long text": ("seed: " + "x" * MUCH, "seed: got 'xxx"),
    "long name": ("model: " + "x" * MUCH, "model: "),
    "variables": ("prompts: {train: '" + "${" * (MUCH // 2 - 50) + "'}", "is too long for the name of a file"),
    "blanks": ("sampling: {size: '1" + " " * (MUCH - 50) + "y'}", "sampling.size: got '1   "),
    "tabs": ("a: [" + "\t1,\t" * (MUCH // 5) + "]", "holds more than 10,000 values"),
    "blank tabs": ("seed:" + "\t" * MUCH + "x", "seed: got 'x'"),
    "documents": ("---\n" * (MUCH // 4), "line 2: a second document begins; write one"),
    "code": ('a: !!python/object/apply:os.system ["touch executed"]', "the tag '!!python/object/apply:os.system' is not read"),
    "long tag": (f"a: !{'x' * MUCH} 1", "is not read; write the value without it"),
    "alias of nothing": (f"a: *{'x' * MUCH}", "line 1: "),
    "sexagesimal": ("seed: " + "1:" * 5000 + "1", "seed: got '1:1:"),
    "5,000 unknown keys": ("\n".join(f"trainig{i}: 1" for i in range(4900)), "and at least 80 more; mend these first"),
    "4,000 numbers as keys": ("\n".join(f"{i}: 1" for i in range(4000)), "and at least 80 more; mend these first"),
    "4,000 unknown rewards": ("rewards:\n" + "\n".join(f"  a{i}: b" for i in range(4000)), "and at least 80 more; mend these"),
    "1,500 wrong rewards": ("rewards:\n" + "\n".join(f"  a{i}: {{name: bright, x: 1}}" for i in range(1500)), "and at least"),
    "4,000 wrong items": ("sampling: {size: [" + "x, " * 4000 + "]}", "sampling.size"),
}


def check_told(told: tuple[int, str, str], started: float, says: str = "") -> None:
    code, out, err = told
    assert time.process_time() - started < SECONDS
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) < 30
    assert all(line.startswith("error: ") and len(line) < LONGEST + 50 for line in lines)
    assert says in err


@pytest.mark.parametrize(("text", "says"), TEXTS.values(), ids=TEXTS)
def test_each_text_is_a_few_lines(invoke: Invoke, toy: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text(f"{text}\n", encoding="utf-8")
    started = time.process_time()
    check_told(invoke("run", "config.yaml", "--plugin", toy, "--dry-run"), started, says)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["aliases", "deep lists", "large", "itself"])
def test_so_is_the_file_of_a_reward_that_is_served(invoke: Invoke, tmp_path: Path, kind: str) -> None:
    text, says = TEXTS[kind]
    (tmp_path / "reward.yaml").write_text(text, encoding="utf-8")
    started = time.process_time()
    check_told(invoke("serve", "reward.yaml"), started, says)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("a=" + "[" * 1000, "--set a: it is nested more than 32 deep"),
        ("a=&a [*a]", "--set a line 1: this holds itself"),
        (f"a={TEXTS['aliases'][0]}", "--set a: it holds more than 10,000 values"),
        ("a." * 10_000 + "a=1", "it leads more than 32 deep"),
        ("x" * 100_000, "write it as a.b=value"),
        ("x" + " " * 100_000 + "y\nz", "write it as a.b=value"),
    ],
    ids=lambda each: each[:20],
)
def test_so_is_what_is_typed(invoke: Invoke, tmp_path: Path, typed: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    started = time.process_time()
    check_told(invoke("run", "config.yaml", "--dry-run", "--set", typed), started, says)


def test_what_is_no_file_or_no_text(invoke: Invoke, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"a: 1\nb: \xff\xfe")
    with (tmp_path / "gigabyte.yaml").open("wb") as file:
        file.truncate(2**30)
    for name, says in (
        ("pipe.yaml", "no file pipe.yaml"),
        ("folder.yaml", "no file folder.yaml"),
        ("/dev/zero", "no file /dev/zero"),
        ("bytes.yaml", "bytes.yaml line 2: this is no UTF-8"),
        ("gigabyte.yaml", "gigabyte.yaml: it is larger than 256 KiB"),
    ):
        started = time.process_time()
        check_told(invoke("run", name), started, says)
