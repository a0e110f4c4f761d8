from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved import tensors, weights

from flowfactory.config.schema import RunConfig
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError, UserError
from flowfactory.runs.checkpoints import load, lookup
from flowfactory.runs.checkpoints import save as saving
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.roles import WEIGHTS, shard_name
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.checkpoints.shards import write_shard
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.resume import checksum, fixed_config
from flowfactory.training.iteration import iterate
from flowfactory.training.setup import Run, prepare_run

Figures = Callable[[RunDirectory], list[dict[str, Any]]]
Trained = Callable[..., RunDirectory]
Invoke = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]
Prepared = Callable[..., Run]
Load = Callable[..., RunConfig]
StartedRun = tuple[tuple[Any, ...], RunDirectory, subprocess.Popen[str]]
# slow enough that a signal lands between two iterations, and a checkpoint not after every one of them
SLOW = {"rewards": {"bright": {"name": "bright", "seconds": 0.08}}, "training": {"iterations": 9}}
MODELS: list[dict[str, Any]] = [{"name": "net", "train": "full"}, {"name": "net"}]
BOTH = pytest.mark.parametrize("model", MODELS, ids=["full", "lora"])
OLDER = "use the version that wrote it, or start a new run in another --out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved"


def wait_for(directory: RunDirectory, iteration: int, process: subprocess.Popen[str]) -> None:
    """Returns when ``metrics.jsonl`` has the record of ``iteration``."""
    deadline = time.monotonic() + 300
    while not any(record["iteration"] >= iteration for record in directory.records()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def owner(run: Run, folder: Path, keep_last: int | None = None, say: Callable[[str], None] = lambda _: None) -> Checkpoints:
    output = run.config.output.model_copy(update={"keep_last": keep_last})
    return Checkpoints(folder, Ranks(), run.config.model_copy(update={"output": output}), say)


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 5])
def test_nothing_appears_or_is_deleted_once_the_run_directory_is_lost(prepared: Prepared, tmp_path: Path, asked: int) -> None:
    run, folder = prepared(), tmp_path / "checkpoints"
    before: dict[Path, bytes] = {}
    count = 0

    def require() -> None:
        nonlocal count
        count += 1
        if count == asked:  # another run begins
            shutil.rmtree(folder, ignore_errors=True)
            save(owner(run, folder), run, 2)
            (folder / ".writing-000002").mkdir()
            (folder / ".writing-000002/rank-00000.safetensors").write_bytes(b"half of it")
            before.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        if count >= asked:
            raise RunError("lost")

    checkpoints = Checkpoints(folder, Ranks(), run.config, require=require)
    with pytest.raises(RunError, match=r"^lost$"):
        save(checkpoints, run, 2)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def save(checkpoints: Checkpoints, run: Run, *iterations: int) -> list[tuple[int, Path]]:
    """What comes to be whole of ``iterations``, whose weights are their numbers."""
    found = []
    for iteration in iterations:
        fill(run, float(iteration))
        found += checkpoints.save(iteration, run.policy, run.learner)
    return found + checkpoints.finish()


@torch.no_grad()
def fill(run: Run, value: float) -> None:
    for parameter in run.policy.parameters.values():
        parameter.fill_(value)


def value_of(run: Run) -> float:
    values = {float(parameter.detach().flatten()[0]) for parameter in run.policy.parameters.values()}
    assert len(values) == 1
    return values.pop()


def flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 1
    file.write_bytes(content)


@pytest.fixture
def started(config_file: Callable[..., Path], start: Start, tmp_path: Path) -> Callable[[str, int], StartedRun]:
    """``started(name, iteration)``: a slow run in a process of its own that has come that far."""

    def begin(name: str, iteration: int) -> StartedRun:
        arguments, directory = ("run", config_file(SLOW), "--out", tmp_path / name), RunDirectory(tmp_path / name)
        process = start(*arguments)
        wait_for(directory, iteration, process)
        return arguments, directory, process

    return begin


