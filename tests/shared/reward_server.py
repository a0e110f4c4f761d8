"""``flowfactory serve`` in a process of its own, on a port of loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import torch

from flowfactory import Samples

ODD = Path(__file__).with_name("odd_reward.py")


@dataclass
class Served:
    url: str
    process: subprocess.Popen[str]

    def metric(self, name: str) -> float:
        """The sum of all lines of ``flowfactory_<name>``."""
        text = httpx2.get(f"{self.url}/metrics", timeout=60).text
        found = re.findall(rf"^flowfactory_{name}(?:\{{.*\}})? (\S+)$", text, re.M)
        return sum(map(float, found))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def start_server(*options: str, environment: Mapping[str, str] | None = None, before: str = "") -> subprocess.Popen[str]:
    """``flowfactory serve odd`` with ``options``; ``before`` is run first, such as what shortens a time."""
    command = ["-c", f"{before}\nfrom flowfactory.cli.main import main\nmain()"] if before else ["-m", "flowfactory"]
    return subprocess.Popen(
        [sys.executable, *command, "serve", *options, "--plugin", str(ODD)],
        env={**os.environ, "FLOWFACTORY_PLUGINS": "", "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def serve_reward(
    *options: str, reward: str = "odd", environment: Mapping[str, str] | None = None, before: str = ""
) -> Iterator[Served]:
    with serve_rewards([options], reward, environment, before) as (one,):
        yield one


@contextmanager
def serve_rewards(
    options: list[tuple[str, ...]],
    reward: str = "odd",
    environment: Mapping[str, str] | None = None,
    before: str = "",
) -> Iterator[tuple[Served, ...]]:
    """One for each of ``options``, which start at the same time."""
    processes = [start_server(reward, "--port", "0", *each, environment=environment, before=before) for each in options]
    try:
        yield tuple(Served(read_url(process), process) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def read_url(process: subprocess.Popen[str]) -> str:
    """What the command prints when it listens."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.match(r"serving \S+ at (https?://\S+)$", line):
            return found[1]
    raise AssertionError(f"the server ended: {''.join(lines)}")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; the time limit of the test is the limit."""
    while not condition():
        time.sleep(0.02)


def pictures(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def samples(media: torch.Tensor, groups: list[int] | None = None, **metadata: object) -> Samples:
    count = len(media)
    prompts = tuple(f"prompt {i}" for i in range(count))
    return Samples(media, prompts, torch.tensor(groups or [0] * count), (metadata,) * count)
