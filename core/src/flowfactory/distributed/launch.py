"""Start the ranks of a run, or find the group that was started; what the end of a rank means for all. Imports no torch."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from flowfactory.errors import Interrupted, RunError, UserError

OUTCOMES = "FLOWFACTORY_OUTCOMES"
"""Set for ranks that :func:`start` started: the folder in which each says how it ended."""
PARENT = "FLOWFACTORY_PARENT"
"""Set with it: the process that started the rank, and without which it is not to live."""


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


def environment(variables: Mapping[str, str]) -> RankEnvironment | None:
    """The group that this process is a rank of; None where nobody started one.

    RANK, WORLD_SIZE and MASTER_ADDR together say so, as torchrun sets them, or a step of SLURM's srun with several tasks.
    UserError: they contradict one another.
    """
    if all(variables.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        found = _of_torch(variables)
    elif variables.get("SLURM_STEP_ID") and not variables.get("RANK") and _tasks(variables) > 1:
        found = _of_slurm(variables)
    else:
        return None
    if not 0 <= found.rank < found.world_size:
        raise UserError(f"rank {found.rank} is not one of {found.world_size}: see to the environment that this was started in")
    return found


def joined() -> bool:
    """Whether this process is a rank of a group that was started."""
    return environment(os.environ) is not None


def restarted() -> bool:
    """Whether this rank takes the place of one that died, and so is to resume."""
    return joined() and _number(os.environ, "TORCHELASTIC_RESTART_COUNT", 0) > 0


def _of_torch(variables: Mapping[str, str]) -> RankEnvironment:
    rank, count = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    here = _number(variables, "LOCAL_WORLD_SIZE", count)
    local = _number(variables, "LOCAL_RANK", rank % here if here else 0)
    return RankEnvironment(rank, count, local, here, variables["MASTER_ADDR"], _number(variables, "MASTER_PORT", 29500))


def _of_slurm(variables: Mapping[str, str]) -> RankEnvironment:
    count = _tasks(variables)
    nodes = next((variables[n] for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if variables.get(n)), "localhost")
    here = tasks_per_node(variables.get("SLURM_STEP_TASKS_PER_NODE") or str(count))[_number(variables, "SLURM_NODEID", 0)]
    # below the ports that the system hands out, and another one for each step of each job
    step = _number(variables, "SLURM_JOB_ID", 0) * 31 + _number(variables, "SLURM_STEP_ID", 0)
    return RankEnvironment(
        rank=_number(variables, "SLURM_PROCID"),
        world_size=count,
        local_rank=_number(variables, "SLURM_LOCALID"),
        local_world_size=here,
        address=variables.get("MASTER_ADDR") or hosts(nodes)[0],
        port=_number(variables, "MASTER_PORT", 10_000 + step % 20_000),
    )


def _tasks(variables: Mapping[str, str]) -> int:
    """Of the step where that is told: a shell in an allocation is a step of one, whatever the job may start."""
    return _number(variables, "SLURM_STEP_NUM_TASKS", _number(variables, "SLURM_NTASKS", 1))


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name) or default
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"the environment variable {name} is {variables.get(name)!r}; it must be a whole number") from None


def hosts(text: str) -> list[str]:
    """The names in a node list as SLURM writes it: ``node[01-03,7],gpu5`` are node01, node02, node03, node7 and gpu5."""
    return [name for entry in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text) for name in _expanded(entry.strip())]


def _expanded(entry: str) -> list[str]:
    parts = re.split(r"\[([^\]]*)\]", entry)  # every other one is what stood in brackets
    choices = [_numbers(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _numbers(text: str) -> list[str]:
    found = []
    for piece in text.split(","):
        first, _, last = piece.strip().partition("-")
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return found


def tasks_per_node(text: str) -> list[int]:
    """What SLURM writes as ``4(x2),3``: 4, 4 and 3."""
    found = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


@dataclass(frozen=True)
class Launch:
    """How many ranks are to be started, on which of how many nodes; a rank that dies is replaced ``max_restarts`` times."""

    nproc: int | None = None
    nnodes: int = 1
    node_rank: int | None = None
    rendezvous: str | None = None
    max_restarts: int = 3

    @property
    def several(self) -> bool:
        """Whether there is anything to start."""
        return self.count > 1 or self.nnodes > 1

    @property
    def count(self) -> int:
        """Ranks on this node."""
        return self.nproc or 1

    def endpoint(self) -> tuple[str, int]:
        """Host and port of ``rendezvous``. UserError: it is no such thing."""
        host, _, port = (self.rendezvous or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--rendezvous {self.rendezvous}: write HOST:PORT, of the node with --node-rank 0")
        return host.strip("[]"), int(port)

    def insist(self, variables: Mapping[str, str]) -> None:
        """UserError: this cannot be started, or not within ``variables``, the environment."""
        if self.nproc is not None and self.nproc < 1:
            raise UserError(f"--nproc {self.nproc}: give the number of ranks on this node, 1 or more")
        if self.nnodes < 1:
            raise UserError(f"--nnodes {self.nnodes}: give the number of nodes, 1 or more")
        if self.max_restarts < 0:
            raise UserError(f"--max-restarts {self.max_restarts}: give 0 or more")
        group = environment(variables)
        if group and not variables.get("RANK") and self.nnodes == group.world_size:
            group = None  # srun gave this command once for each node
        if group and (self.nproc is not None or self.nnodes > 1):
            flag = "--nnodes" if self.nproc is None else "--nproc"
            raise UserError(
                f"{flag}: this process is rank {group.rank} of {group.world_size} that are started already; leave it out"
            )
        if self.nnodes == 1 and self.node_rank:
            raise UserError(f"--node-rank {self.node_rank}: there is one node; say how many with --nnodes")
        if self.nnodes > 1:
            if self.node_rank is None or not 0 <= self.node_rank < self.nnodes:
                given = "" if self.node_rank is None else f" {self.node_rank}"
                raise UserError(
                    f"--node-rank{given}: give each of the {self.nnodes} nodes its own, from 0 to {self.nnodes - 1}"
                )
            self.endpoint()

    def insist_on_devices(self, device: str) -> None:
        """UserError: ``device``, as a config names it, is CUDA and there is not one for each rank on this node."""
        if device != "auto" and not device.startswith("cuda"):
            return
        import torch

        there = torch.cuda.device_count()
        if ":" in device and self.count > 1:
            raise UserError(f"device: {device} is one device for {self.count} ranks; write cuda, and each has its own")
        if there < self.count and (there or device != "auto"):
            raise UserError(f"--nproc {self.count}: this node has {there} CUDA devices, and each rank wants its own")


KINDS = {"user": 0, "run": 0, "unexpected": 0, "interrupted": 1, "stopped": 2, "died": 3, "lost": 4, "done": 5}
"""How a rank can end, and what counts when ranks end differently: what cannot be a consequence of how another one ended."""


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: one of KINDS, its sentence, a traceback if one is to be shown, and when."""

    kind: str
    rank: int = 0
    message: str = ""
    details: str = ""
    time: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the other ranks cannot go on."""
        return self.kind not in ("done", "interrupted")

    def as_json(self) -> str:
        """For :meth:`read`."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str | bytes) -> Outcome:
        """What :meth:`as_json` wrote."""
        return Outcome(**json.loads(text))

    @staticmethod
    def decisive(outcomes: Sequence[Outcome]) -> Outcome:
        """The one that the others follow from."""
        return min(outcomes, key=lambda outcome: (KINDS[outcome.kind], outcome.time))

    def conclude(self) -> None:
        """Raise what a run in one process would have raised; an unexpected error's traceback is printed first."""
        if self.kind == "user":
            raise UserError(self.message)
        if self.kind in ("interrupted", "stopped"):
            raise Interrupted(self.message)
        if self.details:
            print(self.details.rstrip(), file=sys.stderr)
        if self.failed:
            raise RunError(self.message)


