"""The batch scripts of the page about launching, run with stand-ins for SLURM's commands: what each task is given."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowfactory.cli.main import app
from flowfactory.distributed.environment import read_environment
from flowfactory.distributed.launch import Launch

PAGE = Path(__file__).parents[2] / "docs" / "launching.md"
SCRIPTS = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
OF_TASKS, OF_NODES = range(2)

SCONTROL = "#!/bin/bash\n[ \"$*\" = 'show hostnames gpu[07-08]' ] && printf 'gpu07\\ngpu08\\n'\n"
SRUN = """#!{python}
# each task after the other, with the variables that srun sets for a step
import os, subprocess, sys
command = [*sys.argv[1:]]
while command[0].startswith("--"):
    assert command.pop(0) == "--kill-on-bad-exit=1"
nodes, tasks = (int(os.environ[name]) for name in ("SLURM_NNODES", "TASKS_PER_NODE"))
for node in range(nodes):
    for task in range(tasks):
        place = {{"NODEID": node, "LOCALID": task, "PROCID": node * tasks + task, "STEP_ID": 0}}
        place |= {{"STEP_NUM_TASKS": nodes * tasks}}
        place |= {{"STEP_TASKS_PER_NODE": f"{{tasks}}(x{{nodes}})", "STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"]}}
        own = {{f"SLURM_{{name}}": str(value) for name, value in place.items()}}
        subprocess.run(command, env=os.environ | own, check=True)
"""
FLOWFACTORY = """#!{python}
import json, os, sys
with open(os.environ["TOLD"], "a") as told:
    told.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
"""


def directives(script: str) -> dict[str, str]:
    """What the script asks sbatch for, by its name."""
    lines = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    found = dict(re.fullmatch(r"--([a-z-]+)(?:=(\S+))?", line).groups("") for line in lines)  # type: ignore[union-attr]
    assert len(found) == len(lines)
    return found


def run(script: str, folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of every ``flowfactory`` that the script starts."""
    asked, commands = directives(script), folder / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("flowfactory", FLOWFACTORY)):
        (commands / name).write_text(text.format(python=sys.executable) if "{python}" in text else text)
        (commands / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "1000",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_NNODES": asked["nodes"],
        "SLURM_NTASKS": str(int(asked["nodes"]) * int(asked["ntasks-per-node"])),
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
    }
    own = {"PATH": f"{commands}:{os.environ['PATH']}", "TOLD": str(folder / "told"), "TASKS_PER_NODE": asked["ntasks-per-node"]}
    (folder / "script").write_text(script)
    done = subprocess.run(["bash", "-eu", str(folder / "script")], env=own | job, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [tuple(json.loads(line)) for line in (folder / "told").read_text().splitlines()]


def options(arguments: list[str]) -> dict[str, Any]:
    """What the real command reads in them. A usage error: it does not know one."""
    import typer

    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    with command.make_context("run", arguments[1:]) as context:
        found: dict[str, Any] = context.params
    return found


def test_the_page_has_two_scripts() -> None:
    assert len(SCRIPTS) == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_task_gets_its_cores_and_is_told_the_network(script: str, tmp_path: Path) -> None:
    asked = directives(script)
    assert int(asked["cpus-per-task"]) * int(asked["ntasks-per-node"]) == 96, "all cores of the node in the example"
    for _, variables in run(script, tmp_path):
        assert variables["SRUN_CPUS_PER_TASK"] == asked["cpus-per-task"]
        assert variables["NCCL_SOCKET_IFNAME"] == variables["GLOO_SOCKET_IFNAME"] == "ib0"


def test_a_task_a_gpu_is_a_rank(tmp_path: Path) -> None:
    script = SCRIPTS[OF_TASKS]
    asked = directives(script)
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    told = run(script, tmp_path)
    places = [read_environment(variables) for _, variables in told]
    assert [place and (place.rank, place.local_rank, place.local_world_size) for place in places] == [
        (rank, rank % 8, 8) for rank in range(16)
    ]
    assert {place and (place.world_size, place.address) for place in places} == {(16, "gpu07")}
    for arguments, variables in told:
        chosen = options(arguments)
        assert (chosen["config"], chosen["resume"]) == ("config.yaml", True)
        Launch(chosen["nproc"], chosen["nnodes"]).check(variables)


def test_a_task_a_node_starts_the_ranks_of_its_node(tmp_path: Path) -> None:
    script = SCRIPTS[OF_NODES]
    asked = directives(script)
    assert asked["ntasks-per-node"] == "1"
    for node, (arguments, variables) in enumerate(run(script, tmp_path)):
        chosen = options(arguments)
        assert str(chosen["nproc"]) == asked["gpus-per-node"]
        assert (chosen["nnodes"], chosen["node_rank"], chosen["resume"]) == (2, node, True)
        launch = Launch(chosen["nproc"], chosen["nnodes"], chosen["node_rank"], chosen["rendezvous"])
        launch.check(variables)
        assert launch.parse_rendezvous() == ("gpu07", 29400)