def test_a_killed_run_resumes_as_if_it_had_not_been(
    started: Callable[[str, int], StartedRun], trained: Trained, figures: Figures, invoke: Invoke, tmp_path: Path
) -> None:
    whole = figures(trained(SLOW, out="whole"))
    arguments, killed, process = started("killed", 5)
    time.sleep(random.Random(5).uniform(0, 0.16))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(killed.records()) < len(whole)

    code, out, err = invoke(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert "resumed after iteration" in out
    assert figures(killed) == whole
    before, after = tensors(tmp_path / "whole/checkpoints/000009"), tensors(killed.checkpoints / "000009")
    assert {name.partition("/")[0] for name in after} == {"present", "kept", "optimizer", "steps", "random"}
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name != "random/0")


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_saves_its_iteration_and_resumes_as_if_it_had_not_been(
    which: signal.Signals,
    started: Callable[[str, int], StartedRun],
    trained: Trained,
    figures: Figures,
    invoke: Invoke,
) -> None:
    whole = figures(trained(SLOW, out="whole"))
    arguments, stopped, process = started("stopped", 2)
    process.send_signal(which)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    done = stopped.records()[-1]["iteration"]
    assert 2 <= done < 9
    assert err == f"stopped after iteration {done}; continue with --resume\n"
    assert lookup.find(stopped.checkpoints).name == f"{done:06d}"

    code, out, err = invoke(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert f"resumed after iteration {done} from" in out
    assert figures(stopped) == whole


def test_a_checkpoint_is_of_the_moment_it_was_asked_for_while_training_goes_on(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = threading.Event()
    write = saving.write_part

    def later(*arguments: Any) -> None:
        assert go.wait(60)
        write(*arguments)

    monkeypatch.setattr(saving, "write_part", later)
    run = prepared({"model": MODELS[0]})
    random_state = torch.get_rng_state()
    checkpoints = owner(run, tmp_path)
    fill(run, 1.0)
    assert checkpoints.save(1, run.policy, run.learner) == []
    before = {name: value.clone() for name, value in run.learner.state().items()}
    iterate(run, 0)
    torch.rand(3)
    assert checkpoints.poll() == []
    assert lookup.latest(tmp_path) is None
    go.set()
    assert checkpoints.finish() == [(1, tmp_path / "000001")]
    assert checkpoints.poll() == checkpoints.finish() == []

    found = tensors(tmp_path / "000001")
    assert all(bool((value == 1).all()) for name, value in found.items() if name.startswith("present/"))
    assert all(torch.equal(found[name], value) for name, value in before.items())
    assert torch.equal(found["random/0"], random_state)


def test_what_is_written_is_told_as_soon_as_it_is_whole(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared()
    checkpoints = owner(run, tmp_path)
    checkpoints.save(1, run.policy, run.learner)
    deadline = time.monotonic() + 60
    told: list[tuple[int, Path]] = []
    while not told:
        assert time.monotonic() < deadline
        told = checkpoints.poll()
    assert told == [(1, tmp_path / "000001")]
    checkpoints.save(2, run.policy, run.learner)
    assert checkpoints.save(3, run.policy, run.learner) == [(2, tmp_path / "000002")]
    assert checkpoints.finish() == [(3, tmp_path / "000003")]
    assert checkpoints.latest == tmp_path / "000003"


@BOTH
def test_a_manifest_says_what_is_there_and_what_may_not_change(
    model: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    run = prepared({"model": model})
    save(owner(run, tmp_path), run, 4)
    folder = tmp_path / "000004"
    content = json.loads((folder / "checkpoint.json").read_text())
    assert (content["format"], content["iteration"], content["ranks"], content["shard"]) == (3, 4, 1, 1)
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(content["files"]) == set(there) - {"checkpoint.json"}
    assert ("pytorch_lora_weights.safetensors" in there) == (model["name"] == "net" and "train" not in model)
    for name, (size, digest) in content["files"].items():
        data = there[name].read_bytes()
        assert (size, digest) == (len(data), hashlib.blake2b(data, digest_size=16).hexdigest())
    values = content["fixed"]["values"]
    text = json.dumps(values, sort_keys=True).encode()
    assert content["fixed"]["hash"] == hashlib.blake2b(text, digest_size=16).hexdigest()
    assert (values["seed"], values["model.name"], values["training.optimizer.lr"]) == (7, "net", 0.02)
    assert not any(key.startswith(("evaluation", "output", "distributed", "device")) for key in values)


def test_a_crash_while_it_is_completed_leaves_the_previous_checkpoint_whole(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    run = prepared()
    checkpoints = owner(run, folder)
    save(checkpoints, run, 1)
    rename = os.rename

    def crash(before: Path, after: Path) -> None:
        if after == folder / "000002":
            raise MemoryError
        rename(before, after)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        with pytest.raises(MemoryError):
            save(checkpoints, run, 2)
    assert [path.name for path in folder.iterdir()] == ["000001"]
    assert save(checkpoints, run, 3) == [(3, folder / "000003")]


def test_what_a_kill_left_half_written_or_half_deleted_is_cleared_away_by_the_next(prepared: Prepared, folder: Path) -> None:
    run = prepared()
    for left in (".writing-000002-0123456789abcdef", ".removing-000001", ".removing-000002-0123456789abcdef"):
        (folder / left).mkdir()
        (folder / left / "checkpoint-weights-0.safetensors").write_text("half")
    assert lookup.latest(folder) is None
    save(owner(run, folder), run, 2)
    assert [path.name for path in folder.iterdir()] == ["000002"]


def test_what_a_kill_left_undone_after_the_last_checkpoint_is_done_when_it_is_resumed(prepared: Prepared, folder: Path) -> None:
    run = prepared()
    save(owner(run, folder), run, 1, 2, 3)
    (folder / ".removing-000000").mkdir()
    assert owner(run, folder, keep_last=2).restore(run.policy, run.learner) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["000002", "000003"]


def test_the_last_checkpoints_are_kept_and_nothing_else_is_deleted(prepared: Prepared, folder: Path) -> None:
    run = prepared()
    save(owner(run, folder), run, 1, 9)  # 9 of a time that was forgotten
    (folder / "000002").mkdir()  # without a manifest
    (folder / "notes").mkdir()
    checkpoints = owner(run, folder, keep_last=2)
    for iteration, kept in ((3, [1, 3, 9]), (4, [3, 4, 9]), (5, [4, 5, 9])):
        save(checkpoints, run, iteration)
        assert [int(path.parent.name) for path in sorted(folder.glob("*/checkpoint.json"))] == kept
        assert checkpoints.latest == folder / f"{iteration:06d}"
    assert {path.name for path in folder.iterdir()} == {"000002", "000004", "000005", "000009", "notes"}


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "000004").mkdir()
    assert lookup.latest(tmp_path) is None


def test_the_newest_is_the_one_with_the_largest_number(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared()
    save(owner(run, tmp_path), run, 999_999, 1_000_000)
    assert lookup.latest(tmp_path) == lookup.find(tmp_path) == tmp_path / "1000000"


def test_what_is_not_there_is_refused_with_what_is(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared()
    with pytest.raises(UserError, match=r"holds no checkpoint$"):
        lookup.find(tmp_path)
    assert owner(run, tmp_path).restore(run.policy, run.learner) is None
    save(owner(run, tmp_path), run, 2, 10)
    assert lookup.find(tmp_path).name == "000010"
    assert lookup.find(tmp_path, 2).name == "000002"
    with pytest.raises(UserError, match=r"holds no checkpoint of iteration 3; there is 2, 10$"):
        lookup.find(tmp_path, 3)


def test_saving_an_iteration_again_replaces_it(prepared: Prepared, folder: Path) -> None:
    run = prepared()
    save(owner(run, folder), run, 1)
    fill(run, 3.0)
    checkpoints = owner(run, folder)
    checkpoints.save(1, run.policy, run.learner)
    checkpoints.finish()
    fill(run, 0.0)
    assert checkpoints.restore(run.policy, run.learner) == 1
    assert value_of(run) == 3.0
    assert [path.name for path in folder.iterdir()] == ["000001"]


@BOTH
def test_restoring_brings_back_weights_optimizer_and_random_state(model: dict[str, Any], load: Load, tmp_path: Path) -> None:
    def fresh() -> Run:
        run = prepare_run(load({"model": model}))
        run.assembly.hooks.run_started(run.info, run.policy)
        return run

    one = fresh()
    iterate(one, 0)
    torch.manual_seed(3)
    checkpoints = owner(one, tmp_path)
    checkpoints.save(1, one.policy, one.learner)
    drawn = torch.rand(3)
    expected = iterate(one, 1)
    checkpoints.finish()

    other = fresh()
    torch.manual_seed(4)
    assert owner(other, tmp_path).restore(other.policy, other.learner) == 1
    assert torch.equal(torch.rand(3), drawn)
    again = iterate(other, 1)
    assert {k: v for k, v in again.items() if not k.startswith(("seconds", "peak"))} == {
        k: v for k, v in expected.items() if not k.startswith(("seconds", "peak"))
    }
    for name, parameter in one.policy.parameters.items():
        assert torch.equal(parameter, other.policy.parameters[name])
    moments = other.learner.state()
    assert all(torch.equal(moments[name], value) for name, value in one.learner.state().items())


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def tear(folder: Path) -> None:
    shorten(folder / "checkpoint.json")


def alter(folder: Path) -> None:
    file = folder / "checkpoint.json"
    file.write_text(file.read_text().replace('"ranks": 1', '"ranks": 2'))


SHARD = "checkpoint-weights-0.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
    "short": (lambda folder: shorten(folder / SHARD), rf"{SHARD} has \d+ bytes, not \d+"),
    "flipped": (lambda folder: flip(folder / SHARD), f"{SHARD} is not what was written"),
    "header": (lambda folder: flip(folder / SHARD, 0.01), f"{SHARD} (has no header of|is not what)"),
    "adapters": (lambda f: flip(f / "pytorch_lora_weights.safetensors", 0.99), "pytorch_lora_weights.safetensors is not what"),
    "torn": (tear, r"checkpoint\.json is no JSON \("),
    "altered": (alter, r"checkpoint\.json is not what was written"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_for_the_one_before(
    how: str, prepared: Prepared, tmp_path: Path
) -> None:
    damage, problem = DAMAGES[how]
    run = prepared({"model": {"name": "net"}})
    save(owner(run, tmp_path), run, 1, 2)
    damage(tmp_path / "000002")
    fill(run, 5.0)
    said: list[str] = []
    checkpoints = owner(run, tmp_path, say=said.append)
    assert checkpoints.restore(run.policy, run.learner) == 1
    assert value_of(run) == 1.0
    assert len(said) == 1
    assert str(tmp_path / "000002") in said[0]
    with pytest.raises(UserError, match=rf"000002 is damaged: {problem}.*; choose another checkpoint$"):
        lookup.find(tmp_path, 2)
    assert lookup.find(tmp_path) == lookup.find(tmp_path, 1) == checkpoints.latest == tmp_path / "000001"

    damage(tmp_path / "000001")
    with pytest.raises(UserError, match="holds no intact checkpoint; start a new run in another --out"):
        checkpoints.restore(run.policy, run.learner)
    with pytest.raises(UserError, match="holds no intact checkpoint"):
        lookup.find(tmp_path)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    config_file: Callable[..., Path], trained: Trained, figures: Figures, invoke: Invoke, tmp_path: Path
) -> None:
    changes = {"model": {"name": "net"}, "training": {"iterations": 3}, "output": {"checkpoint_every": 1}}
    directory = trained(changes)
    whole = figures(directory)
    final = tensors(directory.checkpoints / "000003")
    flip(directory.checkpoints / "000003/checkpoint-weights-0.safetensors")
    code, out, err = invoke("eval", directory.path)
    assert (code, json.loads(out)["checkpoint"]) == (0, str(directory.checkpoints / "000002"))
    problem = "checkpoint-weights-0.safetensors is not what was written"
    assert err.startswith(f"warning: {directory.checkpoints / '000003'} is damaged and skipped: {problem}")

    code, out, _ = invoke("run", config_file(changes), "--out", directory.path, "--resume")
    assert code == 0
    assert "000003 is damaged and skipped" in out.replace("\n", "")
    assert figures(directory) == whole
    again = tensors(directory.checkpoints / "000003")
    assert all(torch.equal(again[name], value) for name, value in final.items())


def test_other_versions_checkpoints_are_refused_with_a_sentence(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared()
    old = tmp_path / "old/000002"
    old.mkdir(parents=True)
    (old / "checkpoint.json").write_text('{"iteration": 2}')
    (old / "training.pt").write_bytes(b"")
    for attempt in (lambda: owner(run, old.parent).restore(run.policy, run.learner), lambda: lookup.find(old.parent)):
        with pytest.raises(UserError, match="000002 is of an older version, which wrote one file; use the version that wrote"):
            attempt()
    save(owner(run, tmp_path / "new"), run, 2)
    manifest = tmp_path / "new/000002/checkpoint.json"
    written = manifest.read_text()
    for number, told in (
        (
            2,
            "an older version (format 2, this one reads 3); use the version that wrote it, or start a new run in another --out",
        ),
        (4, "a newer version (format 4, this one reads 3); update flowfactory"),
    ):
        manifest.write_text(written.replace('"format": 3', f'"format": {number}'))
        with pytest.raises(UserError, match=re.escape(f"000002 is of {told}") + "$"):
            lookup.find(tmp_path / "new")
    content = {**json.loads(written), "compressed": True}
    del content["format"], content["checksum"]
    manifest.write_text(json.dumps({"format": 3, "checksum": checksum(content), **content}))
    with pytest.raises(UserError, match=r"newer version: its checkpoint\.json says 'compressed' too; update flowfactory$"):
        lookup.find(tmp_path / "new")


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_run_in_another_versions_run_directory_says_at_once_what_helps(
    trained: Trained, invoke: Invoke, tmp_path: Path, resume: tuple[str, ...]
) -> None:
    directory = trained()
    manifest = directory.checkpoints / "000003/checkpoint.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    code, _, err = invoke("run", tmp_path / "config.yaml", "--out", directory.path, *resume)
    told = (
        "of an older version (format 2, this one reads 3); use the version that wrote it, or start a new run in another --out"
    )
    assert (code, err) == (2, f"error: {manifest.parent} is {told}\n")


def test_a_checkpoint_of_other_weights_is_refused(trained: Trained, invoke: Invoke, prepared: Prepared) -> None:
    directory = trained({"model": {"name": "net"}})
    code, _, err = invoke("eval", directory.path, "--set", "model.train.lora.rank=2")
    assert code == 1
    assert "000003 holds other weights than the config trains: present/transformer.0.lora_A.default.weight (4 in all)" in err
    fewer = prepared({"model": {"name": "net", "train": {"lora": {"targets": ["2"]}}}})
    with pytest.raises(RunError, match=r"holds other weights than the config trains: present/transformer\.0\.lora_A"):
        load.load(directory.checkpoints / "000003", fewer.policy)


def test_state_that_does_not_fit_the_ranks_is_refused_before_anything_is_loaded(prepared: Prepared, folder: Path) -> None:
    wide = {"name": "net", "train": {"lora": {"rank": 300}}}  # 8 bits are for tensors that are large enough
    run = prepared({"model": wide, "training": {"optimizer": {"name": "adamw8bit"}}})
    save(owner(run, folder), run, 1)
    written = Manifest.read(folder / "000001")
    others = {name: write_shard(folder / "000001" / name, []) for name in (shard_name(WEIGHTS, rank) for rank in range(1, 7))}
    replace(written, ranks=7, shard=7, files={**written.files, **others}).write(folder / "000001")
    fill(run, 5.0)
    with pytest.raises(UserError, match=r"000001: training\.optimizer: the 8-bit state .* resume with distributed\.shard: 7"):
        owner(run, folder).restore(run.policy, run.learner)
    assert value_of(run) == 5.0


ENDS = """
import sys, threading, time
from pathlib import Path
from flowfactory.config.loading import load
from flowfactory.distributed.ranks import Ranks
from flowfactory.runs.checkpoints import save as checkpoint
from flowfactory.training.setup import prepare_run
write = checkpoint.write_part
checkpoint.write_part = lambda *arguments: (time.sleep(1), write(*arguments))
run = prepare_run(load(sys.argv[1]))
checkpoint.Checkpoints(Path(sys.argv[2]), Ranks(), run.config).save(1, run.policy, run.learner)
checkpoint._in_thread(lambda: checkpoint.read_part(Path("never"), threading.Event()))
raise ZeroDivisionError("an iteration failed")
"""


def test_a_process_that_fails_completes_its_checkpoint_and_waits_for_no_other(
    config_file: Callable[..., Path], folder: Path
) -> None:
    command = [sys.executable, "-c", ENDS, str(config_file()), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "ZeroDivisionError: an iteration failed" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["000001"]
    assert lookup.find(folder).name == "000001"


@contextmanager
def no_file_larger_than(most: int) -> Iterator[None]:
    """What the operating system says of a disk that is full, of another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@BOTH
def test_a_full_disk_is_a_sentence_and_the_previous_checkpoint_stays(
    model: dict[str, Any], config_file: Callable[..., Path], trained: Trained, invoke: Invoke
) -> None:
    directory = trained({"model": model, "training": {"iterations": 2}})
    file = config_file({"model": model, "training": {"iterations": 4}})
    largest = max(path.stat().st_size for path in (directory.checkpoints / "000002").iterdir())
    with no_file_larger_than(largest - 1):
        code, _, err = invoke("run", file, "--out", directory.path, "--resume")
    assert code == 1
    folder = directory.checkpoints
    assert err.startswith(f"stopped: {folder} has no room for the checkpoint of iteration 4, about ")
    assert err.endswith(
        " kB (File too large); make room, or set output.keep_last, and continue with --resume; "
        f"the last checkpoint is {folder / '000002'}\n"
    )
    assert [path.name for path in folder.iterdir()] == ["000002"]
    assert lookup.find(folder).name == "000002"


def test_metrics_that_the_disk_does_not_take_end_the_run_in_a_sentence(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append({"iteration": 1})
    with (
        no_file_larger_than(30),
        pytest.raises(RunError, match=r"cannot be written \(File too large\); make room, and continue"),
    ):
        directory.append({"iteration": 2, "loss": 0.5})
    assert directory.records() == [{"iteration": 1}]


FULL = """
import sys
from pathlib import Path
from flowfactory.config.loading import load
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.training.setup import prepare_run
run = prepare_run(load(sys.argv[1]))
folder = Path(sys.argv[2])
checkpoints = Checkpoints(folder, Ranks(), run.config)
for number in range(1, 100):
    try:
        checkpoints.save(number, run.policy, run.learner)
        checkpoints.finish()
    except RunError as error:
        print(number, error)
        break
assert Checkpoints(folder, Ranks(), run.config).restore(run.policy, run.learner) == number - 1
assert not list(folder.glob(".*")), list(folder.glob(".*"))
"""


def test_a_disk_that_fills_up_is_told_from_one_that_cannot_be_written(
    config_file: Callable[..., Path], prepared: Prepared, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    file = config_file({"model": MODELS[0], "output": {"keep_last": 1000}})
    mounted = f'mount -t tmpfs -o size=200k tmpfs {disk} && exec {sys.executable} -c "$0" {file} {disk}'
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*space, f"mount -t tmpfs tmpfs {disk}"], capture_output=True).returncode
    ):
        pytest.skip("no file system may be mounted here")
    done = subprocess.run([*space, mounted, FULL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    number, sentence = done.stdout.split(" ", 1)
    assert int(number) > 1
    assert f"{disk} has no room for the checkpoint of iteration {number}" in sentence
    assert "(No space left on device); make room" in sentence

    run = prepared()
    save(owner(run, tmp_path / "there"), run, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file cannot take the checkpoint of iteration 1, .* \(Not a directory\); see that it"):
        owner(run, tmp_path / "file").save(1, run.policy, run.learner)


def test_resuming_with_another_config_is_refused_and_names_the_key(
    config_file: Callable[..., Path], trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    trained()
    before = (tmp_path / "run/config.yaml").read_text()
    arguments = ("run", config_file(), "--out", tmp_path / "run", "--resume")
    code, _, err = invoke(*arguments, "--set", "seed=8")
    assert code == 2
    assert "was run with another config: seed (7 then, 8 now)" in err
    code, _, err = invoke(*arguments, "--set", "rewards.bright.scale=2")
    assert code == 2
    assert "rewards.bright.scale (1.0 then, 2.0 now)" in err
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_what_a_checkpoint_says_of_the_config_counts_and_not_the_file_beside_it(
    config_file: Callable[..., Path], trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    directory = trained()
    directory.config.write_text(directory.config.read_text().replace("lr: 0.02", "lr: 0.01"))
    arguments = ("run", config_file(), "--out", directory.path, "--resume", "--set", "training.optimizer.lr=0.01")
    code, _, err = invoke(*arguments)
    assert code == 2
    assert "was run with another config: training.optimizer.lr (0.02 then, 0.01 now)" in err
    shorten(directory.checkpoints / "000003/checkpoint.json")  # then the one before says so
    assert invoke(*arguments)[0] == 2


def test_keys_about_memory_and_speed_may_change(trained: Trained) -> None:
    trained({"training": {"iterations": 2}})
    memory = {"batch_size": 3, "kept_on": "host", "iterations": 3}
    trained({"training": memory, "sampling": {"batch_size": 5, "keep_on": "host"}, "evaluation": {"every": 1}}, resume=True)


def test_prompts_are_told_by_their_content_and_not_their_place(
    load: Load, config_file: Callable[..., Path], trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    directory = trained()
    arguments = ("run", config_file(), "--out", directory.path, "--resume")
    (tmp_path / "moved.txt").write_text("red\nblue\n\ngreen \nyellow\nwhite\n")  # blank lines are no prompts
    assert invoke(*arguments, "--set", f"prompts.train={tmp_path / 'moved.txt'}")[0] == 0
    (tmp_path / "train.txt").write_text("red\nblue\ngreen\nyellow\nblack\n")
    code, _, err = invoke(*arguments)
    assert code == 2
    assert "another config: prompts.train: its content has changed since; resume with the same" in err
    config_file()
    code, _, err = invoke(*arguments, "--set", "prompts.heldout=null", "--set", "seed=8")
    assert "prompts.heldout is not set now, seed (7 then, 8 now)" in err


def test_a_prompt_whose_picture_changed_is_another(load: Load, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "one.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "two.png")

    def digest(**changes: Any) -> str:
        config = load()
        (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "a", "image": "one.png", **changes}) + "\n")
        prompts = config.prompts.model_copy(update={"train": tmp_path / "train.jsonl"})
        return str(fixed_config(config.model_copy(update={"prompts": prompts}))["prompts.train"])

    before = digest()
    assert digest(image="two.png") == before
    others = {
        digest(prompt="b"),
        digest(negative_prompt="b"),
        digest(count=3),
        digest(prompt="c", image="two.png"),
    }
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "one.png")
    assert len({before, digest(), *others}) == 6


def test_a_second_run_into_the_same_directory_is_refused(
    config_file: Callable[..., Path], trained: Trained, figures: Figures, invoke: Invoke, tmp_path: Path
) -> None:
    directory = trained()
    before = directory.metrics.read_text()
    code, out, err = invoke("run", config_file(), "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'run'} already holds a run; continue it with --resume, or choose another --out\n"
    assert directory.metrics.read_text() == before


def test_a_finished_run_can_be_given_more_iterations(trained: Trained, figures: Figures) -> None:
    trained({"training": {"iterations": 3}})
    longer = trained({"training": {"iterations": 5}}, resume=True)
    whole = trained({"training": {"iterations": 5}}, out="whole")
    assert figures(longer)[4:] == figures(whole)[4:]
    assert [record["iteration"] for record in longer.records()] == [0, 1, 2, 3, 4, 5]


def test_a_run_of_adapters_resumes_bit_for_bit_whatever_alpha_over_rank(trained: Trained, figures: Figures) -> None:
    model = {"model": {"name": "net", "train": {"lora": {"rank": 3, "alpha": 7}}}}  # a ratio that no float is
    whole = trained(model | {"training": {"iterations": 4}}, out="whole")
    halves = trained(model | {"training": {"iterations": 2}}, out="halves")
    trained(model | {"training": {"iterations": 4}}, out="halves", resume=True)
    assert figures(halves)[3:] == figures(whole)[3:]
    one, other = (weights(directory.checkpoints / "000004") for directory in (whole, halves))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_resuming_a_finished_run_changes_nothing(trained: Trained) -> None:
    directory = trained()
    before = directory.metrics.read_text()
    trained(resume=True)
    assert directory.metrics.read_text() == before


def test_resuming_where_nothing_was_saved_starts_at_the_beginning(trained: Trained, figures: Figures) -> None:
    assert figures(trained(resume=True)) == figures(trained(out="other"))


def test_a_record_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append({"iteration": 1, "loss": 0.5})
    directory.append({"iteration": 2, "loss": 0.25})
    with directory.metrics.open("a") as file:
        file.write('{"iteration": 3, "lo')
    assert directory.records() == [{"iteration": 1, "loss": 0.5}, {"iteration": 2, "loss": 0.25}]
    directory.rewind(1)
    assert [json.loads(line) for line in directory.metrics.read_text().splitlines()] == [{"iteration": 1, "loss": 0.5}]
