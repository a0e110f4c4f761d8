"""The folder of the cache: which of its files are entries, for whom, and which go when it is full. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flowfactory.atomic_files import leftovers, remove_old, replacing
from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused, read_bytes

ENVIRONMENT, SIZE = "FLOWFACTORY_CACHE", "FLOWFACTORY_CACHE_SIZE"
DEFAULT_SIZE, DEFAULT_SHARE = 64 * 10**9, 10
"""Bytes, and the part of the disk, of which the cache has the lesser where nothing is said."""
LARGEST_ENTRY = 2**30
IN_USE = 3600.0
"""Seconds for which what was used stays: the ranks of a run read what the first of them encoded."""
USE_NOTED = 600.0
"""Seconds in which a file is marked as used once."""
_OF_THIS_ENTRY = (errno.EPERM, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)
ENTRY = re.compile(r"[0-9a-f]{40}\.safetensors")
FORMER_LEFTOVER = re.compile(r"\.[0-9a-f]{40}\.[a-z0-9_]{8}")


def default_folder() -> Path:
    """$FLOWFACTORY_CACHE, or ``flowfactory`` in the user's cache folder. UserError: there is no home folder for it."""
    try:
        if chosen := os.environ.get(ENVIRONMENT):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowfactory"
    except RuntimeError:
        raise UserError(f"the cache has no place: this user has no home folder; set {ENVIRONMENT} to a folder") from None


def read_limit() -> int | None:
    """Bytes that $FLOWFACTORY_CACHE_SIZE allows; None where it is not set. UserError: it is no size."""
    from pydantic import ByteSize, TypeAdapter

    written = os.environ.get(SIZE, "").strip()
    if not written:
        return None
    try:
        # pydantic stops at what it does not know, as in 10,5GB; and a number alone would be bytes, which nobody means
        if not re.fullmatch(r"(\d*\.)?\d+ *(b|[kmgtpe](i?b)?)", written, re.IGNORECASE | re.ASCII):
            raise ValueError
        return int(TypeAdapter(ByteSize).validate_python(written))
    except (ValueError, OverflowError):
        raise UserError(f"{SIZE}: got {written!r}; write a size with its unit, such as 50GB") from None


class CachedFile(NamedTuple):
    """An entry's file, its bytes, and when it was used last, in seconds since the epoch."""

    path: Path
    size: int
    used: float


