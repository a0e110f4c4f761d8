"""Python run by another user than the one who runs the tests, for whom the modes of files count."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, OTHER, GROUP = 65534, 65533, 65532


@contextmanager
def common_folder() -> Iterator[Path]:
    """A folder that every user reaches, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_as(user: int, code: str, *arguments: str | Path) -> str:
    """What ``code`` prints, once the cache is imported; skips the test where nobody may become another user."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user is for root alone")
    # what it imports comes first: this Python may lie where the other user cannot read
    imports = "import os, pydantic, flowfactory.data.cache_folder; pydantic.TypeAdapter(pydantic.ByteSize)\n"
    become = f"os.setgroups([]); os.setgid({GROUP}); os.setuid({user})\n"
    command = [sys.executable, "-c", imports + become + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
