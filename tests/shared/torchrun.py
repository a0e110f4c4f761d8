"""The command that starts a script on several ranks of this machine."""

from __future__ import annotations

import sys
from pathlib import Path


def torchrun(count: int, script: Path, *arguments: object) -> list[str]:
    """``script`` on ``count`` ranks, or in one process of its own."""
    group = ["--nproc-per-node", str(count), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launcher = ["-m", "torch.distributed.run", *group] if count > 1 else []
    return [sys.executable, *launcher, str(script), *map(str, arguments)]
