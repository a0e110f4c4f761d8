"""The folder of the cache: which of its files are entries, for whom, and which go when it is full. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from flowfactory.atomic_files import leftovers, remove_old, replacing, temporary_name
from flowfactory.data.cache_lease import Lease, Need, find_needs
from flowfactory.data.room import judge_room, spare_memory
from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused, read_bytes

ENVIRONMENT, SIZE = "FLOWFACTORY_CACHE", "FLOWFACTORY_CACHE_SIZE"
DEFAULT_SIZE, DEFAULT_SHARE = 64 * 10**9, 10
"""Bytes, and the part of the disk, of which the cache has the lesser where nothing is said."""
LARGEST_ENTRY = 2**30
IN_USE = 3600.0
"""Seconds for which what was used stays: a run reads again what it reads now."""
USE_NOTED = 600.0
"""Seconds in which a file is marked as used once."""
_OF_THIS_ENTRY = (errno.EPERM, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)
ENTRY = re.compile(r"[0-9a-f]{40}\.safetensors")
SHARD = re.compile(r"[0-9a-f]{2}")
"""The folder of the entries whose keys begin so: one folder of 200,000 files is slow on many disks."""
LOOKED_AT = 100
"""Entries whose sizes are looked at to tell that of many."""
FORMER_LEFTOVER = re.compile(r"\.[0-9a-f]{40}\.[a-z0-9_]{8}")


def default_folder() -> Path:
    """$FLOWFACTORY_CACHE, or ``flowfactory`` in the user's cache folder. UserError: there is no home folder for it."""
    chosen = os.environ.get(ENVIRONMENT)
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowfactory"
    except RuntimeError:
        if chosen:
            told = f"{ENVIRONMENT}: got {chosen!r}; there is no home folder for {Path(chosen).parts[0]}, write the whole path"
        else:
            told = f"the cache has no place: this user has no home folder; set {ENVIRONMENT} to a folder"
        raise UserError(told) from None


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
    """Entries on disk, bytes by key, in folders of ``root / "conditions"``, at most ``limit`` bytes of them.

    What is made here is its owner's alone. A folder that is there already keeps its mode, and the entries in it are for whom
    the folder is. What cannot be read is missing. Where nothing can be written, ``say`` hears it once, and then no more is
    written. An entry in whose place something stays, such as another user's in a shared folder, is left out alone.
    """

    def __init__(self, root: Path, limit: int | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self.root, self.path = root, root / "conditions"
        self._limit, self._say = limit, say
        self._takes_more, self._told_of_one, self._told_of_limit = True, False, False
        self._lease: Lease | None = None
        self._passing: Lease | None = None
        self.refusal: str | None = None
        """What was said first of what it did not take, for ranks that are not heard."""

    @classmethod
    def from_environment(cls, say: Callable[[str], None] = lambda _: None) -> CacheFolder:
        """The user's; ``say`` hears too where others can change it. UserError: a variable is wrong."""
        folder = cls(default_folder(), read_limit(), say)
        if risk := folder.find_risk():
            say(f"warning: {risk}")
        return folder

    def read(self, key: str) -> bytes | None:
        """What was written under ``key``; None where there is nothing, or something else than a file of this folder."""
        self._renew()
        try:
            return read_bytes(self._file(key), LARGEST_ENTRY, within=self.path)
        except (OSError, Refused):
            return None

    def find(self, keys: Collection[str]) -> set[str]:
        """Those of ``keys`` under which there is a file, whatever is in it: folders are listed, and no entry is looked at."""
        shards: dict[str, set[str]] = {}
        for key in keys:
            shards.setdefault(key[:2], set()).add(key)
        found: set[str] = set()
        for shard, wanted in shards.items():
            with suppress(OSError):  # nothing there, or not to be listed
                names = {file.name.partition(".")[0] for file in _scan(self.path / shard) if _is_file(file)}
                found |= wanted & names
        return found

    def write(self, key: str, content: bytes) -> bool:
        """Put ``content``, of at most LARGEST_ENTRY bytes, under ``key``, whole or not at all; returns whether it is there."""
        if not self._takes_more or len(content) > LARGEST_ENTRY:
            return False
        self._renew()
        path = self._file(key)
        try:
            self._make(path.parent)
            with replacing(path, private=True) as temporary:
                temporary.write_bytes(content)
                with suppress(OSError):  # some disks have no modes
                    temporary.chmod(self._entry_mode())
        except OSError as error:
            if error.errno in _OF_THIS_ENTRY and os.path.lexists(path):
                self._tell_of_one(key)
                return False
            self._takes_more = False
            told = f"{self.path} cannot be written to ({error.strerror}): what is encoded now is kept in memory alone"
            self._refuse(f"{told}; make room there, or choose another folder with {ENVIRONMENT}")
            return False
        return True

    def need(self, keys: Collection[str], for_now: bool = False) -> None:
        """Have nobody delete ``keys`` to make room until this process ends, for others than this system's a day later.

        ``for_now``: until others are needed so.
        """
        with suppress(OSError):  # nor is room made where nothing can be written
            self._make(self.path)
            if for_now:
                former, self._passing = self._passing, Lease(self.path)
                self._passing.add(keys)
                if former is not None:
                    former.end()
                return
            self._lease = self._lease or Lease(self.path)
            self._lease.add(keys)

    def _renew(self) -> None:
        for lease in (self._lease, self._passing):
            if lease is not None:
                lease.renew()

    def discard(self, key: str) -> None:
        """Delete what is under ``key``, if it can be."""
        with suppress(OSError):
            self._file(key).unlink()

    def leave_mark(self) -> Path | None:
        """A new file beside the entries, for :meth:`has_mark`, which goes with the leftovers; None where none can be made."""
        with suppress(OSError):
            self._make(self.path)
            mark = temporary_name(self.path)
            mark.touch(0o600, exist_ok=False)
            return mark
        return None

    def has_mark(self, name: str) -> bool:
        """Whether the file that another process left is seen here."""
        return os.path.lexists(self.path / name)

    def _tell_of_one(self, key: str) -> None:
        if not self._told_of_one:
            self._told_of_one = True
            told = f"{self._file(key)} is another user's, or no file: it cannot be replaced, and stands for a prompt"
            self._refuse(f"{told} that is encoded each time; delete it, or choose another folder with {ENVIRONMENT}")

    def _refuse(self, sentence: str) -> None:
        self.refusal = self.refusal or sentence
        self._say(f"warning: {sentence}")

    def tell_of_other(self, refusals: Sequence[str | None]) -> None:
        """Say once the first of all ranks' ``refusals``, where nothing was said of this rank's own folder."""
        rank, sentence = next(((rank, one) for rank, one in enumerate(refusals) if one), (0, None))
        if sentence and not self.refusal:
            self._refuse(f"on rank {rank}, {sentence}")

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
        for folder in self._folders():
            with suppress(FileNotFoundError):  # it went meanwhile
                for file in _scan(folder):
                    if ENTRY.fullmatch(file.name):
                        with suppress(FileNotFoundError):
                            about = file.stat(follow_symlinks=False)
                            if stat.S_ISREG(about.st_mode):
                                found.append(CachedFile(Path(file.path), about.st_size, about.st_mtime))
        return found

    def _folders(self) -> list[Path]:
        """Those in which entries are: the folder itself, where they once were, and its shards."""
        with suppress(FileNotFoundError):
            shards = [
                file.name for file in _scan(self.path) if SHARD.fullmatch(file.name) and file.is_dir(follow_symlinks=False)
            ]
            return [self.path, *(self.path / name for name in sorted(shards))]
        return []

    def leftovers(self) -> list[Path]:
        """What killed writes left, and what is being written now."""
        former = [path for path in self.path.glob(".*") if FORMER_LEFTOVER.fullmatch(path.name)]
        return [path for folder in self._folders() for path in leftovers(folder)] + former

    def remove_leftovers(self) -> None:
        """Delete what killed writes left, once it is a day old, and the leases of killed runs."""
        with suppress(OSError):
            remove_old(self.leftovers())
            find_needs(self.path)

    def needs(self) -> list[Need]:
        """What runs under way need."""
        return find_needs(self.path)

    def estimate(self, keys: Collection[str]) -> int:
        """About how many bytes the entries ``keys`` take: as many as some of them."""
        sizes = []
        for key in islice(keys, LOOKED_AT):
            with suppress(OSError):
                sizes.append(self._file(key).lstat().st_size)
        return sum(sizes) * len(keys) // len(sizes) if sizes else 0

    def announce(self, count: int, size: int, what: str = "prompts") -> None:
        """Say that so many of ``what`` are being encoded, which take ``size`` bytes. UserError: there is no room for them."""
        free, memory = (self._free() if self._takes_more else 0), spare_memory()
        told = f"encoding {count:,} {what}, which take about {format_size(size)}"
        where = f"in {self.path}, where {format_size(free)} are free" if self._takes_more else "in memory"
        remedy = f"make room, or choose another folder with {ENVIRONMENT}"
        if (room := judge_room(size, free, memory)) is None:
            raise UserError(f"{told}, which do not fit {where}; {remedy}")
        short = f"warning: {told}; not all fits {where}, and the rest is kept in memory; {remedy}"
        self._say(f"{told} {where}" if room or not self._takes_more else short)
        self.warn_of_limit(size)

    def _free(self) -> int:
        with suppress(OSError):
            return shutil.disk_usage(self.path).free
        return 0

    def warn_of_limit(self, size: int) -> None:
        """Say once that ``size`` bytes, which a run needs, are more than the limit, unless nothing can be written anyway."""
        with suppress(OSError):
            if self._takes_more and size > self.limit and not self._told_of_limit:
                self._told_of_limit = True
                told = f"the prompts of this run take about {format_size(size)} in {self.path}, more than its limit of"
                kept = "they are kept while it runs, and may be encoded again later"
                self._say(f"warning: {told} {format_size(self.limit)}; {kept}; raise {SIZE}")

    def tell_of_lost(self, count: int) -> None:
        """Say that ``count`` entries are gone that were there."""
        told = f"{count:,} entries of {self.path} are gone or damaged, and encoded again"
        self._say(f"warning: {told}; raise {SIZE}, or look at what deletes files there")

    def evict(self) -> None:
        """Delete what was used longest ago until the rest is within the limit; what is in use stays, and is told of."""
        if not self._takes_more:
            return
        with suppress(OSError):  # nothing there, or not to be listed
            files = sorted(self.entries(), key=lambda file: file.used)
            excess = sum(file.size for file in files) - self.limit
            needed = {key for need in find_needs(self.path) for key in need.keys} if excess > 0 else set()
            for file in files:
                if excess <= 0:
                    return
                if file.path.stem not in needed and not _in_use(file.path):
                    excess -= self.delete(file)
            if excess > 0 and not self._told_of_limit:
                self._told_of_limit = True
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
        shards: list[Path] = []
        with suppress(OSError):
            shards = self._folders()[1:]
        for folder in (self.root, self.path, *shards):
            try:
                about = folder.stat()
            except OSError:
                continue  # where there is nothing, nobody has put anything
            if about.st_mode & stat.S_IWOTH:  # where it is sticky, too: of what is not encoded yet anyone may put entries there
                there = folder if folder == self.root else self.path
                return f"everyone on this machine {done}; run chmod -R o-w {there}, or choose another folder with {ENVIRONMENT}"
            if about.st_uid not in (0, os.geteuid()) and not os.environ.get(ENVIRONMENT):
                return f"the user with the number {about.st_uid} {done}; choose another folder with {ENVIRONMENT}"
        return None

    def _file(self, key: str) -> Path:
        return self.path / key[:2] / f"{key}.safetensors"

    def _make(self, folder: Path) -> None:
        """``folder``, which is that of all entries or a shard, and those above it; each has the mode of the one above."""
        if folder.is_dir():
            return
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.root.mkdir(0o700)
        for path in dict.fromkeys((self.path, folder)):
            with suppress(FileExistsError):
                path.mkdir(0o700)
                with suppress(OSError):
                    path.chmod(stat.S_IMODE(path.parent.stat().st_mode))

    def _entry_mode(self) -> int:
        """Of a new entry: who may list the folder may read it, and who may replace it there may write to it."""
        folder = self.path.stat().st_mode
        return 0o600 | folder & (0o644 if folder & stat.S_ISVTX else 0o666)


def format_size(size: int) -> str:
    """``size`` bytes, in the unit in which people write them."""
    from pydantic import ByteSize

    return ByteSize(size).human_readable(decimal=True, separator=" ")


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as files:
        yield from files


def _is_file(file: os.DirEntry[str]) -> bool:
    try:
        return file.is_file()
    except OSError:  # of a link that goes round
        return False


def _in_use(path: Path) -> bool:
    """Whether it was used of late, as it is now: somebody may have read it since the folder was listed, or deleted it."""
    try:
        return abs(time.time() - path.lstat().st_mtime) < IN_USE  # a clock that is ahead keeps nothing for ever
    except OSError:
        return False
