"""A run's checkpoints: written while training goes on, whole under their name or not there.

Weights, kept weights and optimizer state are one mapping of names to tensors, of which every rank writes its own shard, as
torch.distributed.checkpoint plans it. What is to be written is copied to host memory first, and a thread writes it. A manifest,
``checkpoint.json``, names every file with its size and checksum, and a rename makes the whole of it appear.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan

from flowfactory.atomic_files import NO_ROOM, system_error, write_atomically
from flowfactory.errors import RunError, UserError
from flowfactory.runs.checkpoints.files import Stored, file_record, flush_to_disk
from flowfactory.runs.checkpoints.load import load
from flowfactory.runs.checkpoints.lookup import NUMBER, latest, list_checkpoints, newest_intact
from flowfactory.runs.checkpoints.manifest import Manifest, find_damage
from flowfactory.runs.checkpoints.shards import Rows, own_rows, rows_of, shard_name, write_shard
from flowfactory.runs.resume import fixed_config
from flowfactory.types import Say
from flowfactory.untrusted_files import Refused, read_json

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.distributed.ranks import Ranks
    from flowfactory.policy.policy import Policy
    from flowfactory.training.learner import Learner

WRITING, REMOVING, PART = ".writing-", ".removing-", ".part-"
T = TypeVar("T")


@dataclass(frozen=True)
class _WritePlan:
    """Who writes what: it depends on names, shapes and shards alone, and so is the same for every checkpoint of a run."""

    asked: SavePlan
    mine: SavePlan
    bytes: int
    """Of all tensors."""


@dataclass(frozen=True)
class _PendingCheckpoint:
    """A checkpoint that is being written: this rank's part, and of the leading rank the whole of it."""

    number: int
    part: Future[None]
    whole: Future[None] | None
    given_up: threading.Event

    @property
    def state(self) -> str:
        if self.part.done() and self.part.exception():
            return "failed"
        return "done" if self.part.done() and (self.whole is None or self.whole.done()) else "under way"


