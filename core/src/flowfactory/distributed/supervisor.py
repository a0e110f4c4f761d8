"""Starts the ranks of a node, watches them, and ends them as one.

torch's ``elastic_launch`` was tried instead, in torch 2.13 with ``@record`` and two ranks a node. This is what it did, and what
is here because of it.

- It starts all ranks again whatever ended one: a rank that raised did so once more for every restart. ``Supervisor.run`` starts
  them again only after what need not happen again. ``@record`` leaves a traceback, not whether the error is the user's or the
  device's: hence ``outcome.py``.
- When one rank fails, it sends the others SIGTERM, which asks ours to save, and kills them 30 seconds later whatever its
  ``shutdown_timeout``. Ranks that wait for the failed one take all of that, at every restart. ``_kill`` waits for nothing.
- What a rank started lives on if the rank itself has ended. ``_kill`` ends the process group of every rank.
- It passes a stop on to process groups, so what a rank started is stopped before the rank has saved. After 30 seconds it kills
  the ranks, which ended an iteration of 40; a second stop only makes it wait again. It shows nobody its processes, so no one
  else can pass a stop on. ``StopRequests`` counts the stops, and ``Supervisor._watch`` tells each rank once.
- It reports the rank that failed first, which lost a connection, not the one that broke it. ``Supervisor._watch`` waits for the
  rank at fault to speak, and ``Outcome.decisive`` tells which that is.
- The c10d rendezvous numbers nodes by host name and process id. After a rank had raised on one node and its agent had left,
  the ranks of the other node waited on. Where nobody listened, a timeout of 20 seconds was not over after 150. With the static
  rendezvous, two nodes with one rank were told of a key that did not come. ``NodeRendezvous`` takes the numbers it is given,
  lets nodes hear of one another's failures, and names the flag that is wrong.
- Ranks outlive an agent that is killed: hence ``die_with_parent``. It knows nothing of SLURM's variables: hence ``slurm.py``.

torch's ``LocalElasticAgent`` can be made to do all this by overriding its private methods. What is then left of it is a call of
``subprocess.Popen`` for each rank, which is made here, so that nothing of torch is used but its stores.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from flowfactory.distributed.environment import RESTART_COUNT, RankEnvironment
from flowfactory.distributed.hangup import SIGHUP, stop_signals
from flowfactory.distributed.launch import Launch
from flowfactory.distributed.outcome import RESTARTED, Outcome
from flowfactory.distributed.rank_process import DEFAULT_THREADS, OUTCOMES, PARENT, THREADS, outcome_path
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.temporary_folders import temporary_folder
from flowfactory.types import Say

POLL_SECONDS = 0.1
FAULT_REPORT_SECONDS = 3.0
"""For the rank at fault to say so, once another has ended because of it, and for the others to end what they have begun."""
EXIT_SECONDS = 10.0
"""For ranks to exit that say they are done."""
FAILED_NODES_SECONDS = 30.0
"""For the other nodes to say how they ended, when it was not well."""
ALL_NODES_SECONDS = 900.0
"""For all nodes to come, and to leave."""
RETURN_SECONDS = 120.0
"""For all nodes to come again: those that are still there have ended their ranks, and heard of one another, sooner."""
KILL_SECONDS = 30.0
"""For the system to end a killed rank: one that hangs in a driver is left behind."""


class StopRequests:
    """How often this process was asked to stop, by Ctrl+C, SIGTERM or SIGHUP."""

    count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within it they do nothing else."""

        def add(number: int, frame: FrameType | None) -> None:
            if number != SIGHUP or not self.count:  # a terminal that is closed sends several
                self.count += 1

        before = {number: signal.signal(number, add) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class NodeRendezvous:
    """The store at which all nodes meet before every attempt, and where they tell one another how their ranks ended.

    The first node holds it; so it leaves last. One node alone has it in memory.
    """

    def __init__(self, launch: Launch, requests: StopRequests) -> None:
        self.node, self._nodes = launch.node_rank or 0, launch.nnodes
        self._local_world_size = launch.local_world_size
        self._requests = requests
        self._rank_store: Store | None = None  # for the ranks' process group; it is open for as long as it is kept here
        self._address, port = launch.parse_rendezvous() if self._nodes > 1 else ("127.0.0.1", 0)
        self._base: Store = self._connect(port) if self._nodes > 1 else HashStore()
        self._store = self._base

    def _connect(self, port: int) -> Store:
        """The common store. UserError: the first node cannot be reached, or two nodes have one rank."""
        deadline = time.monotonic() + ALL_NODES_SECONDS
        while True:
            try:
                store = TCPStore(
                    self._address, port, is_master=self.node == 0, timeout=timedelta(seconds=5), wait_for_workers=False
                )
                break
            except DistError as error:
                if self.node == 0:
                    raise UserError(f"--rendezvous {self._address}:{port}: cannot be opened here: {error}") from error
                told = f"--rendezvous {self._address}:{port}: no node with --node-rank 0 is to be reached there"
                self._pause(deadline, UserError(f"{told} after {ALL_NODES_SECONDS / 60:.0f} minutes; start all nodes together"))
        store.set_timeout(timedelta(seconds=60))
        if store.add(f"node-{self.node}", 1) > 1:
            raise UserError(f"--node-rank {self.node}: another node has it already; give each its own")
        return store

    def _pause(self, deadline: float, late: Exception) -> None:
        if self._requests.count:
            raise Interrupted("stopped before the ranks were started")
        if time.monotonic() > deadline:
            raise late
        time.sleep(POLL_SECONDS)

    def meet(self, attempt: int) -> list[RankEnvironment]:
        """The places of this node's ranks in ``attempt``, once all nodes are here.

        UserError: they do not come. RunError: not for another attempt. Interrupted: asked to stop before they did.
        """
        self._store = store = PrefixStore(f"attempt-{attempt}", self._base)
        port = 0
        if self.node == 0:  # a new one for every attempt: in the old one are the addresses of ranks that are gone
            self._rank_store = rank_store = TCPStore(self._address, 0, is_master=True, wait_for_workers=False)
            port = rank_store.port
        store.set(f"here-{self.node}", json.dumps([self._local_world_size, self._address, port]))
        deadline = time.monotonic() + (RETURN_SECONDS if attempt else ALL_NODES_SECONDS)
        while missing := [str(node) for node in range(self._nodes) if not store.check([f"here-{node}"])]:
            self._pause(deadline, _describe_missing(missing, self._nodes, attempt))
        counts, addresses, ports = zip(*(json.loads(store.get(f"here-{node}")) for node in range(self._nodes)), strict=True)
        count, first = counts[self.node], sum(counts[: self.node])
        return [RankEnvironment(first + i, sum(counts), i, count, addresses[0], ports[0]) for i in range(count)]

    def has_failed(self) -> bool:
        """Whether a node said that its ranks cannot go on."""
        return self._nodes > 1 and bool(self._store.check(["failed"]))

    def agree(self, outcome: Outcome) -> Outcome:
        """The decisive one of ``outcome`` and those of the other nodes, as far as they come in time."""
        store, nodes = self._store, range(self._nodes)
        if outcome.failed:
            store.set("failed", "")
        store.set(f"outcome-{self.node}", outcome.as_json())
        deadline = time.monotonic() + (FAILED_NODES_SECONDS if outcome.failed else ALL_NODES_SECONDS)
        while not store.check([f"outcome-{node}" for node in nodes]):
            if time.monotonic() > deadline or self._requests.count > 1:
                break
            time.sleep(POLL_SECONDS)
        known = [node for node in nodes if store.check([f"outcome-{node}"])]
        found = [Outcome.read(store.get(f"outcome-{node}")) for node in known]
        read = store.add("read", 1)
        while self.node == 0 and read < len(known) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            read = store.add("read", 0)
        return Outcome.decisive(found)


@dataclass(frozen=True)
class Supervisor:
    """Runs ``command`` as every rank of one node, with ``variables`` in the environment.

    A rank that raises ends all. One that dies, whose device fails or that loses others is reason to start all again. A stop
    lets all finish what they do.
    """

    command: Sequence[str]
    max_restarts: int
    rendezvous: NodeRendezvous
    folder: Path
    requests: StopRequests
    say: Say
    variables: Mapping[str, str] | None = None

    def run(self) -> Outcome:
        """How the last attempt ended on all nodes.

        UserError, RunError, Interrupted: the nodes did not meet. DistError: the first one went away.
        """
        most, attempt = self.max_restarts, 0
        while True:
            outcome = self.rendezvous.agree(self._run_attempt(attempt))
            if outcome.kind not in RESTARTED or self.requests.count:
                return outcome
            if attempt == most:
                told = f"after {most} restart{'s' if most > 1 else ''}; " if most else ""
                return replace(outcome, message=f"{outcome.message}; {told}continue with --resume")
            attempt += 1
            told = f"all ranks start again from the last checkpoint, restart {attempt} of {most}"
            self.say(f"{outcome.message}; {told}")

    def _run_attempt(self, attempt: int) -> Outcome:
        """How the ranks of this node ended; none is left, nor what it started."""
        processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for place in self.rendezvous.meet(attempt):
                processes[place.rank] = self._start_rank(place, attempt)
            return self._watch(processes, attempt)
        finally:
            _kill(processes.values())

    def _start_rank(self, place: RankEnvironment, attempt: int) -> subprocess.Popen[bytes]:
        defaults = {THREADS: "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}  # as torchrun has it: ranks share the cores
        chosen = {} if THREADS in os.environ | (self.variables or {}) else {DEFAULT_THREADS: "1"}
        given = {**chosen, RESTART_COUNT: str(attempt), OUTCOMES: str(self.folder), PARENT: str(os.getpid())}
        given["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # else the first rank would open the store that is open already
        return subprocess.Popen(
            self.command,
            env=defaults | os.environ | {**(self.variables or {})} | place.variables() | given,
            start_new_session=True,  # a terminal's Ctrl+C is ours to pass on, and what the rank starts is in its group
        )

    def _watch(self, processes: Mapping[int, subprocess.Popen[bytes]], attempt: int) -> Outcome:
        """What decided how the ranks ended, as soon as they have, or are to be ended."""
        ended: dict[int, Outcome] = {}
        since: float | None = None
        stopping = False
        while True:
            time.sleep(POLL_SECONDS)
            if self.requests.count and not stopping:
                stopping = True
                for process in processes.values():
                    process.terminate()  # the rank alone: what it started itself, it ends itself
            for rank in sorted(processes.keys() - ended.keys()):
                outcome = self._read_outcome(rank, processes[rank], attempt, stopping)
                if outcome is not None:
                    ended[rank] = outcome
            if self.requests.count > 1:
                return Outcome("stopped", message="stopped at once")
            failed = self.rendezvous.has_failed() or any(outcome.failed for outcome in ended.values())
            if not failed and len(ended) < len(processes):
                continue
            since = since or time.monotonic()
            patience = FAULT_REPORT_SECONDS if failed else EXIT_SECONDS
            if time.monotonic() >= since + patience or all(process.poll() is not None for process in processes.values()):
                return Outcome.decisive([*ended.values()] or [Outcome("lost", message="another node ended", time=time.time())])

    def _read_outcome(self, rank: int, process: subprocess.Popen[bytes], attempt: int, stopping: bool) -> Outcome | None:
        """What the rank says itself, else what its exit code says; None while it works."""
        code = process.poll()  # before the file is looked for, which is written first
        path = outcome_path(self.folder, attempt, rank)
        if path.exists():
            return Outcome.read(path.read_text(encoding="utf-8"))
        if code is None:
            return None
        if code == 0:
            return Outcome("done", rank)
        if stopping and code == -signal.SIGTERM:
            return Outcome("stopped", rank, "stopped while no iteration was under way; what was saved before is as it was")
        return Outcome("died", rank, f"rank {rank} {_describe_exit(code)}", time=time.time())


def _describe_missing(missing: Sequence[str], nodes: int, attempt: int) -> Exception:
    if attempt:
        told = f"node{'s' if len(missing) > 1 else ''} {', '.join(missing)} did not come back"
        return RunError(f"{told} within {RETURN_SECONDS:.0f} seconds; start all {nodes} nodes again, with --resume")
    told = f"--nnodes {nodes}: not all of them are there after {ALL_NODES_SECONDS / 60:.0f} minutes (not {', '.join(missing)})"
    return UserError(f"{told}; start all nodes together")


def _describe_exit(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code} and said nothing"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (", perhaps for lack of memory" if -code == signal.SIGKILL else "")


def _kill(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """End them at once, with what they started: whoever was to finish something has done so."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)


def start(command: Sequence[str], launch: Launch, say: Say, variables: Mapping[str, str] | None = None) -> None:
    """Run ``command`` as every rank of ``launch`` on this node until all have ended. Call it in the main thread.

    ``variables`` are set for the ranks alone.

    The end of a run is raised as in one process: UserError, RunError, Interrupted. A rank that raises ends all of them. One
    that dies, whose device fails or that loses the others is reason to start all again, with TORCHELASTIC_RESTART_COUNT above
    0. The first Ctrl+C, SIGTERM or SIGHUP is passed on to every rank as one SIGTERM; the second ends them at once.
    UserError too: the nodes do not meet. Interrupted: asked to stop before they did. RunError: a node went away.
    """
    requests = StopRequests()
    with requests.counted(), temporary_folder() as folder:
        rendezvous = NodeRendezvous(launch, requests)
        try:
            outcome = Supervisor(command, launch.max_restarts, rendezvous, folder, requests, say, variables).run()
        except DistError as error:
            lost = f"node {rendezvous.node} lost the first node; see there, or continue with --resume: {error}"
            raise RunError(lost) from error
    outcome.conclude()


def check_devices(launch: Launch, device: str) -> None:
    """UserError: ``device``, as a config names it, is CUDA and there is not one for each rank on this node."""
    if device != "auto" and not device.startswith("cuda"):
        return
    there, wanted = torch.cuda.device_count(), launch.local_world_size
    if ":" in device and wanted > 1:
        raise UserError(f"device: {device} is one device for {wanted} ranks; write cuda, and each has its own")
    if there < wanted and (there or device != "auto"):
        raise UserError(f"--nproc {wanted}: this node has {there} CUDA devices, and each rank needs its own")
