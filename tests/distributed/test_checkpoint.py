"""Checkpoints of several ranks: taken up by any number of them, and whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import tensors
from torchrun import torchrun

from flowfactory.config.loading import validate
from flowfactory.distributed.ranks import Ranks
from flowfactory.runs.checkpoints import lookup, manifest
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.training.setup import prepare_run

pytestmark = pytest.mark.distributed
HERE = Path(__file__).parent
TOY = HERE.parent / "core" / "toy_plugin.py"
WIDE = {"lora": {"rank": 300, "alpha": 300}}
DYNAMICS = {"name": "flow-sde", "sde_steps": [0, 1, 2], "num_sde_steps": 2}
# name: what trains, the optimizer
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": ("full", {"eps": 1e-4}),
    "lora": ({"lora": {"rank": 3, "alpha": 3}}, {"eps": 1e-4}),
    "8 bits": (WIDE, {"name": "adamw8bit"}),
}
Job = Mapping[str, Any]
Start = Callable[[int, Sequence[Job]], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Start:
    def begin(count: int, jobs: Sequence[Job]) -> subprocess.Popen[str]:
        file = tmp_path_factory.mktemp("jobs") / "jobs.json"
        file.write_text(json.dumps(jobs))
        return subprocess.Popen(
            torchrun(count, HERE / "saving.py", file),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return begin


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err[-6000:]


def config(root: Path, out: Path, case: str, iterations: int = 2) -> dict[str, Any]:
    (root / "train.txt").write_text("red\nblue\ngreen\nyellow\nwhite\n")
    training, optimizer = CASES[case]
    return {
        "model": {"name": "net", "train": training},
        "algorithm": {"name": "score", "pull": 0.1},
        "rewards": {"bright": {"name": "bright"}},
        "prompts": {"train": str(root / "train.txt")},
        "sampling": {"groups": 4, "group_size": 4, "size": [4, 4], "steps": 4, "batch_size": 8, "dynamics": DYNAMICS},
        "training": {"iterations": iterations, "updates": 2, "batch_size": 4, "optimizer": {"lr": 0.02, **optimizer}},
        "output": {"dir": str(out), "checkpoint_every": 1},
        "plugins": [str(TOY)],
        "device": "cpu",
        "seed": 7,
    }


def told(folder: Path, rank: int = 0) -> list[str]:
    lines: list[str] = json.loads((folder / f"told-{rank}.json").read_text())
    return lines


@pytest.fixture(scope="module")
def runs(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<case>-whole: 4 iterations on 2 ranks. <case>-N: 2 of them, then 2 on N ranks; damaged-2: so, from the first."""
    root = tmp_path_factory.mktemp("resumed")
    jobs = []
    for case in CASES:
        jobs.append({"do": "train", "config": config(root, root / f"{case}-whole", case, 4)})
        jobs.append({"do": "train", "config": config(root, root / f"{case}-half", case, 2)})
    finish(start(2, jobs))
    for case in CASES:
        for count in (1, 2, 3):
            shutil.copytree(root / f"{case}-half", root / f"{case}-{count}")
    shutil.copytree(root / "full-half", root / "damaged-2")
    checked = manifest.Manifest.read(root / "damaged-2/checkpoints/000002").files
    second = sorted(checked, key=lambda name: (checked[name].bytes, name))[1::2][-1]  # the second of two ranks looks at it
    file = root / "damaged-2/checkpoints/000002" / second
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for count in (1, 2, 3):
        cases = {case: case for case in CASES} | ({"damaged": "full"} if count == 2 else {})
        finish(
            start(
                count,
                [
                    {"do": "train", "resume": True, "config": config(root, root / f"{name}-{count}", case, 4)}
                    for name, case in cases.items()
                ],
            )
        )
    return root


@pytest.mark.parametrize("case", CASES)
def test_as_many_ranks_resume_as_if_they_had_not_stopped(case: str, runs: Path) -> None:
    whole, resumed = (tensors(runs / f"{case}-{name}/checkpoints/000004") for name in ("whole", "2"))
    assert set(whole) == set(resumed)
    assert {name for name in whole if name.startswith("random/")} == {"random/0", "random/1"}
    assert [name for name, value in whole.items() if not torch.equal(resumed[name], value)] == []
    assert not torch.equal(whole["random/0"], whole["random/1"])
    start = tensors(runs / f"{case}-half/checkpoints/000002")
    assert any(not torch.equal(start[name], value) for name, value in whole.items() if name.startswith("present/"))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", ["full", "lora"])
