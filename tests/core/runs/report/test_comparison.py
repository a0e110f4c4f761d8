from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import CONFIG, make_run

from flowfactory.runs.report.comparison import columns_of, name_runs

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


def text_of(page: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", page))


def test_each_row_says_whether_the_run_learned_and_whether_it_differs_from_the_first(tmp_path: Path, invoke: Invoke) -> None:
    prompts = [f"prompt {i}" for i in range(25)]  # whose mean has a standard error of 0.5 / sqrt(25)
    for name, score in {"one": 0.5, "two": 0.6, "three": 1.5}.items():
        make_run(tmp_path / name, {0: dict.fromkeys(prompts, 0.0), 20: dict.fromkeys(prompts, score)})
    _, out, _ = invoke("report", *(tmp_path / name for name in ("one", "two", "three")), "--out", tmp_path / "page.html")
    text = text_of(Path(out.strip()).read_text())
    assert "0.0000 ± 0.1000 → 0.5000 ± 0.1000+0.5000 ± 0.1414, more than chance explains" in text
    assert "against oneheld-out bright" in text
    assert "two+0.1000 ± 0.1414, within noise: chance alone may do as muchafter iteration 20" in text
    assert "three+1.0000 ± 0.1414, more than chance explainsafter iteration 20" in text
    assert "different numbers of iterations" not in text


def test_runs_of_different_lengths_are_compared_after_the_same_iteration_where_both_were_evaluated(
    compared: str, tmp_path: Path, invoke: Invoke
) -> None:
    assert "The runs made different numbers of iterations: one 20, two 10." in text_of(compared)
    assert "after iteration 10, and 20 of the other: no evaluation after the same iteration" in text_of(compared)
    make_run(tmp_path / "long", {10: {"a": 0.25}, 20: {"a": 1.0}})
    _, out, _ = invoke("report", tmp_path / "long", tmp_path / "two", "--out", tmp_path / "page.html")
    assert "two+0.2500 ± 0.6124" in text_of(Path(out.strip()).read_text())


def test_what_does_not_change_what_is_learned_stands_last_by_name(tmp_path: Path, invoke: Invoke) -> None:
    make_run(tmp_path / "one", {}, config={"output": {"dir": "one", "keep_last": 1}, "trackers": {"csv": {"name": "csv"}}})
    make_run(tmp_path / "two", {}, config={"output": {"dir": "two", "keep_last": 2}, "seed": 8})
    _, out, _ = invoke("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html")
    (table,) = re.findall('id="config">.*?</section>', Path(out.strip()).read_text())
    rows = re.findall(r'<th scope="row(?:group)?".*?>(.*?)</th>', table)
    told = "These do not change what is learned"
    assert [text_of(row) for row in rows] == ["seed", told, "output.keep_last", "trackers.csv.name"]


def test_each_chart_has_a_title_of_its_own(tmp_path: Path, invoke: Invoke) -> None:
    for name in ("one", "two"):
        run = make_run(tmp_path / name, {})
        more = {"groups/equal": 0.5, "reward/bright/flat": 0.25, "reward/dim/flat": 0.5, "grad_norm/a": 1.0, "grad_norm/b": 2.0}
        lines = [json.dumps(json.loads(line) | more) for line in (run / "metrics.jsonl").read_text().splitlines()]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    _, out, _ = invoke("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html")
    titles = re.findall("<figcaption><h3>(.*?) <code>", Path(out.strip()).read_text())
    assert len(set(titles)) == len(titles)
    assert {"Groups that teach nothing: bright", "Gradient norm by part: a", "Gradient norm by part: b", "Loss"} <= set(titles)


@pytest.mark.parametrize(("count", "across"), [(2, 2), (3, 3), (4, 4), (5, 3), (6, 3), (7, 4), (9, 3), (13, 4)])
def test_pictures_of_a_prompt_are_in_rows_of_about_the_same_length(count: int, across: int) -> None:
    assert columns_of(count) == across


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
