"""How many ranks are to be started, and where. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowfactory.distributed.environment import read_environment
from flowfactory.errors import UserError


@dataclass(frozen=True)
class Launch:
    """How many ranks are to be started, on which of how many nodes; a rank that dies is replaced ``max_restarts`` times."""

    nproc: int | None = None
    nnodes: int = 1
    node_rank: int | None = None
    rendezvous: str | None = None
    max_restarts: int = 3

    @property
    def starts_ranks(self) -> bool:
        """Whether there is anything to start."""
        return self.local_world_size > 1 or self.nnodes > 1

    @property
    def local_world_size(self) -> int:
        """Ranks on this node."""
        return self.nproc or 1

    def parse_rendezvous(self) -> tuple[str, int]:
        """Host and port of ``rendezvous``. UserError: it is no such thing."""
        host, _, port = (self.rendezvous or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--rendezvous {self.rendezvous}: write HOST:PORT, of the node with --node-rank 0")
        return host.strip("[]"), int(port)

    def _check_group(self, variables: Mapping[str, str]) -> None:
        group = read_environment(variables)
        if group is None or (self.nproc is None and self.nnodes == 1):
            return
        if group.world_size == 1:
            return  # of one container, as platforms say to each; what it is to start it has not started
        alone = variables.get("LOCAL_WORLD_SIZE", "1") == "1"
        if alone and self.nnodes == group.world_size:
            return  # srun, or a platform, gave this command once for each node
        flag = "--nnodes" if self.nproc is None else "--nproc"
        told = f"{flag}: this process is rank {group.rank} of {group.world_size} that are started already; leave it out"
        if alone:
            told += f", or where each is a node of its own add --nnodes {group.world_size} --node-rank and --rendezvous"
        raise UserError(told)

    def check(self, variables: Mapping[str, str]) -> None:
        """UserError: this cannot be started, or not within ``variables``, the environment."""
        if self.nproc is not None and self.nproc < 1:
            raise UserError(f"--nproc {self.nproc}: give the number of ranks on this node, 1 or more")
        if self.nnodes < 1:
            raise UserError(f"--nnodes {self.nnodes}: give the number of nodes, 1 or more")
        if self.max_restarts < 0:
            raise UserError(f"--max-restarts {self.max_restarts}: give 0 or more")
        self._check_group(variables)
        if self.nnodes == 1 and self.node_rank:
            raise UserError(f"--node-rank {self.node_rank}: there is one node; say how many with --nnodes")
        if self.nnodes > 1:
            if self.node_rank is None or not 0 <= self.node_rank < self.nnodes:
                given = "" if self.node_rank is None else f" {self.node_rank}"
                raise UserError(
                    f"--node-rank{given}: give each of the {self.nnodes} nodes its own, from 0 to {self.nnodes - 1}"
                )
            self.parse_rendezvous()
