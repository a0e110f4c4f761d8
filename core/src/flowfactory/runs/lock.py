"""``run.lock``: which process alone may write to a run directory.

It comes to be by link(2), which is atomic on network file systems too, where flock may not be; it is whole as soon as it is
there. Whether a holder on this system still lives is asked of the system. Of one elsewhere, as on another node or in another
container, the file's time tells, which the holder sets every few seconds: no two clocks are compared.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flowfactory.atomic_files import remedy, remove_old, replacing, temporary_name
from flowfactory.errors import RunError, UserError
from flowfactory.runs.facts import FACTS, is_under_way
from flowfactory.runs.holder import Holder
from flowfactory.untrusted_files import Refused, read_bytes

if TYPE_CHECKING:
    from flowfactory.types import Say  # which imports torch

LOCK = "run.lock"
ENVIRONMENT = "FLOWFACTORY_LOCK"
"""Set for ranks whose supervisor holds the lock: its token."""
HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""Without a heartbeat, after which a holder that cannot be looked at is gone."""
ABANDONED_SECONDS = 600.0
"""Age of the last heartbeat, after which nobody waits for another: more than two clocks differ by."""
TAKEN = ".taken"
MOST_CLAIMS = 20
"""Of processes, each of which was killed while it took over from the one before."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
LARGEST = 2**16


class DirectoryLost(RunError):
    """A run's directory is another run's now, or gone."""


class RunLock:
    """A run directory's lock, which this process holds, or the process that started it."""

    def __init__(self, folder: Path, content: bytes, own: bool) -> None:
        self._path, self._content, self.own = folder / LOCK, content, own
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    @property
    def token(self) -> str:
        """What tells it from every other lock."""
        return _token(self._content)

    def require(self) -> None:
        """DirectoryLost: the run that began under this lock does not have the run directory any more."""
        if told := self.lost():
            raise DirectoryLost(told)

    def lost(self) -> str | None:
        """Why the run that began under this lock does not have the run directory any more; None: it has.

        A lock that cannot be read is nobody's. Without one run.json tells: a lock that somebody deleted is made anew, and what
        another run leaves behind that has ended says that it was there.
        """
        folder = self._path.parent
        try:
            there = _read(self._path)
        except UserError:
            return None
        if there == self._content or (there is None and self._is_under_way()):
            return None
        if there is not None:
            return f"{folder} was taken over by {_describe(there)}; this run leaves it alone"
        if not folder.exists():
            return f"{folder} is gone; leave a run directory where it is until its run has ended"
        return f"{folder} was taken over by another run, which has ended; this run leaves it alone"

    def _is_under_way(self) -> bool:
        return is_under_way(self._path.with_name(FACTS), self.token)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, UserError):
                there = _read(self._path)
                if there == self._content:
                    os.utime(self._path)
                elif there is None and self._is_under_way():  # somebody deleted it
                    _create(self._path, self._content)

    def start(self) -> None:
        """Begin to show that its holder lives."""
        self._thread.start()

    def release(self) -> None:
        """Let the next one have the run directory."""
        self._done.set()
        self._thread.join()
        with suppress(OSError, UserError):
            if _read(self._path) == self._content:
                self._path.unlink()


@contextmanager
def held(folder: Path, say: Say) -> Iterator[RunLock]:
    """The lock of a run directory, which is made where it is not there, for the time of the block.

    UserError: another process holds it, or nothing can be written there. ``say`` hears what is waited for.
    """
    if lock := _join(folder):
        yield lock
        return
    content = Holder.this_process(folder).as_json(indent=1).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(folder / LOCK, content, say)
    except OSError as error:
        raise UserError(describe_unwritable(folder, error)) from error
    lock = RunLock(folder, content, own=True)
    try:
        lock.start()
        remove_old(folder.glob(f".*{TAKEN}"))
        yield lock
    finally:
        lock.release()


def describe_unwritable(folder: Path, error: OSError) -> str:
    """The sentence about a run directory in which nothing can be written."""
    return f"output.dir: {folder} cannot be written to: {error.strerror}; {remedy(error)}, or choose another --out"


