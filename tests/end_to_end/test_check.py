"""What ``check`` says of a config: everything at once, and counts that are those of the run."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_cases import CASES, prompts
from record_files import write_records
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.cli.memory_size import parse_memory
from flowfactory.config.loading import validate
from flowfactory.errors import UserError
from flowfactory.runs.check.card import may_have_card
from flowfactory.runs.check.checkup import check_run
from flowfactory.runs.check.encoding import count_encoding
from flowfactory.runs.check.servers import Server, unreachable
from flowfactory.runs.check.sizes import count_sizes
from flowfactory.runs.train import train
from flowfactory.testing import ForwardCount, two_parameter
from flowfactory.training.prompts import prepare_prompts
from flowfactory.training.setup import prepare_run

Write = Callable[..., Path]
BASE: dict[str, Any] = {
    "model": {"name": "tiny", "train": {"lora": {"rank": 2}}},
    "algorithm": "nft",
    "rewards": {"small": "jpeg-size"},
    "prompts": {"train": "prompts.txt", "heldout": "heldout.txt"},
    "sampling": {"groups": 2, "group_size": 4, "size": [32, 32], "steps": 3, "dynamics": "ode"},
    "training": {"iterations": 5},
    "evaluation": {"every": 2},
    "device": "cpu",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na red circle\n")
    (tmp_path / "heldout.txt").write_text("a green ring\n")

    def config(**changes: Any) -> Path:
        (tmp_path / "config.yaml").write_text(json.dumps({**BASE, **changes}))
        return tmp_path / "config.yaml"

    return config


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_everything_that_is_wrong_is_told_at_once_by_check_and_by_run(write: Write) -> None:
    judge = {"name": "remote", "url": f"http://127.0.0.1:{closed_port()}"}
    file = write(rewards={"small": "jpeg-size", "judge": judge}, seed=-1, samplign={}, distributed={"shard": 3})
    found = check_run(file, ["training.itertions=3"])
    assert [told.partition(";")[0] for told in found.errors] == [
        "--set training.itertions: unknown key",
        "config.yaml: seed: got -1",
        "config.yaml: samplign: unknown key",
        "distributed: shard 3 and replicate auto do not divide 1 rank",
        f"rewards.judge.url: {judge['url']} cannot be reached: Connection refused",
    ]
    checked = CliRunner().invoke(app, ["check", str(file), "--set", "training.itertions=3", "--json"])
    assert checked.exit_code == 2
    assert json.loads(checked.output)["errors"] == found.errors
    ran = CliRunner().invoke(app, ["run", str(file), "--set", "training.itertions=3"])
    assert isinstance(ran.exception, UserError)
    assert list(ran.exception.sentences) == found.errors


def test_what_is_wrong_with_prompts_is_told_beside_wrong_keys(write: Write, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "image": "none.png"}\n')
    found = check_run(write(prompts={"train": "prompts.jsonl", "heldout": "heldout.txt"}, seed=-1))
    assert found.errors[0].startswith("config.yaml: seed: got -1")
    assert any("none.png" in told or "takes no" in told for told in found.errors[1:])


def test_what_is_missing_is_told_once(write: Write, tmp_path: Path) -> None:
    (tmp_path / "scored.jsonl").write_text('{"prompt": "a", "rewards": ["small"]}\n')
    file = write(algorithm="tdm-r1", rewards={}, prompts={"train": "scored.jsonl"})
    assert check_run(file).errors == ["config.yaml: rewards: got {}; give a mapping from labels to rewards"]
    file = write(algorithm="sft", rewards={}, prompts={"train": "prompts.txt"}, training={"keep_graphs": True})
    told = check_run(file).errors
    assert [line.partition(":")[0] for line in told] == ["config.yaml", "prompts.train"], told


def test_records_are_counted_and_read_of_held_out_prompts_too(write: Write, tmp_path: Path) -> None:
    records = write_records(tmp_path)
    drawn = {"groups": 6, "size": [4, 4], "steps": 3}
    found = check_run(write(algorithm="sft", rewards={}, prompts={"train": records.name}, sampling=drawn))
    assert any(
        told.startswith("sampling.groups 6: there are 5 prompts, so that an iteration learns") for told in found.warnings
    )
    (tmp_path / "broken.png").write_bytes((tmp_path / "0-target.png").read_bytes()[:-20])
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "a", "target": "broken.png"}\n')
    found = check_run(write(algorithm="sft", rewards={}, prompts={"train": records.name, "heldout": "heldout.jsonl"}))
    assert any("broken.png: cannot be read" in told for told in found.errors), found.errors


def test_a_right_config_exits_with_0_and_with_strict_warnings_count(write: Write) -> None:
    file = write()
    done = CliRunner().invoke(app, ["check", str(file)])
    assert (done.exit_code, "nothing is wrong" in done.output) == (0, True)
    idle = ["check", str(file), "--set", "prompts.negative=ugly"]
    done = CliRunner().invoke(app, [*idle, "--json"])
    assert done.exit_code == 0
    assert "prompts.negative does nothing" in json.loads(done.output)["warnings"][0]
    assert CliRunner().invoke(app, [*idle, "--strict"]).exit_code == 2


def test_more_mistakes_are_told_than_a_run_shows(write: Write) -> None:
    found = check_run(write(**{f"wrong{number}": 1 for number in range(30)}))
    assert len(found.errors) == 30


@pytest.mark.parametrize(
    ("algorithm", "dynamics"),
    [
        ({"name": "nft", "kl": 0}, "heun"),
        ({"name": "grpo"}, {"name": "flow-sde", "num_sde_steps": 2}),
        ({"name": "flash-grpo"}, {"name": "flow-sde", "num_sde_steps": 1}),
        ({"name": "dpo"}, "ode"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_the_forwards_are_those_of_the_run(
    algorithm: dict[str, Any], dynamics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    sampling = {"groups": 2, "group_size": 4, "steps": 4, "dynamics": dynamics, "batch_size": 4}
    raw = two_parameter.settings(tmp_path, algorithm, sampling=sampling, training={"iterations": 3, "epochs": 2})
    config, counted = validate(raw), ForwardCount()
    sizes = count_sizes(config, *prepare_prompts(config))
    train(config, observers=[counted], say=lambda _: None)
    found = counted.iterations[2]
    assert (sizes.drawn, sizes.learned) == (found["sample"], found["train"])
    assert (sizes.samples, sizes.iterations) == (8, 3)
    assert sizes.steps == 2 * config.training.updates


@pytest.mark.parametrize(
    ("iterations", "every", "at_start", "held", "times"),
    [(5, 2, True, True, 4), (4, 2, True, True, 3), (4, 0, False, True, 1), (4, 9, True, True, 2), (4, 2, True, False, 0)],
)
def test_evaluations_are_counted(
    iterations: int, every: int, at_start: bool, held: bool, times: int, write: Write, tmp_path: Path
) -> None:
    evaluation = {"every": every, "at_start": at_start, "members": 3, "steps": 7}
    file = write(training={"iterations": iterations}, evaluation=evaluation)
    config = validate(json.loads(file.read_text()), folder=tmp_path)
    train, heldout = prepare_prompts(config)
    sizes = count_sizes(config, train, heldout if held else ())
    assert (sizes.evaluations, sizes.evaluated) == (times, 3 * 7 * held)


@pytest.mark.parametrize(
    "name",
    ["tiny", "chroma", "flux1", "hunyuan-video-1.5", "krea2", "lumina2", "sana", "z-image", "wan-t2v", "qwen-image"],
)
def test_encoded_prompts_take_about_as_many_bytes_as_is_told(name: str, write: Write, tmp_path: Path) -> None:
    config = write()
    if name != "tiny":
        case = CASES[name]
        size = list(case.size)
        options = {"name": case.name, "path": str(case.build(tmp_path / "checkpoint")), **case.options}
        sampling = {**BASE["sampling"], "size": size[:2], **({"frames": size[2]} if size[2:] else {}), "steps": 3}
        config = write(model=options, sampling=sampling, prompts={"train": str(prompts(case, tmp_path))})
    told = validate(json.loads(config.read_text()), folder=tmp_path)
    train, heldout = prepare_prompts(told)
    found = count_encoding(told, train, heldout, "float32")
    prepare_run(told)
    files = [file for file in (tmp_path / "cache" / "conditions").rglob("*") if file.is_file() and file.stat().st_size > 100]
    assert found.prompts == len(files)
    real = sum(file.stat().st_size for file in files)
    assert found.size is not None
    if name in ("tiny", "flux1", "wan-t2v"):
        assert found.size == pytest.approx(real, rel=0.1)
    else:  # of texts as long as they are
        assert real <= found.size


def test_prompts_that_are_encoded_as_training_comes_to_them_are_told_of(write: Write) -> None:
    def told(ahead: Any) -> str:
        checked = CliRunner().invoke(app, ["check", str(write()), "--set", f"prompts.encode_ahead={ahead}"])
        lines = " ".join(checked.output.split())
        return lines.partition("encoded prompts ")[2].partition(" about")[0]

    assert told("all") == told("auto") == "4, at most"
    assert told(1) == "up to 4, 2 at a time, at most"


def test_records_are_told_of_and_nothing_that_is_drawn(write: Write, tmp_path: Path) -> None:
    records = write_records(tmp_path, ("target", "chosen", "rejected"))

    def told(algorithm: str, **changes: Any) -> str:
        config = write(algorithm=algorithm, prompts={"train": records.name, "heldout": "heldout.txt"}, **changes)
        done = CliRunner().invoke(app, ["check", str(config)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    drawing = {"rewards": {}, "sampling": {"groups": 2, "size": [32, 32], "steps": 3}}
    text = told("sft", **drawing)
    assert "an iteration 2 prompts x 1 = 2 targets forwards none to draw an iteration, 2 to learn" in text
    assert re.search(r"encoded prompts 7, at most about \S+ KB, and 5 pictures or videos to learn from, in ", text)
    text = told("offline-dpo", **drawing)
    assert "an iteration 2 prompts x 2 = 4 chosen and rejected" in text
    assert "and 10 pictures or videos to learn from" in text
    alone, beside = (told("nft", training={"iterations": 5, **more}) for more in ({}, {"regularise": {"sft": 0.1}}))
    assert "an iteration 2 prompts x 4 = 8 samples, and 2 targets beside" in beside
    assert "16 to learn" in alone
    assert "18 to learn" in beside


def test_a_server_that_is_there_is_no_finding_and_a_silent_one_takes_no_longer_than_it_may() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert unreachable([Server("rewards.judge.url", url)]) == []
    assert unreachable([Server("rewards.judge.url", url)])[0].startswith(f"rewards.judge.url: {url} cannot be reached: ")


def test_behind_a_proxy_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert unreachable([Server("rewards.judge.url", "http://no-such-host.invalid:8000")], 0.5) == []


def test_a_checkpoint_that_is_away_is_a_warning_and_offline_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    file = write(rewards={"taste": "pickscore"})
    away = "rewards.taste.path: yuvalkirstain/PickScore_v1 is not on this machine"
    assert any(told.startswith(away) for told in check_run(file).warnings)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = check_run(file)
    assert any(told.startswith(away) and "HF_HUB_OFFLINE is set" in told for told in found.errors)


def test_a_directory_that_cannot_be_written_or_holds_a_run_is_told(write: Write, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    away = f"output.dir: {tmp_path / 'taken' / 'run'} cannot be written to: Not a directory; see that it can be written to"
    assert any(told.startswith(away) for told in check_run(write(), out=tmp_path / "taken" / "run").errors)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("{}")
    (tmp_path / "old" / "metrics.jsonl").write_text('{"iteration": 1}\n')
    assert any("already holds a run" in told for told in check_run(write(), out=tmp_path / "old").warnings)


def test_doubts_about_the_recipe_are_for_runs_that_are_to_learn(write: Write) -> None:
    few = {"groups": 2, "group_size": 4, "size": [32, 32], "steps": 3, "dynamics": "ode"}
    assert not [told for told in check_run(write(sampling=few)).warnings if "when_it_does_not_learn" in told]
    found = check_run(write(sampling=few, training={"iterations": 100})).warnings
    assert {told.rpartition("#")[2] for told in found if "when_it_does_not_learn" in told} == {
        *("few-groups)", "small-groups)", "blind-to-prompts)"),
    }


def test_rewards_that_look_at_too_little_are_warned_of_before_a_run(write: Write, tmp_path: Path) -> None:
    def told(rewards: Any, evaluated: Any = None, **more: Any) -> list[str]:
        file = write(rewards=rewards, training={"iterations": 30}, evaluation={"rewards": evaluated or {}}, **more)
        found = [told.partition(" (")[0] for told in check_run(file).warnings]
        return [told for told in found if told.startswith("rewards: ")]

    blind = "so that nothing keeps pictures to it; add a reward that reads it, such as pickscore or ocr"
    assert told({"small": "jpeg-size"}) == [f"rewards: small ignores the prompt, {blind}"]
    both = {"small": "jpeg-size", "rank": {"name": "group-rank", "of": "jpeg-size"}}
    assert told(both) == [f"rewards: small and rank ignore the prompt, {blind}"]
    assert told({"small": "jpeg-size", "scene": "scene"}) == []
    assert told({"small": {"name": "jpeg-size", "weight": 0}, "scene": "scene"}) == []
    alone = [
        "rewards: taste is a learned scorer, and nothing else looks at the pictures; add another reward with weight: 0, or "
        "under evaluation.rewards with held-out prompts"
    ]
    assert told({"taste": "pickscore"}) == alone
    assert told({"taste": "pickscore"}, {"again": "pickscore"}) == alone
    assert told({"taste": "pickscore"}, {"scene": "scene"}) == []
    assert told({"taste": "pickscore"}, {"scene": "scene"}, prompts={"train": "prompts.txt"}) == alone
    assert told({"taste": "pickscore", "watched": {"name": "scene", "weight": 0}}) == []


@pytest.mark.parametrize(("iterations", "warned"), [(2, False), (20, True)])
def test_a_run_warns_of_them_too(iterations: int, warned: bool, write: Write) -> None:
    said: list[str] = []
    raw = json.loads(write().read_text()) | {"training": {"iterations": iterations}, "prompts": {"train": "prompts.txt"}}
    with pytest.raises(StopIteration):
        train(validate(raw), say=lambda line: _stop_at_preflight(line, said))
    assert any("small ignores the prompt" in line for line in said) == warned


def _stop_at_preflight(line: str, said: list[str]) -> None:
    said.append(line)
    if line.startswith("preflight: "):
        raise StopIteration


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 2**30), ("24", 24 * 2**30), ("80 GiB", 80 * 2**30), ("1.5g", 3 * 2**29), ("512MB", 2**29)]
)
def test_the_size_of_a_card(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "24TB", "-3", "much", "0", "nan"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UserError, match="give the memory of a GPU, such as 24GB"):
        parse_memory(text)


def test_pytorch_is_asked_for_a_card_where_there_may_be_one(tmp_path: Path) -> None:
    driver = tmp_path / "nvidiactl"
    assert not may_have_card((str(driver),), "2.13.0", "posix")
    driver.write_text("")
    assert may_have_card((str(driver),), "2.13.0+cu130", "posix")
    assert may_have_card((), "2.13.0", "nt")
    assert not may_have_card((str(driver),), "2.13.0+cpu", "posix")


def test_a_card_that_is_too_small_is_an_error(write: Write) -> None:
    file = write(device="auto")
    done = CliRunner().invoke(app, ["check", str(file), "--memory", "0.5GB", "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["memory"]["fits"]) == (2, False)
    assert told["errors"][0].startswith("memory: ")
