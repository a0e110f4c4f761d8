from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowfactory.config.schema import RunConfig
from flowfactory.data import media
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.report.page import write_report
from flowfactory.runs.score_format import format_score, tell_evaluation
from flowfactory.runs.train import train

Trained = Callable[..., RunDirectory]
Invoke = Callable[..., tuple[int, str, str]]
NASTY = "<script>alert(1)</script> & \"double\" 'single' </pre>"


class Page(HTMLParser):
    """The elements, their attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def reported(directory: RunDirectory) -> Page:
    return Page(write_report(directory.path).read_text(encoding="utf-8"))


@pytest.fixture
def directory(trained: Trained) -> RunDirectory:
    return trained({"evaluation": {"every": 1}})


def test_the_page_needs_nothing_from_outside(directory: RunDirectory) -> None:
    page = reported(directory)
    links = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "data", "action"}]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert "style" not in [name for _, name, _ in page.attributes]
    assert not re.search(r"url\(|@import", directory.report.read_text())


def test_the_pictures_of_all_evaluations_are_on_the_page(directory: RunDirectory) -> None:
    page = reported(directory)
    shown = [base64.b64decode(value.partition(",")[2]) for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    kept = [directory.read_samples(iteration) for iteration in (0, 1, 2, 3)]
    assert shown[:8] == [item["path"].read_bytes() for same in zip(*kept, strict=True) for item in same]
    told = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    for item in kept[3]:
        assert f"before training: {item['prompt']}" in told
        assert f"after iteration 3: {item['prompt']}" in told
        assert f"bright {item['scores']['bright']:.2f}" in page.text
    (names,) = [value for _, name, value in page.attributes if name == "data-names"]
    assert names.split("|") == ["after iteration 1", "after iteration 2", "after iteration 3"]


def test_without_a_script_the_first_and_the_last_evaluation_are_seen(directory: RunDirectory) -> None:
    attributes = reported(directory).attributes
    hidden = [place for place, (_, name, _) in enumerate(attributes) if name == "hidden"]
    evaluations = [place for place, (_, name, _) in enumerate(attributes) if name == "data-evaluation"]
    assert [attributes[place][2] for place in evaluations] == ["0", "1", "2"] * 2
    assert [attributes[place][2] for place in evaluations if place + 1 in hidden] == ["0", "1"] * 2


def test_the_scores_before_and_after_are_on_top_with_their_errors(directory: RunDirectory) -> None:
    records = directory.records()
    before, after = (
        (r["eval/bright/mean"], r["eval/bright/std"] / r["eval/samples"] ** 0.5) for r in (records[0], records[-1])
    )
    told = f"{before[0]:.4f} ± {before[1]:.4f} → {after[0]:.4f} ± {after[1]:.4f}"
    text = reported(directory).text
    assert told in text
    assert f"{after[0] - before[0]:+.4f} ± {(before[1] ** 2 + after[1] ** 2) ** 0.5:.4f}" in text
    assert text.index(told) < text.index("3 of 3") < text.index("Same prompt, same noise")


def test_config_and_versions_are_on_the_page(directory: RunDirectory) -> None:
    page = reported(directory)
    assert directory.config.read_text() in page.text
    versions = json.loads(directory.facts.read_text())["versions"]
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # a package may not tell its build
    assert {"flowfactory", "torch", "peft", "numpy"} <= set(versions)
    assert all(f"{name}{version}" in page.text for name, version in versions.items())


def test_every_metric_of_the_run_is_drawn(directory: RunDirectory) -> None:
    drawn = " ".join(value for _, name, value in reported(directory).attributes if name in ("data-name", "data-y"))
    records = directory.records()
    beside = re.compile("iteration|eval/.*/std|eval/samples|reward/.*/(std|group_std)|drift/.*/std|drift/.*groups")
    names = {name for record in records for name in record if not beside.fullmatch(name)}
    assert len(names) > 30
    for name in names:
        figures = [record[name] for record in records if name in record]
        assert " ".join(f"{figure:.5g}" for figure in figures) in drawn, name


def test_what_drifted_is_told_on_top_and_in_its_part(directory: RunDirectory) -> None:
    assert "left where training began" not in reported(directory).text
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    for line in lines:
        line |= {"drift/heldout/luma": 0.4 + 0.2 * line["iteration"], "drift/heldout/luma/std": 0.1, "drift/heldout/groups": 32}
        line |= {"reward/bright/mean": 0.1 * line["iteration"], "advantage/bright/share": 1.0} if line["iteration"] else {}
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = reported(directory).text
    assert text.index("of what is drawn left where training began") < text.index("Same prompt")
    told = "by iteration 2 the brightness of held-out samples went from 0.4 to 0.8, 16.0 standard deviations, while bright rose"
    assert text.rindex("Drift") < text.index(told) < text.index("Colour entropy")


def test_prompts_are_text_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "nasty.txt").write_text(NASTY + "\n")
    directory = trained({"prompts": {"heldout": "nasty.txt", "negative": NASTY}})
    page = reported(directory)
    assert page.tags.count("script") == 1
    assert NASTY in page.text
    told = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert told[:2] == [f"before training: {NASTY}", f"after iteration 3: {NASTY}"]


def test_a_run_without_held_out_prompts_has_a_report_too(trained: Trained) -> None:
    page = reported(trained({"prompts": {"heldout": None}}))
    assert "Reward while training" in page.text
    assert "Same prompt, same noise" not in page.text


def test_a_run_that_has_not_begun_has_a_report_too(tmp_path: Path) -> None:
    assert "Config" in reported(RunDirectory(tmp_path)).text


def test_the_command_ends_with_scores_and_report_in_plain_lines(
    config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path
) -> None:
    code, out, err = invoke("run", config_file(), "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    progress = [line for line in lines if line.startswith("iteration ")]
    assert [line.split()[1] for line in progress] == ["1/3", "2/3", "3/3"]
    records = RunDirectory(tmp_path / "run").records()
    for line, record in zip(progress, records[1:], strict=True):
        assert f"bright {record['reward/bright/mean']:.4f}" in line
        assert f"loss {record['loss']:.3e}" in line
        assert "images/s" in line
    assert sum(line.startswith("preflight: ") for line in lines) == 4
    before, after = records[0]["eval/bright/mean"], records[-1]["eval/bright/mean"]
    assert lines[-2] == f"held-out bright: {before:.4f} before, {after:.4f} after"
    assert lines[-1] == f"report: {tmp_path / 'run/report.html'}"
    assert (tmp_path / "run/report.html").is_file()


def test_the_command_says_after_which_iteration_the_first_score_was(
    config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path
) -> None:
    path = config_file({"evaluation": {"every": 1, "at_start": False}})
    code, out, err = invoke("run", path, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    records = RunDirectory(tmp_path / "run").records()
    first, last = records[1]["eval/bright/mean"], records[-1]["eval/bright/mean"]
    assert out.splitlines()[-2] == f"held-out bright: {first:.4f} after iteration 1, {last:.4f} at the end"


def test_a_model_that_draws_videos_is_told_of_in_videos() -> None:
    assert tell_evaluation(3, 4, True, {"a": 0.25, "b": None}) == "held-out score after iteration 3, 4 videos: a 0.2500"
    assert tell_evaluation(0, 2, False, {"a": None}) == (
        "held-out score after iteration 0, 2 pictures: no reward applies to them"
    )
    assert tell_evaluation(1, 1, False, {"a": 0.25}) == "held-out score after iteration 1, 1 picture: a 0.2500"


def test_report_makes_the_page_anew(directory: RunDirectory, invoke: Invoke) -> None:
    code, out, err = invoke("report", directory.path)
    assert (code, out, err) == (0, f"{directory.report}\n", "")
    first = directory.report.read_text()
    directory.report.unlink()
    invoke("report", directory.path)
    assert directory.report.read_text() == first


def test_report_needs_the_run_directory_alone(directory: RunDirectory, invoke: Invoke, tmp_path: Path) -> None:
    for name in ("train.txt", "heldout.txt"):
        (tmp_path / name).unlink()
    directory.path.rename(tmp_path / "moved")
    code, out, _ = invoke("report", tmp_path / "moved")
    assert (code, out) == (0, f"{tmp_path / 'moved/report.html'}\n")
    assert "img" in Page((tmp_path / "moved/report.html").read_text()).tags


@pytest.mark.parametrize("command", [("report",), ("eval",), ("sample", "red")])
def test_a_folder_that_holds_no_run_is_refused(command: tuple[str, ...], invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke(command[0], tmp_path, *command[1:])
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path} is no run directory: it has no config.yaml\n"


def test_eval_gives_the_score_of_the_checkpoint(directory: RunDirectory, invoke: Invoke) -> None:
    scores = {record["iteration"]: record["eval/bright/mean"] for record in directory.records()}
    code, out, err = invoke("eval", directory.path)
    assert (code, err) == (0, "")
    path = str(directory.checkpoints / "000003")
    told = json.loads(out)
    assert {key for key in told if not key.startswith("drift/heldout/")} == {
        *("checkpoint", "eval/samples", "eval/bright/mean", "eval/bright/std"),
    }
    assert told["drift/heldout/luma"] == directory.records()[3]["drift/heldout/luma"]
    assert (told["checkpoint"], told["eval/samples"], told["eval/bright/mean"]) == (path, 2, scores[3])
    _, out, _ = invoke("eval", directory.path, "--checkpoint", "2")
    assert json.loads(out)["eval/bright/mean"] == scores[2]
    _, out, _ = invoke("eval", directory.path, "--set", "evaluation.members=3", "--set", "rewards.bright.scale=0")
    assert json.loads(out)["eval/samples"] == 6
    assert json.loads(out)["eval/bright/mean"] == 0


def test_eval_of_what_is_not_there_is_refused(directory: RunDirectory, invoke: Invoke) -> None:
    code, _, err = invoke("eval", directory.path, "--checkpoint", "1")
    assert (code, err) == (2, f"error: {directory.checkpoints} holds no checkpoint of iteration 1; there is 2, 3\n")
    code, _, err = invoke("eval", directory.path, "--set", "prompts.heldout=null")
    assert code == 2
    assert "prompts.heldout is not set; give one with --set prompts.heldout=FILE" in err


def test_sample_draws_with_the_runs_weights(directory: RunDirectory, invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke("sample", directory.path, "black", "orange", "--out", tmp_path / "drawn")
    assert (code, err) == (0, "")
    files = [Path(line) for line in out.splitlines()]
    assert files == [tmp_path / "drawn/000.png", tmp_path / "drawn/001.png"]
    # the held-out prompts in their order have the noise of the evaluation
    for file, kept in zip(files, directory.read_samples(3), strict=True):
        assert file.read_bytes() == kept["path"].read_bytes()


def test_sample_keeps_what_was_drawn_before(directory: RunDirectory, invoke: Invoke) -> None:
    _, first, _ = invoke("sample", directory.path, "black", "--count", "2")
    content = [Path(line).read_bytes() for line in first.splitlines()]
    assert len(set(content)) == 2
    _, second, _ = invoke("sample", directory.path, "black", "--checkpoint", "2")
    assert [Path(line).name for line in (first + second).splitlines()] == ["000.png", "001.png", "002.png"]
    assert [Path(line).read_bytes() for line in first.splitlines()] == content
    assert Path(second.strip()).read_bytes() not in content


def test_sample_takes_a_file_of_prompts_too(directory: RunDirectory, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"prompt": "black", "count": 3}\n')
    code, out, _ = invoke("sample", directory.path, "white", "--prompts", tmp_path / "more.jsonl")
    assert code == 0
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to draw: give a PROMPT, or a file with --prompts"),
        (("a", "--image", "none.png"), "no file none.png"),
        (("a", "--video", "none.mp4"), "no file none.mp4"),
        (("a", "--image", "train.txt"), "prompts: 'a' brings 1 images, and model 'toy' takes 0"),
    ],
)
def test_sample_refuses_what_it_cannot_draw(
    arguments: tuple[str, ...], sentence: str, directory: RunDirectory, invoke: Invoke
) -> None:
    code, out, err = invoke("sample", directory.path, *arguments)
    assert (code, out, err) == (2, "", f"error: {sentence}\n")


def test_a_video_is_a_clip_on_the_page(directory: RunDirectory) -> None:
    frames = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = {"bright": torch.tensor([0.5, 0.25])}
    for iteration in (0, 3):
        directory.write_samples(iteration, frames, ("one", NASTY), scores, 16)
    page = reported(directory)
    clips = [value for tag, name, value in page.attributes if (tag, name) == ("video", "src")]
    assert len(clips) == 4
    assert all(base64.b64decode(clip.removeprefix("data:video/mp4;base64,"))[4:8] == b"ftyp" for clip in clips)
    assert "controls" in [name for tag, name, _ in page.attributes if tag == "video"]


def test_a_dry_run_reads_the_prompts(config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path) -> None:
    path = config_file({"prompts": {"train": "broken.jsonl"}})
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n')
    code, _, err = invoke("run", path, "--dry-run")
    assert code == 2
    assert re.fullmatch(r"error: prompts .*broken\.jsonl line 1: 'prompt' is missing; there is text\n", err)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_written_pixel_for_pixel(channels: int, tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (channels, 3, 5))
    media.write_media(levels / 255, tmp_path / "p")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (5, 3)
        pixels = torch.tensor(list(picture.convert("RGB").tobytes())).reshape(3, 5, 3).permute(2, 0, 1)
    assert torch.equal(pixels, levels.expand(3, 3, 5))


def test_what_is_out_of_range_is_cut_to_it(tmp_path: Path) -> None:
    media.write_media(torch.tensor([[[-1.0, 2.0]]]), tmp_path / "p")
    with Image.open(tmp_path / "p.png") as picture:
        assert list(picture.convert("L").tobytes()) == [0, 255]


def test_a_place_that_cannot_be_written_to_is_refused(config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = invoke("run", config_file(), "--out", tmp_path / "file/run")
    told = "cannot be written to: Not a directory; see that it can be written to, or choose another --out"
    assert (code, err) == (2, f"error: output.dir: {tmp_path / 'file/run'} {told}\n")


def test_what_should_be_looked_at_first_is_on_the_page(directory: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory(tmp_path / "suspicious")
    shutil.copytree(directory.path, copy.path)
    assert "Warnings" not in reported(copy).text
    for number, (bright, held) in enumerate([(0.0, 0.5), (0.1, 0.6), (0.4, 0.2)]):
        told = {"reward/bright/mean": bright, "advantage/bright/share": 0.99, "advantage/dark/share": 0.01}
        told |= {"reward/bright/flat": 0.0, "reward/dark/flat": 0.0}
        copy.append({"iteration": 4 + number, **told, "eval/taste/mean": held, "eval/taste/std": 0.1, "eval/samples": 100})
    page = reported(copy)
    assert "while held-out taste fell from 0.6 (after iteration 5) to 0.2 (after 6): this is what reward hacking" in page.text
    assert re.search("reward 'bright' supplies (99|100)% of the advantage, and the others hardly train", page.text)
    assert "docs/when_it_does_not_learn.md#one-reward-dominates" in page.text
    assert page.text.index("Warnings") < page.text.index("Same prompt, same noise")
    for name in ("Training and held out together", "bright in training", "taste held out"):
        assert name in page.text
    assert "aggregate: gdpo}" in page.text
    written = copy.config.read_text()
    copy.config.write_text(written.replace("aggregate: sum", "aggregate: gdpo"))
    assert "of the advantage, and the others hardly train; change the weights, or look at how many" in reported(copy).text


def test_a_run_says_once_that_one_reward_supplies_nearly_all_of_the_advantage(
    load: Callable[..., RunConfig], tmp_path: Path
) -> None:
    said: list[str] = []
    two = {"loud": {"name": "bright", "scale": 100.0}, "quiet": {"name": "bright"}, "bright": None}
    train(load({"rewards": two}), say=said.append)
    assert [line for line in said if line.startswith("warning")] == [
        "warning: reward 'loud' supplies 99% of the advantage, and the others hardly train; advantages: {aggregate: gdpo} "
        "gives each its own scale, or change the weights (docs/when_it_does_not_learn.md#one-reward-dominates)"
    ]
    said.clear()
    train(load({"rewards": two, "advantages": {"aggregate": "gdpo"}}, tmp_path / "gdpo"), say=said.append)
    assert not [line for line in said if line.startswith("warning")]


@pytest.mark.parametrize(
    ("score", "written"),
    [
        (0.0, "0.0000"),
        (0.25, "0.2500"),
        (-0.001, "-0.0010"),
        (999999.0, "999999.0000"),
        (1e6, "1e+06"),
        (-1e300, "-1e+300"),
        (1.23456e-12, "1.235e-12"),
    ],
)
def test_a_score_is_written_with_four_digits_where_those_say_something(score: float, written: str) -> None:
    assert format_score(score) == written


def test_scores_of_any_size_are_readable_wherever_they_are_told(
    config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path
) -> None:
    rewards = {"huge": {"name": "bright", "scale": 1e30}, "tiny": {"name": "bright", "scale": 1e-12, "weight": 0.0}}
    file = config_file({"rewards": {**rewards, "bright": None}, "training": {"iterations": 1}})
    code, out, _ = invoke("run", file, "--out", tmp_path / "run")
    assert code == 0
    assert len(re.findall(r"huge:? -?\d(?:\.\d+)?e\+(?:29|30)", out)) == 4
    assert len(re.findall(r"tiny:? -?\d(?:\.\d+)?e-1[23]", out)) == 4
    assert max(map(len, out.splitlines())) < 200
    assert not re.search(r"\d{30}", Page((tmp_path / "run/report.html").read_text()).text)


def test_a_held_out_reward_that_falls_is_told_in_the_report_of_a_real_run(load: Callable[..., RunConfig]) -> None:
    changes: dict[str, Any] = {
        "evaluation": {"rewards": {"dark": {"name": "bright", "scale": -1.0}}, "every": 4, "members": 16},
        "training": {"iterations": 12, "updates": 1, "optimizer": {"lr": 0.05}},
    }
    directory = train(load(changes), say=lambda _: None)
    assert "bright rose from" in reported(directory).text
    assert "while held-out dark fell from" in reported(directory).text
