"""A run's checkpoints: written while training goes on, whole under their name or not there.

Weights, kept weights and optimizer state are one mapping of names to tensors. Every rank writes its own shards of them, a file
for each role that tensors have, and what several ranks hold is written once. What is to be written is copied to host memory
first, and a thread writes it. A manifest, ``checkpoint.json``, names every file with its size and checksum, and a rename makes
the whole of it appear.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from flowfactory.atomic_files import NO_ROOM, system_error
from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.errors import RunError, UserError
from flowfactory.policy.policy import REFERENCE
from flowfactory.runs.checkpoints.files import Stored, file_record, flush_to_disk
from flowfactory.runs.checkpoints.folders import find_leftovers, give_up, move, remove, temporary_folder
from flowfactory.runs.checkpoints.load import load
from flowfactory.runs.checkpoints.lookup import find_damage_together, latest, newest_intact
from flowfactory.runs.checkpoints.manifest import START, Manifest
from flowfactory.runs.checkpoints.parts import PART, read_part, write_part
from flowfactory.runs.checkpoints.remade_start import find_lacking, remake_start
from flowfactory.runs.checkpoints.roles import WEIGHTS, kept_role, role_of, role_of_shard, shard_name
from flowfactory.runs.checkpoints.shards import Rows, own_rows, read_index, write_shard
from flowfactory.runs.checkpoints.staging import StagedShard, Staging
from flowfactory.runs.checkpoints.stored_modules import stored_modules, write_adapters
from flowfactory.runs.checkpoints.writers import Held, WritePlan, choose_writers, count_bytes, held
from flowfactory.runs.resume import fixed_config
from flowfactory.types import Say

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.distributed.ranks import Ranks
    from flowfactory.policy.lora import Adapters
    from flowfactory.policy.policy import Policy
    from flowfactory.training.learner import Learner

KEPT_OF_FULL = 2
"""How many checkpoints of a run that trains whole modules are kept unless the config says otherwise: one may be damaged."""
T = TypeVar("T")


@dataclass(frozen=True)
class _PendingCheckpoint:
    """A checkpoint that is being written: this rank's part, and of the leading rank the whole of it."""

    number: int
    part: Future[None]
    whole: Future[dict[str, Stored]] | None
    given_up: threading.Event

    @property
    def state(self) -> str:
        if self.part.done() and self.part.exception():
            return "failed"
        return "done" if self.part.done() and (self.whole is None or self.whole.done()) else "under way"


