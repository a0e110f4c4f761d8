"""`flowfactory run` on two ranks, as a user gives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty_model
import pytest
import yaml

from flowfactory.runs.lock import held

HERE = Path(__file__).parent
TOY = HERE.parent / "core" / "toy_plugin.py"
TWO = ("--nproc", "2")
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.distributed


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Begins the toy's run, in a process group of its own, with options of the reward."""

    begun: list[subprocess.Popen[str]] = []

    def begin(
        *arguments: str, variables: dict[str, str] | None = None, model: dict[str, Any] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        (tmp_path / "prompts.txt").write_text("red\nblue\ngreen\nyellow\n")
        config = {
            "model": {"name": "toy", "p": 0.1, "q": 0.2} | (model or {}),
            "algorithm": {"name": "score"},
            "rewards": {"bright": {"name": "troubled", **options}},
            "prompts": {"train": "prompts.txt"},
            "sampling": {"groups": 4, "group_size": 4, "size": [4, 4], "steps": 4, "dynamics": {"name": "flow-sde"}},
            "training": {"iterations": 6, "optimizer": {"lr": 0.02}},
            "distributed": {"shard": 1},
            "output": {"checkpoint_every": 2},
            "plugins": [str(TOY), str(HERE / "troubled.py"), faulty_model.FILE],
            "device": "cpu",
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        own = {"FLOWFACTORY_CACHE": str(tmp_path / "cache"), "FLOWFACTORY_PLUGINS": "", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfactory", "run", str(tmp_path / "config.yaml"), *arguments],
            cwd=tmp_path,
            env=os.environ | own | (variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()  # if a test failed; its ranks go with it
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def iterations(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / "runs/config/metrics.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs/config/checkpoints").iterdir())


def test_a_rank_that_raises_is_heard_once(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, trouble="raise")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("stopped: ")
    assert "the judge is out" in err.splitlines()[-1]
    assert "Connection closed" not in out + err
    assert out.count("iteration 1/6") == 1


def test_a_rank_that_dies_is_replaced_and_the_run_goes_on_from_its_checkpoint(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, trouble="die", at=4)  # in the fourth iteration
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert [line for line in err.splitlines() if "SIGKILL" in line] == [
        "rank 1 was killed by SIGKILL, perhaps for lack of memory; "
        "all ranks start again from the last checkpoint, restart 1 of 3"
    ]
    assert out.count("resumed after iteration 2") == 1
    assert iterations(tmp_path) == [0, 1, 2, 3, 4, 5, 6]


def test_ranks_that_cannot_write_to_the_cache_encode_for_themselves_and_one_tells(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start(*TWO, "--set", "training.iterations=1", variables={"FLOWFACTORY_CACHE": str(tmp_path / "file")})
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert (out + err).count("is kept in memory alone") == 1
    assert iterations(tmp_path) == [0, 1]


def test_a_launcher_that_was_killed_leaves_nothing_that_the_next_does_not_remove(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    place = {"TMPDIR": str(tmp_path / "tmp")}
    process = start(*TWO, "--set", "training.iterations=1", variables=place)
    assert process.stdout is not None
    assert process.stdout.readline()
    (left,) = (tmp_path / "tmp").glob("flowfactory-*")
    process.kill()
    process.wait(60)
    os.utime(left, times=(time.time() - 90_000,) * 2)
    again = start(*TWO, "--set", "training.iterations=1", variables=place)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, out + err
    assert not list((tmp_path / "tmp").glob("flowfactory-*"))


def test_ctrl_c_saves_once_leaves_nothing_running_and_can_be_resumed(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, seconds=0.3)
    assert process.stdout is not None
    seen = next(line for line in process.stdout if line.startswith("iteration 1/6"))
    assert seen
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, out + err
    assert (out + err).count("stopping after this iteration") == 1
    assert (out + err).count("continue with --resume") == 1
    done = iterations(tmp_path)[-1]
    assert 2 <= done < 6
    assert checkpoints(tmp_path) == sorted({"000002", f"{done:06d}"})
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed
    resumed = start(*TWO, "--resume", seconds=0.3)
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, out + err
    assert iterations(tmp_path) == [*range(7)]


def end_of(folder: Path) -> dict[str, str]:
    end: dict[str, str] = json.loads((folder / "runs/config/run.json").read_text())["end"]
    return end


def test_when_one_rank_raises_the_leading_one_is_heard_and_the_report_says_why(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, "--set", "output.trackers=[witness]", trouble="raise", at=4)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    folder = tmp_path / "runs/config"
    assert (folder / "witness").exists()
    assert end_of(tmp_path)["how"] == "failed"
    assert "the judge is out" in end_of(tmp_path)["sentence"]
    assert "the judge is out" in (folder / "report.html").read_text()
    assert not (folder / "run.lock").exists()


def test_ranks_that_die_for_good_leave_a_report_and_no_lock(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, "--max-restarts", "0", trouble="die", at=4)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    assert end_of(tmp_path)["sentence"].startswith("rank 1 was killed by SIGKILL")
    assert "rank 1 was killed by SIGKILL" in (tmp_path / "runs/config/report.html").read_text()
    assert not (tmp_path / "runs/config/run.lock").exists()


def test_while_ranks_run_nobody_else_does_and_after_a_kill_the_next_go_on_at_once(start: Start, tmp_path: Path) -> None:
    first = start(*TWO, seconds=10)
    assert first.stdout is not None
    assert next(line for line in first.stdout if line.startswith("iteration 1/6"))
    for arguments in (TWO, ("--resume",)):
        second = start(*arguments)
        _, err = second.communicate(timeout=240)
        assert second.returncode == 2
        assert err.startswith(f"error: {tmp_path / 'runs/config'} is in use by process {first.pid} on ")
    first.kill()
    first.wait()
    resumed = start(*TWO, "--resume")
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, out + err
    assert "waiting" not in out + err
    assert iterations(tmp_path) == [*range(7)]
    assert end_of(tmp_path)["how"] == "finished"


def test_all_tasks_of_srun_say_that_somebody_else_runs_there(start: Start, tmp_path: Path) -> None:
    with held(tmp_path / "runs/config", print):
        tasks = [start("--resume", variables=place) for place in tasks_of_srun()]
        ends = [task.communicate(timeout=240)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [2, 2]
    told = f"{tmp_path / 'runs/config'} is in use by process {os.getpid()} on "
    assert [end.startswith(f"error: rank {rank}: {told}") for rank, end in enumerate(ends)] == [True, True]
    assert [end.count("\n") for end in ends] == [1, 1]


def test_a_platforms_group_of_one_does_not_keep_two_ranks_from_starting(start: Start, tmp_path: Path) -> None:
    platform = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "23456"}
    process = start(*TWO, variables=platform, trouble="raise")  # on the second rank
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    assert out.count("iteration 1/6") == 1
    assert "the judge is out" in err.splitlines()[-1]


def test_ranks_go_on_when_nobody_reads_what_they_say(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, trouble="die", at=4)  # so that the command speaks too
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(240) == 0
    assert iterations(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert checkpoints(tmp_path) == ["000004", "000006"]


def test_a_terminal_that_is_closed_is_a_reason_to_save(start: Start, tmp_path: Path) -> None:
    process = start(*TWO, seconds=0.3)
    assert process.stdout is not None
    assert next(line for line in process.stdout if line.startswith("iteration 1/6"))
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, out + err
    done = iterations(tmp_path)[-1]
    assert 2 <= done < 6
    assert checkpoints(tmp_path) == sorted({"000002", f"{done:06d}"})


def tasks_of_srun() -> list[dict[str, str]]:
    """The environments of two tasks, which nobody but they themselves ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_PORT": port}
    return [step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]


@pytest.mark.parametrize(
    ("rank", "model", "sentence"),
    [
        ("1", {"fault": "media"}, "the model drew media that are not finite for the prompt '"),
        ("1", {"fault": "velocity", "after": 0.5}, ", from step 3 of 4 on (sigma 0.5 to 0.25); look at its transformer: "),
        ("0", {"fault": "conditions"}, "the model's encode made 'embeds' that is not finite, for the prompt 'red'; look at "),
    ],
)
def test_what_one_rank_drew_or_encoded_that_is_not_finite_ends_all_by_one_sentence(
    start: Start, rank: str, model: dict[str, Any], sentence: str
) -> None:
    tasks = [start(variables=place, model={"name": "faulty", "rank": rank, **model}) for place in tasks_of_srun()]
    ends = [task.communicate(timeout=240)[1].splitlines()[-1] for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1]
    assert [end.partition(": the model")[0] for end in ends] == ["stopped: rank 0", "stopped: rank 1"]
    assert ends[0].replace("rank 0", "rank 1") == ends[1]
    assert sentence in ends[0]


def test_tasks_of_srun_are_ranks_and_each_says_why_it_ends(start: Start) -> None:
    tasks = [start(trouble="raise", variables=place) for place in tasks_of_srun()]
    (out, err), (silent, raised) = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1]
    assert out.count("iteration 1/6") == 1
    assert silent == ""
    assert "the judge is out" in raised
    assert err.splitlines()[-1].startswith("stopped: rank 0 lost the other ranks")
    assert "Traceback" not in err
