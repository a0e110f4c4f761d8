"""torch's elastic agent, which starts the ranks of a node and watches them, with this project's idea of how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from flowfactory.distributed.launch import Launch
from flowfactory.distributed.outcome import OUTCOMES, PARENT, Outcome, outcome_path
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.types import Say

LOOK = 0.1
SETTLE = 0.5
"""Seconds for the rank at fault to say so, once another has ended because of it."""
LEAVE = 10.0
"""Seconds for ranks to exit that say they are done."""
HEAR = 30.0
"""Seconds for the other nodes to say how they ended, when it was not well."""
MEET = 900.0
"""Seconds for all nodes to come, and to leave."""


class Requests:
    """How often this process was asked to stop, by Ctrl+C or SIGTERM."""

    count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within it they do nothing else."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.count += 1

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Nodes(RendezvousHandler):
    """Where the agents of all nodes meet, again before every attempt, and tell one another how their ranks ended.

    The first node has the store; so it leaves last.
    """

    def __init__(self, launch: Launch, requests: Requests) -> None:
        self.rank, self.count = launch.node_rank or 0, launch.nnodes
        self._requests = requests
        self._name = uuid.uuid4().hex
        self._attempt = -1
        self._server: Store | None = None
        self._address, port = launch.endpoint() if self.count > 1 else ("127.0.0.1", 0)
        self._base: Store = self._meet(port) if self.count > 1 else HashStore()

    def _meet(self, port: int) -> Store:
        """The common store. UserError: the first node cannot be reached, or two nodes have one rank."""
        deadline = time.monotonic() + MEET
        while True:
            try:
                store = TCPStore(
                    self._address, port, is_master=self.rank == 0, timeout=timedelta(seconds=5), wait_for_workers=False
                )
                break
            except DistError as error:
                if self.rank == 0:
                    raise UserError(f"--rendezvous {self._address}:{port}: cannot be opened here: {error}") from error
                self._pause(deadline, f"--rendezvous {self._address}:{port}: no node with --node-rank 0 is to be reached there")
        store.set_timeout(timedelta(seconds=60))
        if store.add(f"node-{self.rank}", 1) > 1:
            raise UserError(f"--node-rank {self.rank}: another node has it already; give each its own")
        return store

    def _pause(self, deadline: float, problem: str) -> None:
        if self._requests.count:
            raise Interrupted("stopped before the ranks were started")
        if time.monotonic() > deadline:
            raise UserError(f"{problem} after {MEET / 60:.0f} minutes; start all nodes together")
        time.sleep(LOOK)

    @property
    def _store(self) -> Store:
        return PrefixStore(f"attempt-{self._attempt}", self._base)

    def next_rendezvous(self) -> RendezvousInfo:
        """The next attempt, when all nodes are here."""
        self._attempt += 1
        store = self._store
        port = None
        if self.rank == 0:  # a new one for every attempt: in the old one are the addresses of ranks that are gone
            self._server = server = TCPStore(self._address, 0, is_master=True, wait_for_workers=False)
            port = server.port
        store.set(f"here-{self.rank}", "")
        deadline = time.monotonic() + MEET
        while not store.check([f"here-{node}" for node in range(self.count)]):
            self._pause(deadline, f"--nnodes {self.count}: not all of them are there")
        info = RendezvousStoreInfo.build(self.rank, store, self._address, port)
        return RendezvousInfo(store, self.rank, self.count, info)

    def trouble(self) -> bool:
        """Whether a node said that its ranks cannot go on."""
        return self.count > 1 and bool(self._store.check(["trouble"]))

    def exchange(self, outcome: Outcome) -> list[Outcome]:
        """``outcome`` and those of the other nodes, as far as they come in time."""
        store = self._store
        if outcome.failed:
            store.set("trouble", "")
        store.set(f"outcome-{self.rank}", outcome.as_json())
        deadline = time.monotonic() + (HEAR if outcome.failed else MEET)
        while not store.check([f"outcome-{node}" for node in range(self.count)]):
            if time.monotonic() > deadline or self._requests.count > 1:
                break
            time.sleep(LOOK)
        known = [node for node in range(self.count) if store.check([f"outcome-{node}"])]
        found = [Outcome.read(store.get(f"outcome-{node}")) for node in known]
        read = store.add("read", 1)
        while self.rank == 0 and read < len(known) and time.monotonic() < deadline:
            time.sleep(LOOK)
            read = store.add("read", 0)
        return found

    @property
    def use_agent_store(self) -> bool:
        """Whether ranks meet at a store of the agent's, which outlives each of them."""
        return True

    def get_backend(self) -> str:
        """Its name in torch's records."""
        return "flowfactory"

    def get_run_id(self) -> str:
        """A name of this launch in torch's records."""
        return self._name

    def is_closed(self) -> bool:
        """Never: the number of nodes is fixed."""
        return False

    def set_closed(self) -> None:
        """Nothing is to be done."""

    def num_nodes_waiting(self) -> int:
        """None: the number of nodes is fixed."""
        return 0

    def shutdown(self) -> bool:
        """Let go of the stores."""
        self._server = None
        return True