class Checkpoints:
    """Owner of a run's ``folder`` of checkpoints: at most one is being written, while training goes on.

    Every rank calls every method, with a ``folder`` that all of them see. ``say`` hears of damaged checkpoints, and
    ``require`` raises a RunError where the run directory is another run's now: nothing is touched there then. ``best_until``
    tells the leading rank which checkpoint stays, besides the last ones, when that of an iteration is there. Methods that
    return a list return the iteration and the path of what has come to be whole.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        config: RunConfig,
        say: Say = lambda _: None,
        require: Callable[[], None] = lambda: None,
        best_until: Callable[[int], int | None] = lambda _: None,
    ) -> None:
        self._best_until = best_until
        self._folder, self._ranks, self._say, self._require = folder, ranks, say, require
        self._keep_last = config.output.keep_last
        self._mark = ranks.broadcast(secrets.token_hex(8))
        self._staging = Staging()
        self._reference: dict[str, Stored] | None = None
        self._fixed = fixed_config(config) if ranks.leads else {}
        self._shard = 1 if ranks.mesh is None else ranks.mesh["shard"].size()
        self._last: Path | None = None
        self._plan: WritePlan | None = None
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
        if self._ranks.leads:  # first: what somebody who sleeps was writing is not to appear once it is looked at what is there
            self._remove_leftovers()
        there = self._ranks.broadcast(list_checkpoints(self._folder))
        if not there:
            return None
        path = newest_intact(there, lambda path: self._find_damage(path, policy, learner), self._say)
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
        self._last, self._reference = path, manifest.reference or None
        self._require()
        if self._ranks.leads:  # which a run of which nothing is left to do would never come to
            self._remove_older(manifest.iteration, self._count_kept(policy), self._best_until(manifest.iteration))
        return manifest.iteration

    def _find_damage(self, path: Path, policy: Policy, learner: Learner) -> str | None:
        """What is wrong with a checkpoint; before, the weights that training started from are made again if they lack."""
        problem = find_damage_together(path, self._ranks)
        lacking = find_lacking(path, self._ranks) if problem and policy.keeps_start else None
        if lacking is None:
            return problem
        self._require()
        parts = self._parts(policy, learner)
        mine = self._make_plan(held(parts)).mine
        own = [part for part in parts if part.name in mine and role_of(part.name) == kept_role(REFERENCE)]
        if why := remake_start(self._folder, self._temporary(START), lacking.reference, own, self._ranks):
            return f"{problem}; {why}"
        self._say(f"warning: {problem}: the weights that training started from are written again, from the model")
        return find_damage_together(path, self._ranks)

    def save(self, number: int, policy: Policy, learner: Learner) -> list[tuple[int, Path]]:
        """Begin the checkpoint of iteration ``number``: all there is to write is copied to host memory when this returns.

        Waits for the one before. RunError: the disk is full or cannot be written to; earlier checkpoints stay.
        """
        saved = self.finish()
        ranks, folder = self._ranks, self._temporary(f"{number:06d}")
        # weights that training started from do not change: one copy is there for all checkpoints
        start = kept_role(REFERENCE) if policy.keeps_start else None
        parts = self._parts(policy, learner)
        if self._reference is not None:
            parts = [part for part in parts if role_of(part.name) != start]
        plan = self._plan = self._make_plan(held(parts))
        self._together(number, lambda: self._make(folder) if ranks.leads else None)
        self._together(number, lambda: self._check_shared_folder(folder))
        staged = self._stage([part for part in parts if part.name in plan.mine], start)
        reference = (self._reference or {}) if start else {}
        manifest = Manifest(number, ranks.count, self._shard, self._fixed, {}, policy.adapters, reference)
        given_up = threading.Event()
        kept = (self._count_kept(policy), self._best_until(number) if ranks.leads else None)
        part = _in_thread(lambda: write_part(folder, ranks.rank, staged, self._require))
        whole = _in_thread(lambda: self._complete(manifest, folder, part, given_up, kept)) if ranks.leads else None
        self._writing = _PendingCheckpoint(number, part, whole, given_up)
        return saved

    def _parts(self, policy: Policy, learner: Learner) -> list[Rows]:
        """This rank's part of all that a checkpoint may hold."""
        random = {f"random/{self._ranks.rank}": torch.get_rng_state()}
        return own_rows({**policy.state(), **policy.frozen_state(), **learner.state(), **random})

    def _make_plan(self, mine: list[Held]) -> WritePlan:
        known = self._plan
        if not self._ranks.any(known is None or known.held != mine) and known is not None:
            return known
        by_rank = self._ranks.gather(mine)
        return WritePlan(mine, choose_writers(by_rank)[self._ranks.rank], count_bytes(by_rank))

    def _stage(self, parts: Sequence[Rows], start: str | None) -> dict[str, StagedShard]:
        """By the names of files: copies in host memory of what this rank is to write."""
        staged = {}
        for role, own in _by_role(parts).items():
            once = role == start
            file = shard_name(role, self._ranks.rank)
            staged[f"{START}/{file}" if once else file] = (Staging() if once else self._staging).stage(role, own)
        return staged

    def _count_kept(self, policy: Policy) -> int | None:
        """How many checkpoints are kept; None: all."""
        if self._keep_last == "auto":
            return None if policy.lora else KEPT_OF_FULL
        return self._keep_last

    def _make(self, folder: Path) -> None:
        self._remove_leftovers()
        folder.mkdir(parents=True)

    def _temporary(self, name: str) -> Path:
        return temporary_folder(self._folder / name, self._mark)

    def _remove_leftovers(self) -> None:
        """Delete what a kill left half written or half deleted, or somebody who sleeps."""
        there = find_leftovers(self._folder)
        self._require()  # only now: what another run writes from then on is not among them
        for left in there:
            shutil.rmtree(left, ignore_errors=True)  # which whoever wakes up deletes too

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
            reference = self._together(writing.number, lambda: writing.whole.result() if writing.whole else {})
        finally:
            self._writing = None
        if self._reference is None and self._ranks.broadcast(bool(reference)):
            self._reference = reference
        self._last = self._folder / f"{writing.number:06d}"
        return [(writing.number, self._last)]

    def _complete(
        self,
        manifest: Manifest,
        temporary: Path,
        own: Future[None],
        given_up: threading.Event,
        kept: tuple[int | None, int | None],
    ) -> dict[str, Stored]:
        """Make a checkpoint of all ranks' parts, when they are there; its reference. In a thread of the leading rank.

        Where none comes of it, nothing is left, also of a process that finds its run directory lost when it wakes up.
        """
        try:
            own.result()
            return self._put_together(manifest, temporary, given_up, kept)
        except BaseException:
            give_up(temporary)
            raise

    def _put_together(
        self, manifest: Manifest, temporary: Path, given_up: threading.Event, kept: tuple[int | None, int | None]
    ) -> dict[str, Stored]:
        files: dict[str, Stored] = {}
        for rank in range(manifest.ranks):  # by way of files, since ranks may talk to one another in one thread only
            files |= read_part(temporary / f"{PART}{rank}", given_up)
        self._require()
        _write_adapters(manifest.modules, temporary, files)
        for path in sorted(temporary.rglob("*"), reverse=True):
            flush_to_disk(path)
            name = path.relative_to(temporary).as_posix()
            if path.is_file() and name not in files:
                files[name] = file_record(path)
        if new := {name for name in files if name.startswith(f"{START}/")}:
            manifest = replace(manifest, reference={name.removeprefix(f"{START}/"): files.pop(name) for name in sorted(new)})
            self._require()
            move(temporary / START, self._folder / START)
        replace(manifest, files=files).write(temporary)
        flush_to_disk(temporary)
        self._require()
        move(temporary, self._folder / f"{manifest.iteration:06d}")
        self._remove_older(manifest.iteration, *kept)
        return manifest.reference

    def _remove_older(self, number: int, kept: int | None, best: int | None) -> None:
        """Delete all but the last ``kept`` of the checkpoints up to iteration ``number``, which is whole, and the ``best``."""
        if kept is not None:
            older = [path for path in list_checkpoints(self._folder) if int(path.name) <= number]
            for path in older[:-kept]:
                if int(path.name) != best:
                    remove(path)

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
            give_up(self._temporary(f"{number:06d}"))  # whoever has the run directory now: no other writes there

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
    by_role = _by_role(own_rows({**policy.state(), **policy.frozen_state()}))
    files = {(name := shard_name(role, 0)): write_shard(folder / name, parts) for role, parts in by_role.items()}
    _write_adapters(policy.adapters, folder, files)
    Manifest(0, 1, 1, {}, files, policy.adapters).write(folder)


def _by_role(parts: Sequence[Rows]) -> dict[str, list[Rows]]:
    """``parts`` by what they are there for; weights are always."""
    found: dict[str, list[Rows]] = {WEIGHTS: []}
    for part in parts:
        found.setdefault(role_of(part.name), []).append(part)
    return found


def _write_adapters(modules: Mapping[str, Adapters | None], folder: Path, files: Mapping[str, Stored]) -> None:
    """Write the adapters in the shards ``files`` for other programs, where there are any."""
    if any(modules.values()):
        weights = [folder / name for name in files if role_of_shard(name) == WEIGHTS]
        write_adapters(stored_modules(modules, read_index(weights)), folder)


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


def _format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