class Checkpoints:
    """Owner of a run's ``folder`` of checkpoints: at most one is being written, while training goes on.

    Every rank calls every method, with a ``folder`` that all of them see. ``say`` hears of damaged checkpoints, and
    ``require`` raises a RunError where the run directory is another run's now: nothing is touched there then. Methods that
    return a list return the iteration and the path of what has come to be whole.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        config: RunConfig,
        say: Say = lambda _: None,
        require: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._ranks, self._say, self._require = folder, ranks, say, require
        self._keep_last = config.output.keep_last
        self._fixed = fixed_config(config) if ranks.leads else {}
        self._shard = 1 if ranks.mesh is None else ranks.mesh["shard"].size()
        self._last: Path | None = None
        self._plan: _WritePlan | None = None
        self._writing: _PendingCheckpoint | None = None

    @property
    def latest(self) -> Path | None:
        """The newest that this run has saved or was resumed from, else the newest there is; asks no other rank.

        The leading rank waits a minute for the one that is being written.
        """
        writing = self._writing
        if writing is not None and writing.whole is not None:
            with suppress(TimeoutError):
                if writing.whole.exception(timeout=60) is None:
                    return self._folder / f"{writing.number:06d}"
        return self._last or latest(self._folder)

    def restore(self, policy: Policy, learner: Learner) -> int | None:
        """The iteration of the newest whole checkpoint; weights and optimizer are as they were then. None: there is none.

        Random state is restored onto as many ranks as saved it. UserError: none is whole, or the optimizer's state does not
        fit the ranks there are now.
        """
        there = self._ranks.broadcast(list_checkpoints(self._folder))
        if not there:
            return None
        path = newest_intact(there, self._damage, self._say)
        manifest = Manifest.read(path)
        if problem := learner.resumable(manifest.shard, self._shard):
            raise UserError(f"{path}: {problem}")
        context = self._ranks.context
        first = self._ranks.rank - (context.rank if context else 0)  # ranks that share forwards are to draw the same
        random = {f"random/{first}": torch.get_rng_state()} if manifest.ranks == self._ranks.count else {}
        training = learner.state()
        load(path, policy, {**training, **random})
        learner.load_state(training)
        for name, state in random.items():
            try:
                torch.set_rng_state(state)
            except RuntimeError as error:
                problem = f"{name} is no state of a generator"
                raise UserError(f"{path} is damaged: {problem}; choose another checkpoint, or delete it") from error
        self._last = path
        self._require()
        if self._ranks.leads:  # which a run of which nothing is left to do would never come to
            self._remove_leftovers()
            self._remove_older(manifest.iteration)
        return manifest.iteration

    def _damage(self, path: Path) -> str | None:
        found = self._ranks.gather(find_damage(path, self._ranks.rank, self._ranks.count))
        return next((problem for problem in found if problem), None)

    def save(self, number: int, policy: Policy, learner: Learner) -> list[tuple[int, Path]]:
        """Begin the checkpoint of iteration ``number``: all there is to write is copied to host memory when this returns.

        Waits for the one before. RunError: the disk is full or cannot be written to; earlier checkpoints stay.
        """
        saved = self.finish()
        ranks, folder = self._ranks, self._folder / f"{WRITING}{number:06d}"
        random = {f"random/{ranks.rank}": torch.get_rng_state()}
        planner = DefaultSavePlanner()
        planner.set_up_planner({**policy.state(), **learner.state(), **random}, is_coordinator=ranks.leads)
        plan = self._plan = self._make_plan(planner)
        self._together(number, lambda: self._make(folder) if ranks.leads else None)
        self._together(number, lambda: self._check_shared_folder(folder))
        if policy.lora:
            self._together(number, lambda: policy.save_trained(folder))
        staged = _stage(planner, plan.mine)
        given_up = threading.Event()
        part = _in_thread(lambda: _write_part(folder, ranks.rank, staged, self._require))
        whole = _in_thread(lambda: self._complete(number, folder, part, given_up)) if ranks.leads else None
        self._writing = _PendingCheckpoint(number, part, whole, given_up)
        return saved

    def _make_plan(self, planner: DefaultSavePlanner) -> _WritePlan:
        asked = planner.create_local_plan()
        known = self._plan
        if not self._ranks.any(known is None or known.asked != asked) and known is not None:
            return known
        # every rank comes to the same, since what it comes from is the same
        plans, metadata = planner.create_global_plan(self._ranks.gather(asked))
        return _WritePlan(asked, plans[self._ranks.rank], _count_bytes(metadata))

    def _make(self, folder: Path) -> None:
        self._require()
        self._remove_leftovers()
        folder.mkdir(parents=True)

    def _remove_leftovers(self) -> None:
        """Delete what a kill left half written or half deleted."""
        for prefix in (WRITING, REMOVING):
            for left in self._folder.glob(f"{prefix}*"):
                if re.fullmatch(NUMBER, left.name.removeprefix(prefix)):
                    shutil.rmtree(left)

    def _check_shared_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RunError(
                f"{self._folder} of rank 0 is not visible to rank {self._ranks.rank}; put output.dir where every rank sees it"
            )

    def poll(self) -> list[tuple[int, Path]]:
        """What was being written and is whole now; does not wait. RunError: as :meth:`save`."""
        if self._writing is None:
            return []
        states = self._ranks.gather(self._writing.state)
        return self.finish() if "failed" in states or "under way" not in states else []

    def finish(self) -> list[tuple[int, Path]]:
        """Wait for what is being written. RunError: as :meth:`save`."""
        writing = self._writing
        if writing is None:
            return []
        try:
            self._together(writing.number, writing.part.result)
            self._together(writing.number, lambda: writing.whole.result() if writing.whole else None)
        finally:
            self._writing = None
        self._last = self._folder / f"{writing.number:06d}"
        return [(writing.number, self._last)]

    def _complete(self, number: int, temporary: Path, own: Future[None], given_up: threading.Event) -> None:
        """Make a checkpoint of all ranks' parts, when they are there. In a thread of the leading rank."""
        own.result()
        final = self._folder / f"{number:06d}"
        # by way of files, since ranks may talk to one another in one thread only
        ranks = range(self._ranks.count)
        files = {shard_name(rank): _read_part(temporary / f"{PART}{rank}", given_up) for rank in ranks}
        self._require()
        for path in sorted(temporary.rglob("*"), reverse=True):
            flush_to_disk(path)
            name = path.relative_to(temporary).as_posix()
            if path.is_file() and name not in files:
                files[name] = file_record(path)
        Manifest(number, self._ranks.count, self._shard, self._fixed, files).write(temporary)
        flush_to_disk(temporary)
        self._require()
        if final.exists():  # the same iteration again, after an older one was resumed
            _remove(final)
        os.rename(temporary, final)
        flush_to_disk(self._folder)
        self._remove_older(number)

    def _remove_older(self, number: int) -> None:
        """Delete all but the last ``keep_last`` of the checkpoints up to iteration ``number``, which is whole."""
        if self._keep_last is not None:
            older = [path for path in list_checkpoints(self._folder) if int(path.name) <= number]
            for path in older[: -self._keep_last]:
                _remove(path)

    def _together(self, number: int, action: Callable[[], T]) -> T:
        """What ``action`` gives, if it succeeds on every rank; else nothing is left of checkpoint ``number``."""
        problem: Exception | None = None
        try:
            result = action()
        except Exception as error:
            problem = error
        told = [sentence for sentence in self._ranks.gather(problem and self._describe_problem(number, problem)) if sentence]
        if not told:
            return result
        self._abandon(number)
        if problem is not None and system_error(problem) is None:
            raise problem
        raise RunError(told[0]) from problem

    def _abandon(self, number: int) -> None:
        if self._writing is not None:
            self._writing.given_up.set()
            if self._writing.whole is not None:
                self._writing.whole.exception()  # waits, so that nothing comes back after it was deleted
        if self._ranks.leads:
            with suppress(RunError):
                self._require()
                shutil.rmtree(self._folder / f"{WRITING}{number:06d}", ignore_errors=True)

    def _describe_problem(self, number: int, problem: Exception) -> str:
        cause = system_error(problem)
        if cause is None:
            return str(problem) if isinstance(problem, RunError) else f"rank {self._ranks.rank}: {problem!r}"
        size = _format_bytes(self._plan.bytes if self._plan else 0)
        what = f"the checkpoint of iteration {number}, about {size} ({cause.strerror or cause})"
        if cause.errno in NO_ROOM:
            return f"{self._folder} has no room for {what}; make room, or set output.keep_last, and continue with --resume"
        return f"{self._folder} cannot take {what}; see that it can be written to, and continue with --resume"


