"""The process that holds a run directory: as it writes itself down, and whether it still holds it."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from flowfactory.process_identity import ProcessIdentity


@dataclass(frozen=True)
class Holder(ProcessIdentity):
    """A process. ``since`` is when it took ``folder``, ``nonce`` what tells it from itself at another time."""

    folder: str
    since: str
    nonce: str

    @staticmethod
    def this_process(folder: Path) -> Holder:
        """The one that asks."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return Holder(**asdict(ProcessIdentity.own()), folder=str(folder.absolute()), since=since, nonce=secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def no_longer_holds(self, folder: Path) -> bool | None:
        """Whether it has ended, or holds another folder, of which ``folder`` is a copy; None: as :meth:`has_ended`."""
        if self.is_of_this_system() and _is_another_folder(self.folder, folder):
            return True
        return self.has_ended()


def _is_another_folder(recorded: str, folder: Path) -> bool:
    try:
        return not os.path.samefile(recorded, folder)
    except (OSError, ValueError):
        return False
