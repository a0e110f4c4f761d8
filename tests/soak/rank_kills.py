"""Two ranks of which one is killed, and a launcher that is killed, as processes that a user would have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from kills import Tally, left_by, write_config
from long_run import count_lines, process_tree
from saved import weights

ITERATIONS = 12


def start(config: Path, root: Path, *options: str) -> subprocess.Popen[bytes]:
    root.mkdir(parents=True, exist_ok=True)
    own = {"FLOWFACTORY_CACHE": str(root / "cache"), "FLOWFACTORY_PLUGINS": "", "OMP_NUM_THREADS": "1"}
    with (root / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flowfactory", "run", str(config), "--out", str(root / "run"), "--nproc", "2", *options],
            env={**os.environ, **own},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen[bytes], root: Path) -> dict[str, Any]:
    """What a run left that went well."""
    try:
        assert process.wait(300) == 0, (root / "log.txt").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
    left = left_by(root)
    last = weights(root / "run" / "checkpoints" / left["checkpoints"][-1])
    return {**left, "weights": {name: tensor.tolist() for name, tensor in last.items()}}


def wait_for_iteration(process: subprocess.Popen[bytes], root: Path, number: int) -> None:
    while count_lines(root / "run" / "metrics.jsonl") <= number and process.poll() is None:
        time.sleep(0.005)


def ranks_of(launcher: int) -> dict[str, int]:
    """The processes of its ranks."""
    found = {}
    for pid in [*process_tree(launcher)][1:]:
        with suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {each.removeprefix(b"RANK=").decode(): pid for each in variables if each.startswith(b"RANK=")}
    return found


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill_ranks_and_launchers(folder: Path, tries: int, seed: int) -> Tally:
    """Half of ``tries`` lose a rank, which the launcher replaces; half lose the launcher, and are resumed by hand."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    tally = Tally()
    config = write_config(folder, ITERATIONS)
    expected = finish(start(config, folder / "whole"), folder / "whole")
    for i in range(tries):
        root, victim = folder / f"{i:03d}", ("a rank", "the launcher")[i % 2]
        process = start(config, root)
        wait_for_iteration(process, root, chance.randrange(1, ITERATIONS - 2))
        time.sleep(chance.uniform(0, 0.1))
        ranks = ranks_of(process.pid)
        if victim == "a rank" and len(ranks) == 2:
            os.kill(ranks[str(chance.randrange(2))], signal.SIGKILL)
        else:
            process.kill()
            process.wait()
            deadline = time.monotonic() + 30
            while any(is_alive(pid) for pid in ranks.values()) and time.monotonic() < deadline:
                time.sleep(0.01)
            if left := [rank for rank, pid in ranks.items() if is_alive(pid)]:
                tally.trouble.append(f"{root}: ranks {left} outlived the launcher")
            process = start(config, root, "--resume")
        tally.killed[victim] += 1
        found = finish(process, root)
        off = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
        if off:
            tally.trouble.append(f"{root}: {', '.join(off[:5])} differ")
        else:
            tally.same[victim] += 1
    return tally