def test_other_numbers_of_ranks_resume_to_the_same(case: str, count: int, runs: Path) -> None:
    assert any("resumed after iteration 2 from" in line for line in told(runs / f"{case}-{count}"))
    whole, resumed = (tensors(runs / f"{case}-{name}/checkpoints/000004") for name in ("whole", str(count)))
    names = {name for name in whole if not name.startswith("random/")}
    assert {name for name in resumed if not name.startswith("random/")} == names
    for name in names:
        torch.testing.assert_close(resumed[name], whole[name], rtol=1e-4, atol=2e-6, msg=name)


def test_every_rank_writes_its_own_part_of_what_is_divided(runs: Path) -> None:
    read = manifest.Manifest.read(runs / "full-whole/checkpoints/000004")
    assert (read.ranks, read.shard) == (2, 2)
    for role in ("weights", "training"):
        sizes = [read.files[f"checkpoint-{role}-{rank}.safetensors"].bytes for rank in (0, 1)]
        assert max(sizes) < 0.6 * sum(sizes)


def test_ranks_agree_to_pass_over_what_one_of_them_finds_damaged(runs: Path) -> None:
    lines = told(runs / "damaged-2")
    assert any("000002 is damaged and skipped" in line and "is not what was written" in line for line in lines)
    assert any("resumed after iteration 1 from" in line for line in lines)
    whole, resumed = (tensors(runs / f"{name}/checkpoints/000004") for name in ("full-whole", "damaged-2"))
    assert [name for name, value in whole.items() if not torch.equal(resumed[name], value)] == []


@pytest.mark.parametrize("count", [1, 3])
def test_state_in_8_bits_that_does_not_fit_other_ranks_is_refused(count: int, runs: Path) -> None:
    for rank in range(count):
        last = told(runs / f"8 bits-{count}", rank)[-1]
        assert last.startswith(f"error: {runs / f'8 bits-{count}'}/checkpoints/000002: ")
        assert "8-bit state" in last
        assert "resume with distributed.shard: 2" in last
    assert [path.name for path in sorted((runs / f"8 bits-{count}/checkpoints").iterdir())] == ["000001", "000002"]


def test_ranks_killed_while_a_checkpoint_is_written_leave_the_previous_one(start: Start, tmp_path: Path) -> None:
    raw = config(tmp_path, tmp_path / "run", "full")
    process = start(2, [{"do": "killed", "config": raw}])
    deadline = time.monotonic() + 120
    folder = tmp_path / "run/checkpoints"
    try:
        # the first rank's part is there, the other's never will be
        written = ".writing-000002-*/checkpoint-weights-0.safetensors"
        while len(list((tmp_path / "run").glob("under-way-*"))) < 2 or not any(folder.glob(written)):
            assert process.poll() is None, process.communicate()[1][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in (str(process.pid), *ranks):
            os.kill(int(pid), signal.SIGKILL)
        process.communicate(timeout=60)
    assert lookup.find(folder).name == "000001"
    assert len(list(folder.glob(".writing-000002-*"))) == 1

    run = prepare_run(validate(raw), trackers=False)
    run.assembly.hooks.run_started(run.info, run.policy)
    checkpoints = Checkpoints(folder, Ranks(), run.config)
    assert checkpoints.restore(run.policy, run.learner) == 1
    checkpoints.save(2, run.policy, run.learner)
    assert checkpoints.finish() == [(2, folder / "000002")]
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000002"]


def test_one_ranks_full_disk_is_every_ranks_sentence(start: Start, tmp_path: Path) -> None:
    finish(start(2, [{"do": "full disk", "config": config(tmp_path, tmp_path / "run", "full")}]))
    first, second = told(tmp_path / "run", 0), told(tmp_path / "run", 1)
    assert first == second
    assert (first[0], first[2]) == ("saved 1", "saved 3")
    assert "has no room for the checkpoint of iteration 2" in first[1]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["000001", "000003"]


def test_what_is_not_finite_on_one_rank_is_every_ranks_sentence(start: Start, tmp_path: Path) -> None:
    finish(start(2, [{"do": "spoiled", "config": config(tmp_path, tmp_path / "run", "full")}]))
    first, second = told(tmp_path / "run", 0), told(tmp_path / "run", 1)
    assert first == second
    name = "transformer.0.weight"
    assert [sentence.split(" (")[0] for sentence in first] == [
        f"the update left {name} not finite",
        f"{tmp_path / 'run/checkpoints/000001'}: {name} is not finite",
        f"the update left optimizer/{name}/exp_avg_sq not finite",
        f"{tmp_path / 'run/checkpoints/000003'}: optimizer/{name}/exp_avg_sq is not finite",
    ]
