"""A process, as it writes itself down in a file for others, and whether it still lives. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from flowfactory.untrusted_files import Refused, parse_json


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, by the number it has on ``system`` and when it ``started`` there, as the system counts."""

    host: str
    pid: int
    started: str
    system: str

    @staticmethod
    def own() -> ProcessIdentity:
        """The one that asks."""
        return ProcessIdentity(platform.node() or "localhost", os.getpid(), _start_of(os.getpid()) or "", _system())

    @classmethod
    def read(cls, content: str | bytes) -> Self | None:
        """What :meth:`as_json` wrote; None: it is something else."""
        try:
            found = parse_json(content)
        except Refused:
            return None
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or not names <= found.keys():
            return None
        one = cls(**{name: found[name] for name in names})
        texts = [value for name, value in asdict(one).items() if name != "pid"]
        if type(one.pid) is not int or not 0 < one.pid < 2**31:
            return None
        return one if all(isinstance(text, str) and text.isprintable() for text in texts) else None

    def as_json(self, indent: int | None = None) -> str:
        """For :meth:`read`, and for people, with the end of the line; in one line without an ``indent``."""
        return json.dumps(asdict(self), indent=indent) + "\n"

    def is_of_this_system(self) -> bool:
        """Whether its number is one of this system's."""
        return bool(self.system) and self.system == _system()

    def has_ended(self) -> bool | None:
        """Whether it is gone; None: it is not on this system, or that cannot be told."""
        if not self.is_of_this_system():
            return None
        now = _start_of(self.pid)
        return None if now is None or (now and not self.started) else now != self.started


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
