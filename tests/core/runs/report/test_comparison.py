from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import CONFIG, make_run

from flowfactory.runs.report.comparison import name_runs

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compared(tmp_path: Path, invoke: Invoke) -> str:
    make_run(tmp_path / "one", {0: {"a": 0.0, "b": 0.0, "c": 0.0}, 20: {"a": 0.5, "b": 1.0, "c": 0.0}})
    other = {"algorithm": {"name": "score", "pull": 0.5}, "sampling": CONFIG["sampling"] | {"groups": 8}}
    make_run(tmp_path / "two", {0: {"b": 0.0, "a": 0.0}, 10: {"b": 0.25, "a": 0.75}}, iterations=10, config=other)
    code, out, err = invoke("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html")
    assert (code, out, err) == (0, f"{tmp_path / 'page.html'}\n", "")
    return (tmp_path / "page.html").read_text()


def test_only_the_keys_that_differ_are_on_the_page(compared: str) -> None:
    (table,) = re.findall('id="config">.*?</section>', compared)
    rows = re.findall(r'<th scope="row"><code>(.*?)</code></th><td>(.*?)</td><td>(.*?)</td>', table)
    assert rows == [("sampling.groups", "4", "8"), ("algorithm.pull", "–", "0.5")] or rows == [
        ("algorithm.pull", "–", "0.5"),
        ("sampling.groups", "4", "8"),
    ]


def test_the_curves_of_all_runs_are_in_one_chart(compared: str) -> None:
    for name in ("eval/bright/mean", "reward/bright/mean", "loss"):
        (figure,) = [
            part
            for part in re.findall("<figure.*?</figure>", compared)
            if f"<code>{name}</code>" in part or f">{name}<" in part
        ]
        assert re.findall('data-name="(.*?)"', figure) == ["one", "two"]


def test_the_same_prompts_are_side_by_side(compared: str) -> None:
    told = html.unescape(" ".join(re.findall('<img alt="(.*?)"', compared)))
    assert told == (
        "one, before training: a one, after iteration 20: a two, after iteration 10: a "
        "one, before training: b one, after iteration 20: b two, after iteration 10: b"
    )


def test_the_scores_of_each_run_are_in_the_table(compared: str) -> None:
    text = re.sub("<[^>]*>", "", compared)
    assert "0.0000 ± 0.2887 → 0.5000 ± 0.2887" in text
    assert "0.0000 ± 0.3536 → 0.5000 ± 0.3536" in text


def test_without_out_the_page_is_written_to_the_present_folder(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / name, {}) for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    assert invoke("report", *runs) == (0, "comparison.html\n", "")
    assert not (runs[0] / "report.html").exists()


def test_a_folder_without_a_run_among_them_is_refused(tmp_path: Path, invoke: Invoke) -> None:
    run = make_run(tmp_path / "one", {})
    code, out, err = invoke("report", run, tmp_path)
    assert (code, out, err) == (2, "", f"error: {tmp_path} is no run directory: it has no config.yaml\n")
    code, _, err = invoke("report", *[run] * 13)
    assert (code, err) == (2, "error: 13 runs are too many for one page; name at most 12\n")


def test_runs_are_named_by_as_many_folders_as_tell_them_apart() -> None:
    assert name_runs([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert name_runs([Path("/x/seed1"), Path("/y/seed1")]) == ["x/seed1", "y/seed1"]
