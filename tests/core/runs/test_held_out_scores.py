from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flowfactory import hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError
from flowfactory.runs.best_score import Evaluated, evaluated, find_best
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.facts import read_facts
from flowfactory.runs.report.page import write_report
from flowfactory.runs.train import train

Load = Callable[..., RunConfig]
Invoke = Callable[..., tuple[int, str, str]]
Figures = Callable[[RunDirectory], list[dict[str, Any]]]

SCORE = "eval/bright/mean"
HACKED = {
    # training is paid for brightness, and what is held out for darkness: each evaluation is worse than the one before
    "evaluation": {"every": 1, "rewards": {"bright": {"name": "bright", "scale": -1.0}}},
    "training": {"iterations": 8, "optimizer": {"lr": 0.05}},
    "output": {"checkpoint_every": 100, "keep_last": 1},
}


def merged(*changes: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for change in changes:
        for key, value in change.items():
            inner = isinstance(value, Mapping) and key not in ("rewards", "early_stop")
            result[key] = merged(result.get(key, {}), value) if inner else value
    return result


def iterations(directory: RunDirectory) -> list[int]:
    return [record["iteration"] for record in directory.records()]


def saved(directory: RunDirectory) -> list[int]:
    return sorted(int(path.name) for path in directory.checkpoints.glob("[0-9]*"))


class Interrupting:
    """Fails after an iteration, as a run that is killed does."""

    def __init__(self, after: int) -> None:
        self.after = after

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        if iteration == self.after:
            raise RunError("killed")


def test_the_best_is_the_first_of_the_highest() -> None:
    records = [{"iteration": n, "a": value} for n, value in enumerate([0.1, 0.5, float("nan"), 0.5, 0.4])]
    scores = evaluated([*records, {"iteration": 9, "b": 1.0}], "a")
    assert scores == [(0, 0.1), (1, 0.5), (3, 0.5), (4, 0.4)]
    assert find_best(scores) == Evaluated(1, 0.5)
    assert find_best(scores, {3, 4}) == Evaluated(3, 0.5)
    assert find_best(scores, {2}) is None


def test_a_run_whose_score_does_not_rise_ends_as_finished_and_says_so(load: Load) -> None:
    said: list[str] = []
    stop = {"training": {"early_stop": {"on": SCORE, "patience": 3, "keep": "last"}}}
    directory = train(load(merged(HACKED, stop)), say=said.append)
    assert iterations(directory) == [0, 1, 2, 3]
    assert saved(directory) == [3]
    start = directory.records()[0][SCORE]
    told = f"stopped early after iteration 3: {SCORE} has not been above {start:.4f} before training for 3 evaluations"
    assert said[-1] == told
    facts = read_facts(directory.facts)
    assert (facts["end"]["how"], facts["end"]["sentence"]) == ("finished", told)
    assert "stopped_early" not in facts
    assert f"The run finished: {told}" in write_report(directory.path).read_text()


def test_a_run_whose_score_rises_is_not_stopped(load: Load) -> None:
    rises = {"evaluation": {"rewards": {"bright": {"name": "bright"}}}}
    stop = {"training": {"early_stop": {"on": SCORE, "patience": 3}}}
    directory = train(load(merged(HACKED, rises, stop)), say=lambda _: None)
    assert iterations(directory)[-1] == 8
    assert "sentence" not in read_facts(directory.facts)["end"]


def test_a_resumed_run_goes_on_counting(load: Load, figures: Figures) -> None:
    stop = {"training": {"early_stop": {"on": SCORE, "patience": 4}}, "output": {"checkpoint_every": 1, "keep_last": None}}
    whole = train(load(merged(HACKED, stop), "whole"), say=lambda _: None)
    with pytest.raises(RunError, match="killed"):
        train(load(merged(HACKED, stop), "killed"), observers=[Interrupting(3)], say=lambda _: None)
    killed = train(load(merged(HACKED, stop), "killed"), resume=True, say=lambda _: None)
    assert figures(killed) == figures(whole)
    assert iterations(killed)[-1] == 4


def test_a_run_that_stopped_early_stays_so_unless_it_is_given_patience(load: Load, figures: Figures) -> None:
    def changed(patience: int | None) -> RunConfig:
        return load(merged(HACKED, {"training": {"early_stop": patience and {"on": SCORE, "patience": patience}}}))

    directory = train(changed(2), say=lambda _: None)
    before, said = figures(directory), list[str]()
    train(changed(2), resume=True, say=said.append)
    assert figures(directory) == before
    assert said[-1].startswith("stopped early after iteration 2: ")
    assert read_facts(directory.facts)["end"]["sentence"] == said[-1]
    train(changed(4), resume=True, say=lambda _: None)
    assert iterations(directory)[-1] == 4
    train(changed(None), resume=True, say=lambda _: None)
    assert iterations(directory)[-1] == 8
    assert "sentence" not in read_facts(directory.facts)["end"]


def test_the_best_checkpoint_outlives_the_last_ones_and_is_named(load: Load) -> None:
    directory = train(load(merged(HACKED, {"output": {"keep_best": True}})), say=lambda _: None)
    scores = evaluated(directory.records(), SCORE)[1:]
    best = find_best(scores)
    assert best is not None
    assert best.iteration == 1
    assert saved(directory) == [1, 8]
    told = f"The best checkpoint by {SCORE} is checkpoints/000001: {best.score:.4f} after iteration 1."
    assert told in write_report(directory.path).read_text()


def test_each_best_so_far_takes_the_place_of_the_one_before(load: Load) -> None:
    rises = {"evaluation": {"rewards": {"bright": {"name": "bright"}}}, "output": {"keep_best": SCORE}}
    written: list[int] = []

    class Listening:
        @hookimpl
        def checkpoint_saved(self, iteration: int) -> None:
            written.append(iteration)

    directory = train(load(merged(HACKED, rises)), observers=[Listening()], say=lambda _: None)
    assert written == [1, 2, 3, 4, 5, 6, 7, 8]
    assert saved(directory) == [8]


def test_the_best_checkpoint_is_right_after_a_kill(load: Load, figures: Figures) -> None:
    keep = {"output": {"keep_best": True, "checkpoint_every": 3}}
    whole = train(load(merged(HACKED, keep), "whole"), say=lambda _: None)
    for after in (1, 5):
        out = f"killed{after}"
        with pytest.raises(RunError, match="killed"):
            train(load(merged(HACKED, keep), out), observers=[Interrupting(after)], say=lambda _: None)
        killed = train(load(merged(HACKED, keep), out), resume=True, say=lambda _: None)
        assert figures(killed) == figures(whole)
        assert saved(killed) == saved(whole) == [1, 8]


def test_a_best_checkpoint_that_is_gone_is_not_waited_for(load: Load) -> None:
    keep = {"output": {"keep_best": True, "checkpoint_every": 4}}
    with pytest.raises(RunError, match="killed"):
        train(load(merged(HACKED, keep)), observers=[Interrupting(6)], say=lambda _: None)
    directory = RunDirectory(load(merged(HACKED, keep)).output.dir)
    assert saved(directory) == [1, 4]
    shutil.rmtree(directory.checkpoints / "000001")
    train(load(merged(HACKED, keep)), resume=True, say=lambda _: None)
    assert saved(directory) == [4, 8]  # 4 is better than 5 to 8


@pytest.fixture
def kept(load: Load) -> RunDirectory:
    return train(load(merged(HACKED, {"output": {"keep_best": True}, "training": {"iterations": 3}})), say=lambda _: None)


def test_eval_sample_and_export_take_the_best(kept: RunDirectory, invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke("eval", kept.path, "--checkpoint", "best")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["checkpoint"].endswith("checkpoints/000001")
    assert found[SCORE] == pytest.approx(kept.records()[1][SCORE], abs=1e-6)
    drawn = [tmp_path / "best", tmp_path / "first", tmp_path / "newest"]
    for folder, options in zip(drawn, (("--checkpoint", "best"), ("--checkpoint", "1"), ()), strict=True):
        code, _, err = invoke("sample", kept.path, "red", "--out", folder, *options)
        assert (code, err) == (0, "")
    best, first, newest = ((folder / "000.png").read_bytes() for folder in drawn)
    assert best == first != newest


def test_the_best_adapters_are_exported(load: Load, invoke: Invoke, tmp_path: Path) -> None:
    every = {"output": {"checkpoint_every": 1, "keep_last": None}, "training": {"iterations": 2}, "model": {"name": "net"}}
    directory = train(load(merged(HACKED, every)), say=lambda _: None)
    best = find_best(evaluated(directory.records(), SCORE), {1, 2})
    assert best is not None
    files = []
    for wanted in ("best", best.iteration, 3 - best.iteration):
        code, _, err = invoke("export", directory.path, tmp_path / f"{wanted}", "--checkpoint", str(wanted))
        assert (code, err) == (0, "")
        files.append((tmp_path / f"{wanted}" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("bets", "--checkpoint bets: write the number of an iteration, or best"),
        (
            "best:eval/brigth/mean",
            "--checkpoint best: no held-out score called 'eval/brigth/mean'; did you mean 'eval/bright/mean'?",
        ),
        ("7", "holds no checkpoint of iteration 7; there is 1, 3"),
    ],
)
def test_a_checkpoint_that_is_not_there_costs_a_line(wanted: str, told: str, kept: RunDirectory, invoke: Invoke) -> None:
    code, out, err = invoke("eval", kept.path, "--checkpoint", wanted)
    assert (code, out) == (2, "")
    assert told in err


def test_without_an_evaluation_no_checkpoint_is_the_best(load: Load, invoke: Invoke) -> None:
    directory = train(load({"prompts": {"heldout": None}, "training": {"iterations": 1}}), say=lambda _: None)
    code, out, err = invoke("sample", directory.path, "red", "--checkpoint", "best")
    assert (code, out) == (2, "")
    assert err == (
        f"error: --checkpoint best: {directory.metrics} has no held-out score; name an iteration with --checkpoint N, or take "
        "the newest\n"
    )


def test_that_a_better_one_was_not_kept_is_told(load: Load, invoke: Invoke) -> None:
    keep = {"output": {"checkpoint_every": 2, "keep_last": 2}, "training": {"iterations": 6}}
    directory = train(load(merged(HACKED, keep)), say=lambda _: None)
    assert saved(directory) == [4, 6]
    code, out, err = invoke("eval", directory.path, "--checkpoint", "best")
    assert code == 0
    assert json.loads(out)["checkpoint"].endswith("000004")
    assert re.fullmatch(
        rf"warning: {SCORE} was \S+ after iteration 1, of which no checkpoint was kept; the best there is has \S+ after "
        r"iteration 4; train with output\.keep_best\n",
        err,
    )


def test_of_several_scores_one_is_named(load: Load, invoke: Invoke) -> None:
    two = {"bright": {"name": "bright", "scale": -1.0}, "glow": {"name": "bright"}}
    keep = {"evaluation": {"rewards": two}, "output": {"checkpoint_every": 1, "keep_last": None}, "training": {"iterations": 2}}
    directory = train(load(merged(HACKED, keep)), say=lambda _: None)
    code, _, err = invoke("eval", directory.path, "--checkpoint", "best")
    assert (code, err) == (
        2,
        "error: --checkpoint best: there are 2 held-out scores; write best:eval/bright/mean, or best:eval/glow/mean\n",
    )
    for name, number in (("bright", 1), ("glow", 2)):
        code, out, _ = invoke("eval", directory.path, "--checkpoint", f"best:eval/{name}/mean")
        assert code == 0
        assert json.loads(out)["checkpoint"].endswith(f"00000{number}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"training": {"early_stop": {"on": "eval/brigth/mean"}}},
            "training.early_stop.on: no held-out score called 'eval/brigth/mean'; did you mean 'eval/bright/mean'?",
        ),
        (
            {"training": {"early_stop": {"on": SCORE}}, "evaluation": {"every": 0}},
            "training.early_stop: there is no evaluation on the way; set evaluation.every, or leave it out",
        ),
        (
            {"training": {"early_stop": {"on": SCORE}}, "prompts": {"heldout": None}},
            "training.early_stop: nothing is held out to be scored; name a file in prompts.heldout, or leave it out",
        ),
        (
            {"output": {"keep_best": "eval/dark/mean"}},
            "output.keep_best: no held-out score called 'eval/dark/mean'; did you mean 'eval/bright/mean'?",
        ),
        (
            {"output": {"keep_best": True}, "prompts": {"heldout": None}},
            "output.keep_best: nothing is held out to be scored; name a file in prompts.heldout, or leave it out",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(
    changes: dict[str, Any], told: str, config_file: Callable[..., Path], invoke: Invoke
) -> None:
    code, _, err = invoke("run", config_file(merged({"evaluation": {"every": 1}}, changes)), "--dry-run")
    assert (code, err) == (2, f"error: config.yaml: {told}\n")


def test_two_scores_and_no_name_are_refused(config_file: Callable[..., Path], invoke: Invoke) -> None:
    two = {"every": 1, "rewards": {"bright": {"name": "bright"}, "glow": {"name": "bright"}}}
    code, _, err = invoke("run", config_file({"evaluation": two, "output": {"keep_best": True}}), "--dry-run")
    told = "output.keep_best: true: there are 2 held-out scores; write eval/bright/mean or eval/glow/mean"
    assert (code, err) == (2, f"error: config.yaml: {told}\n")
    every = {"evaluation": {"every": 0, "rewards": {"bright": {"name": "bright"}}}, "output": {"keep_best": True}}
    code, _, err = invoke("run", config_file(every), "--dry-run")
    assert code == 0
    assert "output.keep_best does nothing with one evaluation, at the end; set evaluation.every, or leave it out" in err
    both = {"training": {"early_stop": {"on": "eval/glow/mean"}}, "output": {"keep_best": "eval/bright/mean"}}
    code, _, err = invoke("run", config_file(merged({"evaluation": two}, both)), "--dry-run")
    assert code == 2
    assert "output.keep_best: eval/bright/mean is not eval/glow/mean" in err
    last = merged({"evaluation": two}, both, {"training": {"early_stop": {"on": "eval/glow/mean", "keep": "last"}}})
    code, _, err = invoke("run", config_file(last), "--dry-run")
    assert (code, err) == (0, "")


def test_a_run_that_is_scored_by_other_rewards_need_not_have_those_it_stopped_by(kept: RunDirectory, invoke: Invoke) -> None:
    text = kept.config.read_text()
    assert "early_stop: null" in text
    kept.config.write_text(text.replace("early_stop: null", f"early_stop: {{on: {SCORE}, patience: 5, keep: best}}"))
    code, out, err = invoke("eval", kept.path, "--set", "evaluation.rewards={other: bright}")
    assert (code, err) == (0, "")
    assert "eval/other/mean" in out
