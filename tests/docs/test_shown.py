"""Every page has an example that runs, and what the pages show of it is what it prints.

A console block that shows what a ``flowfactory`` command prints is run, in a folder with all files of the pages; so is a block
of Python with comments ``# > ``. ``…`` stands for the rest of a line, and alone on a line for any others.
"""

from __future__ import annotations

import importlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import docs_modules
import pytest
from pages import DOCS, PAGES, WHOLE, Block, blocks_of, write_files
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.errors import RunError, UserError

NOT_RUN = {
    ("cli.md", "flowfactory check quickstart"): "wraps where the path of the cache ends; tests/end_to_end/test_check.py",
    ("cli.md", "flowfactory report runs/first"): "needs half a minute's run",
    ("cli.md", "flowfactory runs"): "test_samples.py",
    ("cli.md", "flowfactory doctor runs/first"): "test_samples.py",
    ("cli.md", "flowfactory sample runs/first"): "needs half a minute's run",
    ("cli.md", "flowfactory export runs/first"): "needs half a minute's run",
    ("cli.md", "flowfactory plugins check sharpness"): "needs what the page has written installed; nox -s templates",
    ("cli.md", "flowfactory cache clear"): "of the reader's own cache",
    ("plugins.md", "cd flowfactory-sharpness"): "needs what the page has written installed; nox -s templates",
    ("plugins.md", "flowfactory plugins check sharpness"): "the same",
    ("rewards/remote.md", "pip install 'flowfactory[serve]'"): "serves until it is stopped",
    ("rewards/remote.md", "openssl req"): "serves until it is stopped",
    ("rewards/remote.md", "python3 -m venv"): "serves until it is stopped",
}
"""Blocks with what is printed that no test of this file runs: their page, how they begin, and why."""
ELSEWHERE = {"report.md": "tests/docs/test_samples.py"}
"""Pages whose examples other tests run."""


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def shows_output(block: Block) -> bool:
    lines = block.text.splitlines()
    return any(
        line.startswith("$ flowfactory ") and following and not following.startswith("$ ")
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
    )


def is_run(block: Block) -> bool:
    if block.language == "python":
        return not block.file and "\n# > " in block.text
    left_out = any(page == name_of(block.page) and block.text.startswith(f"$ {start}") for page, start in NOT_RUN)
    return block.language == "console" and shows_output(block) and not left_out


NAMES = docs_modules.load("public_names")
SHOWN = [block for page in PAGES for block in blocks_of(page) if is_run(block)]


def is_shown(entry: Any) -> bool:
    return entry.example.exists() and not NAMES.is_elsewhere(entry)


def examples_of_reference(page: Path) -> list[Path]:
    """The files that the entries on a page show, each run by ``test_reference.py``."""
    doors = re.findall(r"^```\{reference\} (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [entry.example for door in doors for entry in NAMES.entries(door) if is_shown(entry)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_has_an_example_that_is_run_and_what_it_prints(page: Path) -> None:
    name = name_of(page)
    if name in ELSEWHERE:
        assert f'"{page.name}"' in (DOCS.parent / ELSEWHERE[name]).read_text(encoding="utf-8")
        return
    assert any(block.page == page for block in SHOWN) or examples_of_reference(page), "add a block as this file describes"


@pytest.mark.parametrize(("page", "start"), NOT_RUN)
def test_what_is_not_run_is_still_there(page: str, start: str) -> None:
    assert f"```console\n$ {start}" in (DOCS / page).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = set(sys.modules)
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if f"{name}.py" in WHOLE:
            del sys.modules[name]


def printed(command: str) -> str:
    """What a command prints; of a mistake what the command line says of it."""
    program, *words = shlex.split(command)
    if program == "cat":
        return "".join(Path(word).read_text(encoding="utf-8") for word in words)
    assert program == "flowfactory"
    found = CliRunner().invoke(app, words)
    if isinstance(found.exception, UserError):
        return found.output + "".join(f"error: {sentence}\n" for sentence in found.exception.sentences)
    if isinstance(found.exception, RunError):
        return f"{found.output}stopped: {found.exception}\n"
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


def without_place(text: str) -> str:
    """Without what differs between machines: versions, weights that are not there, and bars that ``main`` mutes."""
    text = re.sub(r"\rLoading weights: .*?it/s\]", "", text)
    text = re.sub(r"^error: model\.path: \S+ is not on this machine.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d+\.\d+(\+\w+)?", "X.Y.Z", text)


def pattern(shown: str) -> str:
    lines = without_place(shown).strip("\n").splitlines()
    return "".join(r"(?:.*\n)*?" if line == "…" else re.escape(line.rstrip()).replace("…", ".*") + r" *\n" for line in lines)


def test_dots_stand_for_the_rest_of_a_line_or_for_lines() -> None:
    assert re.fullmatch(pattern("one …\n…\nlast\n"), "one two\nthree\nfour\nlast\n")
    assert re.fullmatch(pattern("…\nlast\n"), "last\n")
    assert not re.fullmatch(pattern("one …\nlast\n"), "one two\nthree\nlast\n")
    assert re.fullmatch(pattern("core 0.1.0 (now)\n"), without_place("core 12.3.4+cpu (now) \n"))


AWAY = re.compile(r"^error: rewards\.\S+ \S+ is not on this machine, and HF_HUB_OFFLINE is set;.*\n", re.MULTILINE)
"""What the tests alone are told, for whom there is no hub."""


@pytest.mark.parametrize(
    "block", [block for block in SHOWN if block.language == "console"], ids=lambda b: f"{b.page.stem}: {b.text.splitlines()[0]}"
)
def test_a_command_prints_what_is_shown(folder: Path, block: Block) -> None:
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)[1:]
    for command, shown in zip(parts[::2], parts[1::2], strict=True):
        told = AWAY.sub("", without_place(printed(command)).strip("\n") + "\n")
        if shown.strip():
            assert re.fullmatch(pattern(shown), told), f"$ {command}\n{told}"


SHORTER = (
    *("training.iterations=2", "training.warmup=0", "sampling.groups=2", "training.updates=1"),
    *("evaluation.every=2", "evaluation.steps=2"),
)


def test_the_quickstart_prints_what_its_page_shows(folder: Path) -> None:
    """In fewer and smaller iterations."""
    shown = next(block.text for block in blocks_of(DOCS / "quickstart.md") if block.text.startswith("encoding "))
    command = shlex.join(["flowfactory", "run", "quickstart", *(f"--set={value}" for value in SHORTER)])
    told = without_place(printed(command)).strip("\n") + "\n"
    assert re.fullmatch(pattern(shown), told), told


@pytest.mark.parametrize("block", [block for block in SHOWN if block.language == "python"], ids=lambda b: b.page.stem)
def test_python_prints_what_its_comments_say(folder: Path, block: Block) -> None:
    said = [line.removeprefix("# > ") for line in block.text.splitlines() if line.startswith("# > ")]
    importlib.invalidate_caches()
    with redirect_stdout(io.StringIO()) as output:
        exec(compile(block.text, block.page.name, "exec"), {"__name__": block.page.stem})
    assert output.getvalue().splitlines() == said