def outcome_of(error: BaseException | None, rank: int) -> Outcome:
    """What ``error`` means when ``rank`` ends by it; None is that it is done."""
    if error is None:
        outcome = Outcome("done")
    elif _is_lost(error):
        outcome = Outcome("lost", message=f"rank {rank} lost the other ranks or waited for them in vain: {_first_line(error)}")
    elif isinstance(error, Interrupted | UserError | RunError):
        kinds = {Interrupted: "interrupted", UserError: "user", RunError: "run"}
        outcome = Outcome(next(kind for type_, kind in kinds.items() if isinstance(error, type_)), message=str(error))
    else:
        outcome = Outcome("unexpected", message=f"rank {rank} raised {type(error).__name__}: {_first_line(error)}")
    told = error is not None and outcome.kind in ("unexpected", "lost")
    details = "".join(traceback.format_exception(error)) if told else ""
    return replace(outcome, rank=rank, details=details, time=time.time())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _is_lost(error: BaseException | None) -> bool:
    """Whether it comes of what another rank did; gloo raises plain RuntimeErrors, which begin with the name of its file."""
    distributed = sys.modules.get("torch.distributed")
    while error is not None:
        if distributed is not None and isinstance(error, distributed.DistError):
            return True
        if type(error) is RuntimeError and "/gloo/" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def watched() -> bool:
    """Whether this process is a rank that :func:`start` started, whose parent speaks for it."""
    return OUTCOMES in os.environ and joined()


def report(error: BaseException | None) -> None:
    """Say to the parent how this rank ended."""
    found = environment(os.environ)
    assert found is not None
    path = outcome_path(Path(os.environ[OUTCOMES]), _number(os.environ, "TORCHELASTIC_RESTART_COUNT", 0), found.rank)
    temporary = path.with_suffix(".writing")
    temporary.write_text(outcome_of(error, found.rank).as_json(), encoding="utf-8")
    temporary.replace(path)


def outcome_path(folder: Path, attempt: int, rank: int) -> Path:
    """Where ``rank`` says how its ``attempt`` ended."""
    return folder / f"{attempt}-{rank}.json"


def live_with_parent() -> None:
    """Have this rank killed when the process that started it ends, in whatever way; on Linux alone."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was already gone
        os.kill(os.getpid(), signal.SIGKILL)


def start(command: Sequence[str], launch: Launch, say: Callable[[str], None]) -> None:
    """Run ``command`` as every rank of ``launch`` on this node until all have ended.

    The end of a run is raised as in one process: UserError, RunError, Interrupted. A rank that raises ends all of them. One
    that dies is reason to start all again, with TORCHELASTIC_RESTART_COUNT above 0. The first Ctrl+C or SIGTERM
    is passed on to every rank as one SIGTERM; the second ends them at once.
    """
    from flowfactory.distributed.elastic_agent import run

    run(command, launch, say).conclude()