def save_weights(policy: Policy, folder: Path) -> None:
    """Write into ``folder`` a checkpoint of the weights of ``policy`` alone, at once; one process calls it."""
    policy.save_trained(folder)
    stored = write_shard(folder / shard_name(0), own_rows(policy.state()))
    Manifest(0, 1, 1, {}, {shard_name(0): stored}).write(folder)


def _in_thread(action: Callable[[], T]) -> Future[T]:
    """The result of ``action`` to come. The process does not end before it."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="checkpoint").start()
    return future


def _count_bytes(metadata: Metadata) -> int:
    tensors = [entry for entry in metadata.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata)]
    return sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors)


def _stage(planner: DefaultSavePlanner, plan: SavePlan) -> list[Rows]:
    """Copies in host memory of what this rank is to write."""
    staged = []
    for item in plan.items:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        staged.append(rows_of(item, tensor.detach().to("cpu", copy=True)))
    return staged


def _write_part(folder: Path, rank: int, staged: list[Rows], require: Callable[[], None]) -> None:
    """Write this rank's shard, and then what it is for the leading rank to read."""
    require()
    stored = write_shard(folder / shard_name(rank), staged)
    require()
    write_atomically(folder / f"{PART}{rank}", json.dumps(stored))


def _read_part(path: Path, given_up: threading.Event) -> Stored:
    """What :func:`_write_part` told, once it has; the file is gone then. RunError: it told nothing, or is given up."""
    while not path.exists():
        if given_up.wait(0.02) or not threading.main_thread().is_alive():
            raise RunError(f"{path} was given up")
    try:
        told = read_json(path, 4096, path.parent)
    except Refused as error:
        raise RunError(f"{path} {error}; see who else writes there") from error
    path.unlink()
    match told:
        case [int(size), str(checksum)]:
            return Stored(size, checksum)
    raise RunError(f"{path} is not what a rank writes; see who else writes there")


def _remove(path: Path) -> None:
    """Delete a checkpoint, which is gone at once or not at all."""
    aside = path.with_name(f"{REMOVING}{path.name}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