class Agent(LocalElasticAgent):
    """The ranks of one node. One that raises ends all; when one dies all start again; a stop lets all finish what they do."""

    def __init__(self, spec: WorkerSpec, nodes: Nodes, folder: Path, requests: Requests, say: Say) -> None:
        super().__init__(spec, DefaultLogsSpecs(os.devnull))
        self.outcome = Outcome("done")
        self._nodes, self._folder, self._requests, self._say = nodes, folder, requests, say
        self._ended: dict[int, Outcome] = {}
        self._since: float | None = None
        self._passed_on = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        processes = self._processes(worker_group)
        self._pass_on_request(processes)
        for rank in sorted(processes.keys() - self._ended.keys()):
            outcome = self._outcome(rank, processes[rank])
            if outcome is not None:
                self._ended[rank] = outcome
        failed = self._nodes.trouble() or any(outcome.failed for outcome in self._ended.values())
        at_once = self._requests.count > 1
        if not at_once and not failed and len(self._ended) < len(processes):
            return RunResult(WorkerState.HEALTHY)
        self._since = self._since or time.monotonic()
        left = all(process.poll() is not None for process in processes.values())
        if not at_once and not left and time.monotonic() < self._since + (SETTLE if failed else LEAVE):
            return RunResult(WorkerState.HEALTHY)
        self._shutdown()
        ended = [*self._ended.values()] or [Outcome("lost", message="another node ended", time=time.time())]
        own = Outcome("stopped", message="stopped at once") if at_once else Outcome.decisive(ended)
        self.outcome = Outcome.decisive(self._nodes.exchange(own))
        self._ended, self._since = {}, None
        if not self.outcome.failed:
            return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(processes))
        self._decide_restart()
        return RunResult(WorkerState.FAILED)

    def _processes(self, worker_group: WorkerGroup) -> Mapping[int, subprocess.Popen[Any]]:
        context = self._pcontext
        assert isinstance(context, SubprocessContext)
        return {worker_group.workers[i].global_rank: handler.proc for i, handler in context.subprocess_handlers.items()}

    def _pass_on_request(self, processes: Mapping[int, subprocess.Popen[Any]]) -> None:
        if self._requests.count and not self._passed_on:
            self._passed_on = True
            for process in processes.values():
                process.terminate()  # of the rank alone: what it started itself, it ends itself

    def _outcome(self, rank: int, process: subprocess.Popen[Any]) -> Outcome | None:
        """What it says itself, else what its exit code says; None while it works."""
        code = process.poll()  # before the file is looked for, which is written first
        path = outcome_path(self._folder, self._attempt, rank)
        if path.exists():
            return Outcome.read(path.read_text(encoding="utf-8"))
        if code is None:
            return None
        if code == 0:
            return Outcome("done", rank)
        if self._passed_on and code == -signal.SIGTERM:
            return Outcome("stopped", rank, "stopped while no iteration was under way; what was saved before is as it was")
        return Outcome("died", rank, f"rank {rank} {_describe_exit(code)}", time=time.time())

    @property
    def _attempt(self) -> int:
        return int(self._worker_group.spec.max_restarts - self._remaining_restarts)

    def _decide_restart(self) -> None:
        """Start again, if that may help."""
        most = self._worker_group.spec.max_restarts
        if self.outcome.kind != "died" or self._requests.count:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            told = f"all ranks start again from the last checkpoint, restart {self._attempt + 1} of {most}"
            self._say(f"{self.outcome.message}; {told}")
        else:
            told = f"after {most} restart{'s' if most > 1 else ''}; " if most else ""
            self.outcome = replace(self.outcome, message=f"{self.outcome.message}; {told}continue with --resume")

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """End all ranks at once, with what they started: whoever was to finish something has done so."""
        context = self._pcontext
        if isinstance(context, SubprocessContext):
            for handler in context.subprocess_handlers.values():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(handler.proc.pid, signal.SIGKILL)
            for handler in context.subprocess_handlers.values():
                with suppress(subprocess.TimeoutExpired):
                    handler.proc.wait(timeout)
        super()._shutdown(death_sig, timeout)

    def _exit_barrier(self) -> None:
        """Nothing is to be waited for: the nodes have heard of one another."""


def _describe_exit(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code} and said nothing"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")


def start(command: Sequence[str], launch: Launch, say: Say) -> None:
    """Run ``command`` as every rank of ``launch`` on this node until all have ended.

    The end of a run is raised as in one process: UserError, RunError, Interrupted. A rank that raises ends all of them. One
    that dies is reason to start all again, with TORCHELASTIC_RESTART_COUNT above 0. The first Ctrl+C or SIGTERM
    is passed on to every rank as one SIGTERM; the second ends them at once.
    """
    run(command, launch, say).conclude()


def run(command: Sequence[str], launch: Launch, say: Say) -> Outcome:
    """How ``command``, run as every rank of ``launch`` on this node, ended. Call it in the main thread.

    UserError: the nodes do not find one another. Interrupted: asked to stop before they did. RunError: a node went away.
    """
    requests = Requests()
    with requests.counted(), tempfile.TemporaryDirectory(prefix="flowfactory-") as folder, _environment(folder):
        nodes = Nodes(launch, requests)
        spec = WorkerSpec(
            role="rank",
            local_world_size=launch.count,
            rdzv_handler=nodes,
            entrypoint=command[0],
            args=tuple(argument.replace("$", "$$") for argument in command[1:]),  # a template to torch
            max_restarts=launch.max_restarts,
            monitor_interval=LOOK,
        )
        agent = Agent(spec, nodes, Path(folder), requests, say)
        try:
            agent.run()
        except DistError as error:
            raise RunError(f"node {nodes.rank} lost the first node; see there, or continue with --resume: {error}") from error
        finally:
            nodes.shutdown()
    return agent.outcome


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """What the ranks inherit."""
    before = dict(os.environ)
    os.environ |= {OUTCOMES: folder, PARENT: str(os.getpid())}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # Ctrl+C and SIGTERM are ours
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun has it: the ranks share the cores
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
