"""The group that this process is a rank of, as torchrun or SLURM tell it in environment variables. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from flowfactory.distributed.slurm import expand_hosts, expand_tasks_per_node
from flowfactory.errors import UserError

RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
"""How often the ranks were started again; torchrun's name for it."""


@dataclass(frozen=True)
class RankEnvironment:
    """This process's place among ``world_size``, ``local_world_size`` of them on its node; where all meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int

    def variables(self) -> dict[str, str]:
        """The same as torch wants it in the environment."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def read_environment(variables: Mapping[str, str]) -> RankEnvironment | None:
    """The group that this process is a rank of; None where nobody started one.

    RANK, WORLD_SIZE and MASTER_ADDR together say so, as torchrun sets them, or a step of SLURM's srun with several tasks.
    UserError: they contradict one another.
    """
    if all(variables.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        found = _read_torchrun(variables)
    elif variables.get("SLURM_STEP_ID") and not variables.get("RANK") and _count_slurm_tasks(variables) > 1:
        found = _read_slurm(variables)
    else:
        return None
    if not 0 <= found.rank < found.world_size:
        raise UserError(f"rank {found.rank} is not one of {found.world_size}: check the environment that this was started in")
    return found


def in_group() -> bool:
    """Whether this process is a rank of a group that was started."""
    return read_environment(os.environ) is not None


def is_restart() -> bool:
    """Whether this rank takes the place of one that died, and so is to resume."""
    return in_group() and read_number(os.environ, RESTART_COUNT, 0) > 0


def _read_torchrun(variables: Mapping[str, str]) -> RankEnvironment:
    rank, count = read_number(variables, "RANK"), read_number(variables, "WORLD_SIZE")
    here = read_number(variables, "LOCAL_WORLD_SIZE", count)
    local = read_number(variables, "LOCAL_RANK", rank % here if here else 0)
    return RankEnvironment(rank, count, local, here, variables["MASTER_ADDR"], read_number(variables, "MASTER_PORT", 29500))


def _read_slurm(variables: Mapping[str, str]) -> RankEnvironment:
    count = _count_slurm_tasks(variables)
    nodes = next((variables[n] for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if variables.get(n)), "localhost")
    here = expand_tasks_per_node(variables.get("SLURM_STEP_TASKS_PER_NODE") or str(count))[
        read_number(variables, "SLURM_NODEID", 0)
    ]
    # below the ports that the system hands out, and another one for each step of each job
    step = read_number(variables, "SLURM_JOB_ID", 0) * 31 + read_number(variables, "SLURM_STEP_ID", 0)
    return RankEnvironment(
        rank=read_number(variables, "SLURM_PROCID"),
        world_size=count,
        local_rank=read_number(variables, "SLURM_LOCALID"),
        local_world_size=here,
        address=variables.get("MASTER_ADDR") or expand_hosts(nodes)[0],
        port=read_number(variables, "MASTER_PORT", 10_000 + step % 20_000),
    )


def _count_slurm_tasks(variables: Mapping[str, str]) -> int:
    """Of the step where that is told: a shell in an allocation is a step of one, whatever the job may start."""
    return read_number(variables, "SLURM_STEP_NUM_TASKS", read_number(variables, "SLURM_NTASKS", 1))


def read_number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The whole number in the variable ``name``, else ``default``. UserError: it is none."""
    text = variables.get(name) or default
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"the environment variable {name} is {variables.get(name)!r}; it must be a whole number") from None