def is_held(folder: Path) -> bool | None:
    """Whether the process that took a run directory has it still; None: nobody has, or this system cannot tell.

    Of a process elsewhere, whether it gave a sign lately; nobody waits for one.
    """
    try:
        content = _read(folder / LOCK)
    except UserError:
        return None
    if content is None:
        return None
    holder = Holder.read(content)
    ended = holder.no_longer_holds(folder) if holder else None
    if ended is not None:
        return not ended
    before = _heartbeat(folder / LOCK)
    return None if before is None else time.time() - before / 1e9 < ABANDONED_SECONDS


def _join(folder: Path) -> RunLock | None:
    """The lock that the supervisor of this rank holds."""
    given = os.environ.get(ENVIRONMENT)
    content = _read(folder / LOCK) if given else None
    return RunLock(folder, content, own=False) if content is not None and _token(content) == given else None


def _take(path: Path, content: bytes, say: Say) -> None:
    """Make ``content`` the lock. UserError: it is held. OSError: it cannot be written."""
    for _ in range(100):
        if _create(path, content):
            return
        first = _read(path)
        if first is None:  # released meanwhile
            continue
        passed: list[Path] = []
        last, file = first, path
        # whoever takes over what was left behind claims it first; the claim of one that was killed meanwhile is claimed in turn
        while (claimant := _read(claim := path.with_name(f".{_token(last)}{TAKEN}"))) is not None:
            if len(passed) == MOST_CLAIMS:
                raise _cannot_be_taken(path)
            passed.append(claim)
            last, file = claimant, claim
        if _has_ended(file, last, say) and _create(claim, content):
            passed.append(claim)
            mine = _read(path) == first
            if mine:
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
            for used in passed if mine else [claim]:
                used.unlink(missing_ok=True)
            if mine:
                return
    raise _cannot_be_taken(path)


def _cannot_be_taken(path: Path) -> UserError:
    return UserError(f"{path}: cannot be taken; delete it if nobody runs there")


def _has_ended(path: Path, content: bytes, say: Say) -> bool:
    """Whether the process that wrote ``content`` to ``path`` is gone; False where the file has changed. UserError: it lives."""
    holder = Holder.read(content)
    ended = holder.no_longer_holds(path.parent) if holder else None
    if ended:
        return True
    refusal = f"{path.parent} is in use by {_describe(content)}; wait for its end, or choose another --out"
    if ended is False:
        raise UserError(refusal)
    before, now = _heartbeat(path), _file_system_time(path.parent)
    if before is None or now - before > ABANDONED_SECONDS * 1e9:
        return before is not None
    say(f"{path.parent} may be in use by {_describe(content)}; waiting {SILENT_SECONDS:.0f} seconds for a sign of it")
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(0.2, SILENT_SECONDS / 10))
        if _heartbeat(path) != before:
            if _read(path) == content:
                raise UserError(f"{refusal}; if it is gone all the same, delete {path}")
            return False
    return True


def _describe(content: bytes) -> str:
    holder = Holder.read(content)
    return str(holder) if holder else "a process that does not say which it is"


def _create(path: Path, content: bytes) -> bool:
    """Whether the file came to be, with its content, by this call. OSError: it cannot be written."""
    temporary = temporary_name(path.parent)
    _write_new(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:  # or the answer to this call was lost on the way, and it was made again
        return _read(path) == content
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            _write_new(path, content)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_new(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes | None:
    """What is in the file; None: there is none. UserError: it cannot be read."""
    try:
        return read_bytes(path, LARGEST)
    except FileNotFoundError:
        return None
    except (OSError, Refused) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: {told}; delete it if nobody runs there") from error


def _heartbeat(path: Path) -> int | None:
    """When the file was last touched, in ns of whoever sets the time; opened, so that no cache answers. None: it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)


def _file_system_time(folder: Path) -> int:
    """What a file that is made now has as its time, in ns."""
    path = temporary_name(folder)
    _write_new(path, b"")
    try:
        return path.stat().st_mtime_ns
    finally:
        path.unlink(missing_ok=True)


def _token(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
