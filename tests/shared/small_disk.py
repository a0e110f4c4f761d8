"""A file system of a few pages, or one that only reads, for one command: in a mount namespace, which needs no root."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest


def on_small_disk(folder: Path, size: str) -> list[str]:
    """What stands before a command to which ``folder`` is an empty disk of ``size``."""
    return _in_namespace('mount -t tmpfs -o "size=$2" none "$1"', folder, size)


def on_read_only_disk(folder: Path) -> list[str]:
    """What stands before a command to which ``folder`` cannot be written to."""
    return _in_namespace('mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"', folder, "")


def _in_namespace(mount: str, folder: Path, size: str) -> list[str]:
    if not _has_namespaces():
        pytest.skip("no mount namespaces here")
    return ["unshare", "-rm", "sh", "-ec", f'{mount}; shift 2; exec "$@"', "sh", str(folder), size]


@functools.cache
def _has_namespaces() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /tmp"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
