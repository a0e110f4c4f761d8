from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from made_runs import make_run

from flowfactory.runs.facts import UNDER_WAY
from flowfactory.runs.listing import DEEPEST, find_runs, read_state
from flowfactory.runs.lock import held

Invoke = Callable[..., tuple[int, str, str]]


def test_runs_are_listed_with_state_progress_and_best_score(tmp_path: Path, invoke: Invoke) -> None:
    make_run(tmp_path / "runs/quick", {0: {"a": 0.25}, 10: {"a": 0.75}, 20: {"a": 0.5}})
    failed = make_run(tmp_path / "runs/deep/er", {}, iterations=3)
    (failed / "run.json").write_text(json.dumps({"end": {"how": "failed"}}))
    code, out, err = invoke("runs", tmp_path / "runs")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["run", "state", "iterations", "best", "score", "algorithm", "model"],
        ["deep/er", "failed", "3/20", "–", "score", "toy"],
        ["quick", "finished", "20/20", *["bright", "0.7500", "after", "iteration", "10"], "score", "toy"],
    ]
    _, out, _ = invoke("runs", tmp_path / "runs", "--json")
    assert [run["best"] for run in json.loads(out)] == [None, {"name": "eval/bright/mean", "score": 0.75, "iteration": 10}]


def test_the_score_that_decides_which_checkpoint_is_kept_is_the_one_that_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: {"a": 0.5}}, config={"output": {"keep_best": "eval/taste/mean"}})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 21, "eval/bright/mean": 9.0, "eval/taste/mean": 0.25}) + "\n")
    state = read_state(run)
    assert (state.score_name, state.score) == ("eval/taste/mean", (21, 0.25))


def test_a_run_whose_process_lives_is_running_and_one_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    (run / "run.json").write_text(json.dumps({UNDER_WAY: "token"}))
    with held(run, print):
        assert read_state(run).state == "running"
        left = (run / "run.lock").read_bytes()
    assert read_state(run).state == "killed"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    (run / "run.lock").write_bytes(left.replace(b'"pid": %d' % os.getpid(), b'"pid": %d' % int(gone.stdout)))
    assert read_state(run).state == "killed"


def test_links_are_not_followed_and_folders_not_without_end(tmp_path: Path) -> None:
    make_run(tmp_path / "else/run", {})
    folder = tmp_path / "runs"
    deep = Path(*["a"] * DEEPEST)
    make_run(folder / deep, {})
    make_run(folder / "b" / deep, {})
    (folder / "link").symlink_to(tmp_path / "else")
    (folder / "round").symlink_to(folder)
    assert find_runs(folder) == [folder / deep]


def test_what_is_odd_in_a_run_directory_costs_no_more_than_what_it_tells(tmp_path: Path, invoke: Invoke) -> None:
    run = make_run(tmp_path / "runs/run\x1b[31m", {})
    for name in ("config.yaml", "run.json"):
        (run / name).write_text("{")
    (run / "metrics.jsonl").write_bytes(b"\xff\n[]\n" + b"[" * 100_000)
    code, out, err = invoke("runs", tmp_path / "runs")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split() == [r"run\x1b[31m", "not", "begun", "0", "–", "–", "–"]


def test_no_folder_and_no_runs_are_said_in_one_line(tmp_path: Path, invoke: Invoke) -> None:
    assert invoke("runs", tmp_path) == (0, f"no runs in {tmp_path}\n", "")
    code, _, err = invoke("runs", tmp_path / "none")
    assert (code, err) == (2, f"error: no folder {tmp_path / 'none'}; name the one that your run directories lie in\n")


def test_listing_and_reporting_import_no_torch() -> None:
    modules = "flowfactory.cli.runs, flowfactory.runs.listing, flowfactory.runs.report.comparison"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
