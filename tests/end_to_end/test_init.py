"""A first config: right for every choice of components, never over a file that is there, and as editors read it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from family_cases import CASES
from json_schema import problems
from record_files import write_records
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.config.loading import load
from flowfactory.config.yaml import parse_yaml
from flowfactory.discovery.catalogue import Catalogue
from flowfactory.discovery.discover import discover
from flowfactory.errors import UserError
from flowfactory.runs.starter.choice import choose
from flowfactory.runs.starter.fitting import GIB, LEVELS, at_level, first_that_fits
from flowfactory.runs.starter.starter import Starter, Wish, make_starter

CARD = 24 * GIB
RECORDS = ("sft", "offline-dpo")
"""Algorithms that learn from records, which nobody can make up."""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return discover()


def starter(catalogue: Catalogue, model: str, algorithm: str, reward: str) -> Starter:
    wish = Wish("x.yaml", None, None, CARD, assumed=True)
    return make_starter(catalogue, choose(catalogue, model, algorithm, [reward]), wish, lambda sentence: None)


def check_starter(catalogue: Catalogue, folder: Path, model: str, algorithm: str, reward: str) -> bool:
    """Whether it is written; it is not where the reward looks at videos and the model draws pictures."""
    if reward.startswith("video-") and not model.startswith("wan-"):
        with pytest.raises(UserError, match="looks at videos, and this run draws pictures"):
            starter(catalogue, model, algorithm, reward)
        return False
    if algorithm in RECORDS:
        with pytest.raises(UserError, match=f"algorithm {algorithm} learns from pictures or videos that prompts bring"):
            starter(catalogue, model, algorithm, reward)
        return False
    if algorithm == "opd":
        with pytest.raises(UserError, match="algorithm opd wants teachers, which only you have"):
            starter(catalogue, model, algorithm, reward)
        return False
    made = starter(catalogue, model, algorithm, reward)
    for name, text in made.prompts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "x.yaml").write_text(made.text, encoding="utf-8")
    config = load(folder / "x.yaml")
    assert (config.model.name, config.algorithm.name) == (model, algorithm)  # type: ignore[attr-defined]
    assert [each.name for each in config.rewards.values()] == [reward]  # type: ignore[attr-defined]
    return True


def diagonal(catalogue: Catalogue) -> list[tuple[str, str, str]]:
    """Every model, every algorithm and every reward, beside others of the two other kinds; none that estimates memory."""
    known = {kind: sorted(set(catalogue.components[kind]) - {"tiny"}) for kind in ("model", "algorithm", "reward")}
    most = max(map(len, known.values()))
    return [tuple(known[kind][i % len(known[kind])] for kind in known) for i in range(most)]  # type: ignore[misc]


def test_each_component_begins_with_a_config_that_is_right(catalogue: Catalogue, tmp_path: Path) -> None:
    written = [check_starter(catalogue, tmp_path, *chosen) for chosen in diagonal(catalogue)]
    assert sum(written) >= 14  # the others want records, teachers, or videos where pictures are drawn


@pytest.mark.soak
def test_every_choice_begins_with_a_config_that_is_right(catalogue: Catalogue, tmp_path: Path) -> None:
    kinds = [sorted(catalogue.components[kind]) for kind in ("model", "algorithm", "reward")]
    written = [check_starter(catalogue, tmp_path, *chosen) for chosen in itertools.product(*kinds)]
    assert sum(written) > 0.8 * len(written)


def command(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def of_no_example(folder: Path) -> tuple[str, ...]:
    """Options of a start with a model that has no bundled example, and so no prompts of its own."""
    plugin = folder / "guided.py"
    plugin.write_text("from flowfactory.testing.two_parameter import register_components  # noqa: F401\n")
    return ("--model", "guided", "--algorithm", "policy-gradient", "--reward", "bright", "--plugin", str(plugin))


def test_placeholder_prompts_are_called_that_and_no_group_lacks_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command("init", *of_no_example(tmp_path), "--memory", "24GB", "--out", "guided.yaml")
    prompts = (tmp_path / "guided-prompts.txt").read_text().splitlines()
    text = (tmp_path / "guided.yaml").read_text()
    assert load(tmp_path / "guided.yaml").sampling.groups == len(prompts) == 4
    told = "are placeholders; write many of your own there, and set sampling.groups to up to 16."
    assert f"# Prompts: the 4 in guided-prompts.txt {told}" in text
    (tmp_path / "sub").mkdir()
    (tmp_path / "mine.txt").write_text("\n".join(map(str, range(40))))
    command("init", *of_no_example(tmp_path), "--prompts", "sub/../mine.txt", "--out", "x.yaml")
    assert load(tmp_path / "x.yaml").sampling.groups == 16
    assert "# Prompts:" not in (tmp_path / "x.yaml").read_text()
    assert f"train: {tmp_path.resolve()}/mine.txt" in (tmp_path / "x.yaml").read_text()


@pytest.mark.parametrize("algorithm", RECORDS)
def test_records_of_ones_own_are_learned_from_and_rewards_score_what_is_held_out(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path, ("target", "chosen", "rejected"))
    with pytest.raises(UserError, match="--prompts F"):
        command("init", "--model", "tiny", "--algorithm", algorithm)
    assert not list(tmp_path.glob("tiny-*"))
    command("init", "--model", "tiny", "--algorithm", algorithm, "--prompts", "records.jsonl", "--out", "x.yaml")
    config = load(tmp_path / "x.yaml")
    assert config.rewards == {}
    assert [*config.evaluation.rewards] == ["scene"]
    assert config.prompts.heldout == tmp_path / "x-heldout.txt"
    assert config.sampling.groups == 5
    text = (tmp_path / "x.yaml").read_text()
    assert f"# {algorithm} on tiny, evaluated by scene: written" in text
    assert "group_size" not in text
    checked = command("check", "x.yaml")
    assert checked[0] == 0
    warned = [line for line in checked[1].splitlines() if line.startswith("warning")]
    assert all("smaller than is drawn" in line for line in warned), "those that the test makes are"


def test_guidance_is_written_for_a_model_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = "# Guidance: set sampling.guidance to that which the model will be used with, see docs/guidance"
    command("init", *of_no_example(tmp_path), "--out", "x.yaml")
    text = (tmp_path / "x.yaml").read_text()
    assert told in text
    assert "\n  guidance: 1.0 " in text
    command("init", "--model", "flux1", "--algorithm", "grpo", "--reward", "jpeg-size", "--out", "distilled.yaml")
    assert told not in (tmp_path / "distilled.yaml").read_text()


def test_nothing_is_overwritten_and_the_schema_holds_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command("init", "--model", "flux1", "--algorithm", "grpo", "--reward", "ocr")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"flux1-grpo.yaml", "flux1-grpo-prompts.txt", "flux1-grpo-heldout.txt", "flowfactory.schema.json"}
    first, *_ = files["flux1-grpo.yaml"].decode().splitlines()
    assert first == "# yaml-language-server: $schema=flowfactory.schema.json"
    assert "24 GB is the default" in files["flux1-grpo.yaml"].decode()
    schema = json.loads(files["flowfactory.schema.json"])
    raw: Any = parse_yaml(files["flux1-grpo.yaml"].decode(), "flux1-grpo.yaml")
    assert problems(raw, schema) == []
    assert problems({**raw, "algorithm": "grpo"}, schema) == [], "a name alone is right, too"
    assert problems({**raw, "algorithm": "gpro"}, schema) != []
    assert problems({**raw, "sampling": {"stepz": 3}}, schema) != []
    with pytest.raises(UserError, match=r"flux1-grpo\.yaml is there already, and nothing is overwritten"):
        command("init", "--model", "flux1", "--algorithm", "grpo", "--reward", "ocr")
    (tmp_path / "flowfactory.schema.json").write_text("mine")
    command("init", "--model", "flux1", "--reward", "ocr", "--algorithm", "nft", "--memory", "80GB")
    assert (tmp_path / "flowfactory.schema.json").read_text() == "mine"
    (other,) = tmp_path.glob("flowfactory-*.schema.json")
    assert (tmp_path / "flux1-nft.yaml").read_text().startswith(f"# yaml-language-server: $schema={other.name}\n")
    assert {name: (tmp_path / name).read_bytes() for name in files if "schema" not in name} == {
        name: content for name, content in files.items() if "schema" not in name
    }


def test_without_a_terminal_it_lists_and_never_waits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flowfactory", "init"],
        stdin=subprocess.PIPE,  # which nobody writes to
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {"models:", "algorithms:", "rewards:"} <= set(done.stdout.splitlines())
    assert "choose with flowfactory init --model NAME" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fits", range(9))
def test_the_first_level_that_fits_is_found_with_few_estimates(fits: int) -> None:
    asked: list[int] = []

    def holds(level: int) -> bool:
        asked.append(level)
        return level >= fits

    assert first_that_fits(8, holds) == (fits if fits < 8 else None)
    assert len(asked) == len(set(asked)) <= 4


@pytest.mark.soak  # some ten estimates at the size of released checkpoints: four minutes
def test_a_smaller_card_gets_a_leaner_config(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = CASES["flux1"].build(tmp_path / "checkpoint")
    schedule = folder / "scheduler" / "scheduler_config.json"
    # init draws at the sizes of released checkpoints, for which a shift of 64 tokens overflows
    schedule.write_text(json.dumps({**json.loads(schedule.read_text()), "max_image_seq_len": 4096}))
    found = []
    for card in (CARD, GIB + GIB // 1024, 1):
        wish = Wish("x.yaml", str(folder), None, card, assumed=False)
        found.append(make_starter(catalogue, choose(catalogue, "flux1", "nft", ["jpeg-size"]), wish, lambda s: None).fitted)
    whole, lean, none = found
    assert (whole.fits, none.fits) == (True, False)
    assert "activation_checkpointing" not in whole.raw["training"]
    assert none.raw["distributed"] == {"offload": True}
    assert whole.sentence.startswith("estimated to take 2.5 GiB of a GPU's 24 GiB")
    assert "does not fit" in none.sentence
    assert lean.raw["sampling"]["batch_size"] <= whole.raw["sampling"]["batch_size"]


def test_each_level_takes_more_away(catalogue: Catalogue) -> None:
    from flowfactory.config.component_slots import config_class

    model = config_class(catalogue.find("model", "flux1"))
    raw = {"model": {"train": {"lora": {}}}, "sampling": {"batch_size": 3}, "training": {"batch_size": 8}}
    levels = [at_level(raw, number, model) for number in range(len(LEVELS))]
    assert levels[0] == raw
    assert [level["sampling"]["batch_size"] for level in levels] == [3, 3, 3, 1, 1, 1, 1], "never more than before"
    assert at_level({**raw, "model": {"train": "full"}}, 6, model)["model"].get("quantize") is None