class CacheFolder:
    """Entries on disk, bytes by key, in ``root / "conditions"``, at most ``limit`` bytes of them.

    What is made here is its owner's alone. A folder that is there already keeps its mode, and the entries in it are for whom
    the folder is. What cannot be read is missing. Where nothing can be written, ``say`` hears it once, and then no more is
    written. An entry in whose place something stays, such as another user's in a shared folder, is left out alone.
    """

    def __init__(self, root: Path, limit: int | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self.root, self.path = root, root / "conditions"
        self._limit, self._say = limit, say
        self._takes_more, self._told_of_one = True, False

    @classmethod
    def from_environment(cls, say: Callable[[str], None] = lambda _: None) -> CacheFolder:
        """The user's; ``say`` hears too where others can change it. UserError: a variable is wrong."""
        folder = cls(default_folder(), read_limit(), say)
        if risk := folder.find_risk():
            say(f"warning: {risk}")
        return folder

    def read(self, key: str) -> bytes | None:
        """What was written under ``key``; None where there is nothing, or something else than a file of this folder."""
        try:
            return read_bytes(self._file(key), LARGEST_ENTRY, within=self.path)
        except (OSError, Refused):
            return None

    def write(self, key: str, content: bytes) -> None:
        """Put ``content``, of at most LARGEST_ENTRY bytes, under ``key``; it is there whole or not at all."""
        if not self._takes_more or len(content) > LARGEST_ENTRY:
            return
        try:
            self._make()
            with replacing(self._file(key), private=True) as temporary:
                temporary.write_bytes(content)
                with suppress(OSError):  # some disks have no modes
                    temporary.chmod(self._entry_mode())
        except OSError as error:
            if error.errno in _OF_THIS_ENTRY and os.path.lexists(self._file(key)):
                self._tell_of_one(key)
                return
            self._takes_more = False
            told = f"{self.path} cannot be written to ({error.strerror}): what is encoded now is kept in memory alone"
            self._say(f"warning: {told}; make room there, or choose another folder with {ENVIRONMENT}")

    def _tell_of_one(self, key: str) -> None:
        if not self._told_of_one:
            self._told_of_one = True
            told = f"{self._file(key)} is another user's, or no file: it cannot be replaced, and stands for a prompt"
            self._say(f"warning: {told} that is encoded each time; delete it, or choose another folder with {ENVIRONMENT}")

    def note_use(self, key: str) -> bool:
        """Have ``key`` count as used now; returns whether it is there."""
        path = self._file(key)
        try:
            if abs(time.time() - path.lstat().st_mtime) > USE_NOTED:
                os.utime(path, follow_symlinks=False)  # not the access time, which many disks do not keep
        except FileNotFoundError:
            return False
        except OSError:
            pass  # another's, or a disk that is only read: who may write to it decides what goes
        return True

    def entries(self) -> list[CachedFile]:
        """All entries; links and files of other names are none. OSError: the folder cannot be read."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.path) as files:
            for file in files:
                if ENTRY.fullmatch(file.name):
                    with suppress(FileNotFoundError):  # it went meanwhile
                        about = file.stat(follow_symlinks=False)
                        if stat.S_ISREG(about.st_mode):
                            found.append(CachedFile(Path(file.path), about.st_size, about.st_mtime))
        return found

    def leftovers(self) -> list[Path]:
        """What killed writes left, and what is being written now."""
        return leftovers(self.path) + [path for path in self.path.glob(".*") if FORMER_LEFTOVER.fullmatch(path.name)]

    def remove_leftovers(self) -> None:
        """Delete what killed writes left, once it is a day old."""
        with suppress(OSError):
            remove_old(self.leftovers())

    def evict(self) -> None:
        """Delete what was used longest ago until the rest is within the limit; what is in use stays, and is told of."""
        if not self._takes_more:
            return
        with suppress(OSError):  # nothing there, or not to be listed
            files = sorted(self.entries(), key=lambda file: file.used)
            excess = sum(file.size for file in files) - self.limit
            for file in files:
                if excess <= 0:
                    return
                if not _in_use(file.path):
                    excess -= self.delete(file)
            if excess > 0:
                told = f"{self.path} holds {format_size(self.limit + excess)} that is in use or another user's"
                self._say(f"warning: {told}, more than its limit of {format_size(self.limit)}; it is kept; raise {SIZE}")

    def delete(self, file: CachedFile) -> int:
        """Delete an entry; returns the bytes that went, none where it is another user's."""
        try:
            file.path.unlink()
        except FileNotFoundError:
            pass  # somebody else was quicker
        except OSError:
            return 0
        return file.size

    @property
    def limit(self) -> int:
        """Bytes that the entries may take. OSError: the disk does not say how large it is."""
        if self._limit is not None:
            return self._limit
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        return min(DEFAULT_SIZE, shutil.disk_usage(there).total // DEFAULT_SHARE)

    def find_risk(self) -> str | None:
        """A sentence about who else, beside root and a group, can put entries there, or change some; None for nobody."""
        done = f"can change the cache {self.root}, and with it what is trained on"
        for folder in (self.root, self.path):
            try:
                about = folder.stat()
            except OSError:
                continue  # where there is nothing, nobody has put anything
            if about.st_mode & stat.S_IWOTH:  # where it is sticky, too: of what is not encoded yet anyone may put entries there
                return f"everyone on this machine {done}; run chmod o-w {folder}, or choose another folder with {ENVIRONMENT}"
            if about.st_uid not in (0, os.geteuid()) and not os.environ.get(ENVIRONMENT):
                return f"the user with the number {about.st_uid} {done}; choose another folder with {ENVIRONMENT}"
        return None

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.safetensors"

    def _make(self) -> None:
        if self.path.is_dir():
            return
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.root.mkdir(0o700)
        with suppress(FileExistsError):
            self.path.mkdir(0o700)
            with suppress(OSError):
                self.path.chmod(stat.S_IMODE(self.root.stat().st_mode))

    def _entry_mode(self) -> int:
        """Of a new entry: who may list the folder may read it, and who may replace it there may write to it."""
        folder = self.path.stat().st_mode
        return 0o600 | folder & (0o644 if folder & stat.S_ISVTX else 0o666)


def format_size(size: int) -> str:
    """``size`` bytes, in the unit in which people write them."""
    from pydantic import ByteSize

    return ByteSize(size).human_readable(decimal=True, separator=" ")


def _in_use(path: Path) -> bool:
    """Whether it was used of late, as it is now: somebody may have read it since the folder was listed, or deleted it."""
    try:
        return abs(time.time() - path.lstat().st_mtime) < IN_USE  # a clock that is ahead keeps nothing for ever
    except OSError:
        return False
