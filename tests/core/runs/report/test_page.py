from __future__ import annotations

import html
import json
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, write_samples
from PIL import Image

from flowfactory.runs.report import documentation, gallery, small_copies
from flowfactory.runs.report.page import write_report
from flowfactory.runs.report.run_files import read_run
from flowfactory.runs.report.verdict import changes, duration


def page_of(path: Path) -> str:
    return html.unescape(re.sub("<[^>]*>", "", write_report(path).read_text()))


def test_the_change_has_the_standard_errors_of_both_ends(tmp_path: Path) -> None:
    prompts = {f"prompt {i}": 0.0 for i in range(25)}
    run = make_run(tmp_path / "run", {0: prompts, 10: dict.fromkeys(prompts, 1.0), 20: dict.fromkeys(prompts, 0.5)})
    (change,) = changes(read_run(run, print))
    assert (change.before.error, change.after.error) == (0.1, 0.1)  # 0.5 / sqrt(25)
    assert change.difference.error == pytest.approx(0.1 * 2**0.5)
    assert change.difference.value == 0.5
    text = page_of(run)
    assert "+0.5000 ± 0.1414, more than chance explains; best" in text
    assert '<strong class="gained">+0.5000</strong>' in (run / "report.html").read_text()
    assert "0.0000 ± 0.1000 → 0.5000 ± 0.1000" in text
    assert "best 1.0000 after iteration 10" in text
    assert "20 of 20" in text
    assert "pictures drawn240" in text  # 20 iterations of 4 groups of 3
    assert "time in iterations1 min 0 s" in text


def test_a_difference_within_two_standard_errors_is_called_chance(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: {"one": 0.0}, 20: {"one": 0.5}})
    assert "+0.5000 ± 0.7071, within noise: chance alone may do as much" in page_of(run)
    assert 'class="gained"' not in (run / "report.html").read_text()


def test_the_title_says_what_the_page_is(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "c", {})).read_text()
    assert "<title>Run c · flowfactory report</title>" in text
    assert "<h1>Run c</h1>" in text


@pytest.mark.parametrize(
    ("seconds", "told"), [(3.4, "3 s"), (303.0, "5 min 3 s"), (7_500.0, "2 h 5 min"), (3_600_000.0, "1,000 h 0 min")]
)
def test_a_duration_is_told_in_two_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_each_finding_is_linked_to_where_the_documentation_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    documentation.address.cache_clear()
    page = "docs/when_it_does_not_learn.md#no-kl"
    monkeypatch.setattr(documentation, "address", lambda: "https://example.org/docs/")
    assert documentation.link_of(page) == '<a href="https://example.org/docs/when_it_does_not_learn.html#no-kl">no-kl</a>'
    monkeypatch.setattr(documentation, "address", lambda: None)
    assert documentation.link_of(page) == f"<code>{page}</code>"


def test_gains_of_each_prompt_are_there_to_be_sorted_by(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: {"a": 0.5, "b": 0.25}, 20: {"a": 0.25, "b": 1.0}})
    assert re.findall('data-gains="(.*?)"', write_report(run).read_text()) == ["-0.25", "0.75"]


def test_a_prompt_that_one_evaluation_lacks_keeps_its_own_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: {"a": 0.0, "b": 0.0}, 20: {"b": 1.0, "c": 1.0}})
    told = re.findall('<img alt="(.*?)"', write_report(run).read_text())
    assert told == ["before training: b", "after iteration 20: b", "after iteration 20: c", "before training: a"]


@pytest.mark.parametrize("small", [True, False], ids=["small copies", "none"])
def test_small_copies_are_shown_where_there_is_no_time_to_decode_the_whole_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    run = make_run(tmp_path / "run", {i: {"a": 0.0, "b": 1.0} for i in range(21)}, side=400)
    for picture in run.glob("samples/*/*.png") if small else ():
        small_copies.write(picture)
    monkeypatch.setattr(gallery, "MOST_PIXELS", 5 * 2 * 400 * 400)
    text = page_of(run)
    assert ("5 of 21 evaluations" in text) != small
    embedded = re.findall('src="data:image/webp;base64,(.*?)"', (run / "report.html").read_text())
    assert len(embedded) == 2 * (21 if small else 5)
    sides = {max(Image.open(BytesIO(b64decode(each))).size) for each in embedded}
    assert sides == ({small_copies.SIDE} if small else {400})


def test_a_small_picture_has_no_smaller_copy_and_leaves_none_of_a_larger_one(tmp_path: Path) -> None:
    picture = tmp_path / "000.png"
    Image.new("RGB", (300, 100)).save(picture)
    small_copies.write(picture)
    with Image.open(small_copies.path_of(picture)) as copy:
        assert (copy.format, copy.size) == ("WEBP", (176, 59))
    Image.new("RGB", (64, 64)).save(picture)
    small_copies.write(picture)
    assert not small_copies.path_of(picture).exists()


def test_more_pictures_than_a_page_has_room_and_time_for_leave_out_evaluations_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", {i: {"a": 0.0, "b": 1.0} for i in range(21)}, side=16)
    monkeypatch.setattr(gallery, "MOST_PIXELS", 5 * 2 * 16 * 16)
    text = page_of(run)
    assert "5 of 21 evaluations are on this page, evenly spread." in text
    (names,) = re.findall('data-names="(.*?)"', (run / "report.html").read_text())
    assert names.split("|") == [f"after iteration {i}" for i in (5, 10, 15, 20)]


def test_pictures_are_shrunk_to_what_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", {i: {"a": 0.0, "b": 1.0} for i in range(4)})
    for file in run.rglob("*.png"):  # noise, of which no compression makes less
        noise(file, 256)
    monkeypatch.setattr(gallery, "MOST_CHARACTERS", 8 * 6000)
    said: list[str] = []
    text = write_report(run, said.append).read_text()
    pictures = re.findall('src="data:image/webp;base64,(.*?)"', text)
    assert len(pictures) == 8
    assert sum(map(len, pictures)) <= 8 * 6000
    assert not said


def noise(file: Path, side: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(file)


def test_the_best_and_the_worst_are_shown_with_their_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    write_samples(run / "samples/training", {"a fine one": 0.75, "a poor one": 0.25}, 3)
    index = run / "samples/training/index.json"
    written = json.loads(index.read_text())
    extra = [{"iteration": 20, "which": "best"}, {"iteration": 20, "which": "worst"}]
    index.write_text(json.dumps([each | more for each, more in zip(written, extra, strict=True)]))
    text = page_of(run)
    assert (
        text.index("Highest advantage") < text.index("bright 0.75") < text.index("a fine one") < text.index("Lowest advantage")
    )
    assert text.index("Lowest advantage") < text.index("bright 0.25") < text.index("a poor one")
    assert "iteration 20 to train on" in text
