"""What people write and is wrong, from ``wrong_configs.yaml``, each with every line that it gets.

An entry has ``write``, laid over BASE (a mapping with ``name`` replaces, null takes away), or ``set``, as after --set; and
``says``, the lines of the error without the file, or ``warns``, the warnings of a config that runs. ``reads: prompts`` marks
what only the prompt files can tell. Nothing here reads weights. {folder} is where the files are.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

import flowfactory_tiny
from flowfactory.config import synonyms
from flowfactory.config.checking import check
from flowfactory.config.component_slots import schema_type
from flowfactory.config.findings import WrongConfig
from flowfactory.config.idle_keys import idle_keys, idle_keys_of_prompts
from flowfactory.config.overrides import apply_override
from flowfactory.config.wording import alternatives, is_model
from flowfactory.config.yaml import parse_yaml
from flowfactory.discovery.catalogue import Catalogue
from flowfactory.discovery.discover import discover
from flowfactory.errors import RunError, UserError
from flowfactory.training.prompts import prepare_prompts
from flowfactory.training.setup import prepare_run

ENTRIES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("wrong_configs.yaml").read_text(encoding="utf-8"))
BASE: dict[str, Any] = {
    "model": {"name": "tiny"},
    "algorithm": {"name": "grpo"},
    "rewards": {"small": {"name": "jpeg-size"}},
    "prompts": {"train": "train.txt", "heldout": "heldout.txt"},
    "sampling": {"groups": 4, "group_size": 4, "size": [32, 32], "dynamics": {"name": "flow-sde"}},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return discover()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("train.txt", "heldout.txt"):
        (folder / name).write_text("a small red circle\n")
    (folder / "labels.jsonl").write_text('{"prompt": "a", "rewards": ["smal"]}\n')
    (folder / "watched.jsonl").write_text('{"prompt": "a", "rewards": ["watched"]}\n')
    (folder / "list.txt").write_text('[\n  {"prompt": "a"},\n]\n')
    (folder / "negative.jsonl").write_text('{"prompt": "a", "negative_prompt": "blurry"}\n{"prompt": "b"}\n')
    (folder / "keys.jsonl").write_text('{"prompt": "a", "Negative": "blurry", "image-path": "c.png"}\n')
    (folder / "misspelt.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "Videos": "c.mp4"}\n')
    (folder / "empty.txt").write_text("")
    for name in ("text", "people"):
        (folder / f"{name}.safetensors").touch()
    (folder / "folder").mkdir()
    return folder


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if value is None and key in result:
            del result[key]
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict) and "name" not in value:
            result[key] = overlaid(result[key], value)
        else:
            result[key] = value
    return result


def said(entry: Mapping[str, Any], catalogue: Catalogue, folder: Path) -> tuple[list[str], list[str]]:
    """The lines of the error, and the warnings."""
    text = str(entry.get("write", "{}")).replace("{folder}", str(folder))
    sets = entry.get("set", [])
    of_prompts: list[str] = []
    try:
        raw = overlaid(BASE, parse_yaml(text, "config.yaml"))
        for assignment in sets:
            raw = apply_override(raw, assignment)
        try:
            config = check(raw, catalogue, folder)
        except WrongConfig as error:
            raise UserError(*error.describe("config.yaml", sets)) from error
        if entry.get("reads") == "prompts":
            of_prompts = list(idle_keys_of_prompts(config, [*itertools.chain(*prepare_prompts(config))]))
    except UserError as error:
        lines = [line.replace(str(folder), "{folder}") for line in str(error).splitlines()]
        return [line.removeprefix("config.yaml: ") for line in lines], []
    return [], [*idle_keys(config), *of_prompts]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.get("write") or entry.get("set")))
def test_each_is_told_before_any_weight_is_read(
    entry: dict[str, Any], catalogue: Catalogue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # where --set is typed
    assert said(entry, catalogue, folder) == (entry.get("says", []), entry.get("warns", []))


def test_there_are_two_hundred_and_none_is_silent() -> None:
    assert len(ENTRIES) >= 200
    assert all(entry.get("says") or entry.get("warns") for entry in ENTRIES)
    assert len({str((entry.get("write"), entry.get("set"))) for entry in ENTRIES}) == len(ENTRIES)


def test_what_they_are_laid_over_is_right(catalogue: Catalogue, folder: Path) -> None:
    assert said({}, catalogue, folder) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        "{sampling: {ema: power}, evaluation: {ema: linear}, training: {iterations: 1}}",
        "{sampling: {ema: warmup-cosine}, training: {iterations: 10, kept_on: host}}",
        "{evaluation: {ema: {name: piecewise-linear, points: [[98, 1], [99, 0.9]]}}}",
        "{sampling: {ema: {name: piecewise-linear, points: [[99, 0], [100, 1]]}, steps: 10}, training: {iterations: 101}}",
        "{algorithm: {name: grpo, kl: 0.1}, training: {kept_on: host, timesteps_per_forward: 10}}",
        "{algorithm: {name: nft, old: {name: constant, decay: 0}}, training: {kept_on: host, timesteps_per_forward: 2}}",
        "{evaluation: {pictures: 4}}",
        "{sampling: {merge_adapters: never}, training: {autocast: false}, device: auto}",
        "{sampling: {merge_adapters: never}, training: {autocast: false, precision: bf16}}",
    ],
)
def test_what_does_something_is_not_warned_of(text: str, catalogue: Catalogue, folder: Path) -> None:
    assert said({"write": text}, catalogue, folder) == ([], [])


def test_lora_targets_are_checked_where_there_are_no_weights_at_all(catalogue: Catalogue, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(flowfactory_tiny.FOLDER / "pipeline", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    model = f"{{name: tiny, path: {tmp_path / 'bare'}, train: {{lora: {{targets: [to_q, to_qq]}}}}}}"
    told, _ = said({"write": f"model: {model}"}, catalogue, folder)
    assert told == ["model.train.lora.targets: no layer's name ends in 'to_qq'; did you mean 'to_q'?"]
    assert said({"write": f"model: {model.replace(', to_qq', '')}"}, catalogue, folder) == ([], [])
    assert said({"write": f"model: {model.replace('to_qq', 'pos_embed.proj')}"}, catalogue, folder) == ([], [])  # a convolution
    told, _ = said({"write": f"model: {model.replace('to_qq', 'to_out')}"}, catalogue, folder)
    assert told == [
        "model.train.lora.targets: 'to_out' names transformer_blocks.0.attn.to_out (ModuleList), which LoRA cannot adapt; "
        "write to_out.0 instead"
    ]


def test_a_library_that_is_missing_is_told_with_the_command_that_installs_it(
    catalogue: Catalogue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfactory_rewards.dependencies.find_spec", lambda module: None)
    rewards = "{a: {name: clip, path: a/b}, b: {name: group-rank, of: {name: ocr}}, c: {name: image-quality, metric: blur}}"
    told, _ = said({"write": f"rewards: {rewards}"}, catalogue, folder)
    assert [line for line in told if "pip" in line] == [
        "rewards.a: reward 'clip' needs transformers: pip install 'flowfactory-rewards[clip]'",
        "rewards.b: reward 'ocr' needs rapidocr: pip install 'flowfactory-rewards[ocr]'",
        "rewards.c: reward 'image-quality' needs skimage: pip install 'flowfactory-rewards[image-quality]'",
    ]


def test_a_server_that_is_not_there_is_told_before_the_models_weights_are_read(
    catalogue: Catalogue, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(flowfactory_tiny.FOLDER / "pipeline", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    away = {"name": "remote", "url": "http://127.0.0.1:9", "retries": 0}
    changes = {"model": {"name": "tiny", "path": str(tmp_path / "bare")}, "rewards": {"a": away}}
    config = check(overlaid(BASE, changes), catalogue, folder)
    with pytest.raises(RunError, match=r"^reward 'a': http://127\.0\.0\.1:9: "):
        prepare_run(config)
    with pytest.raises(UserError, match="bare"):  # where nothing is to be scored, the missing weights are told
        prepare_run(config, scores=False)


def test_every_synonym_means_something_that_is_there(catalogue: Catalogue) -> None:
    schema = schema_type(catalogue)
    ends = {path.rpartition(".")[2] for path in key_paths(schema)}
    for word, targets in synonyms.KEYS.items():
        assert synonyms.plain(word) == word
        assert all(synonyms.exists(schema, target) if "." in target else target in ends for target in targets), word
    taken = {*choices(schema), "cuda"}
    for word, targets in synonyms.VALUES.items():
        assert set(targets) <= taken, word


def key_paths(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield before + key
        for branch in (*alternatives(field.annotation), *rewards_of(field.annotation)):
            if is_model(branch):
                yield from key_paths(branch, f"{before}{key}.")


def rewards_of(annotation: Any) -> list[Any]:
    return [branch for whole in alternatives(annotation) for inner in get_args(whole)[1:] for branch in alternatives(inner)]


def choices(model: type[BaseModel]) -> set[str]:
    """All words that some key takes."""
    found: set[str] = set()
    for field in model.model_fields.values():
        for branch in (*alternatives(field.annotation), *rewards_of(field.annotation)):
            found |= choices(branch) if is_model(branch) else set(get_args(branch)) if get_origin(branch) is Literal else set()
        found |= set(field.examples or ())
    return found
