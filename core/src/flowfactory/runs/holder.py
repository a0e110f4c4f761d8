"""The process that holds a run directory: as it writes itself down, and whether it still lives."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from flowfactory.untrusted_files import Refused, parse_json


@dataclass(frozen=True)
class Holder:
    """A process, by the number it has on ``system`` and when it ``started`` there, as the system counts.

    ``since`` is when it took ``folder``, ``nonce`` what tells it from itself at another time.
    """

    host: str
    pid: int
    started: str
    system: str
    folder: str
    since: str
    nonce: str

    @staticmethod
    def this_process(folder: Path) -> Holder:
        """The one that asks."""
        started, since = _start_of(os.getpid()) or "", datetime.now().astimezone().isoformat(" ", "seconds")
        host = platform.node() or "localhost"
        return Holder(host, os.getpid(), started, _system(), str(folder.absolute()), since, secrets.token_hex(8))

    @staticmethod
    def read(content: bytes) -> Holder | None:
        """What :meth:`as_json` wrote; None: it is something else."""
        try:
            found = parse_json(content)
        except Refused:
            return None
        names = {field.name for field in fields(Holder)}
        if not isinstance(found, dict) or not names <= found.keys():
            return None
        holder = Holder(**{name: found[name] for name in names})
        texts = [value for name, value in asdict(holder).items() if name != "pid"]
        if type(holder.pid) is not int or not 0 < holder.pid < 2**31:
            return None
        return holder if all(isinstance(text, str) and text.isprintable() for text in texts) else None

    def as_json(self) -> bytes:
        """For :meth:`read`, and for people."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def has_ended(self, folder: Path) -> bool | None:
        """Whether it no longer holds ``folder``; None: it is not on this system, or that cannot be told."""
        if not self.system or self.system != _system():
            return None
        if _is_another_folder(self.folder, folder):  # that of which this one is a copy
            return True
        now = _start_of(self.pid)
        return None if now is None or (now and not self.started) else now != self.started


def _is_another_folder(recorded: str, folder: Path) -> bool:
    try:
        return not os.path.samefile(recorded, folder)
    except (OSError, ValueError):
        return False


def _system() -> str:
    """What process numbers belong to: on Linux the boot and the namespace. Empty: it cannot be told."""
    if platform.system() != "Linux":
        return platform.node() if os.name == "posix" else ""
    try:
        namespace = os.stat("/proc/self/ns/pid")
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{namespace.st_dev}/{namespace.st_ino}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this system began, as the system counts; empty: there is none. None: it cannot be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # it is somebody else's
    try:
        if platform.system() == "Linux":
            state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return "" if state in "ZX" else rest[18]  # which has ended, and nobody has asked how
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False)
        return shown.stdout.strip() or None
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
