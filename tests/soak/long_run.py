"""A long run of the command line with a server and a worker, and what its processes hold while it goes on."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import yaml
from reward_server import serve_reward

TOY = Path(__file__).parents[1] / "core" / "toy_plugin.py"
MIB = 2**20
FIGURES = ("memory", "descriptors", "threads", "processes", "temporary files", "files of the run")
READINGS = 6
MEMORY_SHARE, MEMORY_ALLOWANCE = 0.03, 12 * MIB
"""By how much a process's memory may rise from the second quarter of a run to the last.

glibc keeps what was freed in arenas that fill up for some thousand allocations, which is a few MiB by process; what is lost
with every iteration, as a picture or a gradient would be, is more within some hundred of them.
"""


@dataclass(frozen=True)
class Figures:
    """Of some processes at one time: bytes, and counts."""

    iteration: int
    memory: int
    descriptors: int
    threads: int
    processes: int
    temporary: int
    files: int

    def row(self) -> str:
        return (
            f"{self.iteration:>9}{self.memory / MIB:>12.1f}{self.descriptors:>13}{self.threads:>9}{self.processes:>11}"
            f"{self.temporary:>17}{self.files:>18}"
        )


HEAD = f"{'iteration':>9}{'memory, MiB':>12}{'descriptors':>13}{'threads':>9}{'processes':>11}{FIGURES[4]:>17}{FIGURES[5]:>18}"


def write_config(folder: Path, url: str, iterations: int, every: int) -> Path:
    """The smallest run that has all: a reward here, one behind ``url``, one in a worker, evaluations and checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("red\nblue\ngreen\nyellow\nwhite\n")
    (folder / "heldout.txt").write_text("black\norange\n")
    config = {
        "model": {"name": "net"},
        "algorithm": {"name": "score"},
        "rewards": {
            "here": {"name": "bright"},
            "served": {"name": "remote", "url": url, "batch_size": 4, "requests": 2},
            "worked": {"name": "bright", "workers": 1},
        },
        "prompts": {"train": "train.txt", "heldout": "heldout.txt"},
        "sampling": {
            "groups": 2,
            "group_size": 4,
            "size": [4, 4],
            "steps": 2,
            "batch_size": 8,
            "dynamics": {"name": "flow-sde"},
        },
        "training": {
            "iterations": iterations,
            "batch_size": 8,
            "optimizer": {"lr": 1e-6},
        },  # so that rewards never come to be alike
        "evaluation": {"every": every, "pictures": 1},
        "output": {"checkpoint_every": every, "keep_last": 2},
        "plugins": [str(TOY)],
        "device": "cpu",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def process_tree(pid: int) -> Iterator[int]:
    """``pid`` and what it has started, and so on."""
    yield pid
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from process_tree(int(child))


def measure(pids: list[int], iteration: int, temporary: Path, run: Path) -> Figures:
    """What ``pids`` hold now; pictures of evaluations are meant to become more, and are left out."""
    memory = descriptors = threads = 0
    for pid in pids:
        with suppress(OSError):  # one that has just ended
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            memory += int(status.get("RssAnon", "0 kB").split()[0]) * 1024
            threads += int(status["Threads"])
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    left = sum(len(folders) + len(files) for _, folders, files in os.walk(temporary))  # which passes over what goes meanwhile
    kept = sum(len(files) for folder, _, files in os.walk(run) if "samples" not in Path(folder).parts)
    return Figures(iteration, memory, descriptors, threads, len(pids), left, kept)


def held(pid: int, iteration: int, temporary: Path, run: Path) -> Figures:
    """What ``pid`` and all that it started hold for longer than a moment: the least of some readings, in a few iterations.

    A checkpoint that is being written, and a request on its way, have a thread or a file for a moment.
    """
    readings = []
    for _ in range(READINGS):
        readings.append(measure([*process_tree(pid)], iteration, temporary, run))
        time.sleep(0.03)
    return Figures(*(min(column) for column in zip(*map(astuple, readings), strict=True)))


@dataclass(frozen=True)
class LongRun:
    """What was measured of the run and of its server, at the same iterations."""

    run: list[Figures]
    server: list[Figures]
    seconds: float

    def table(self) -> str:
        """First, middle and last figures."""
        lines = [f"{self.run[-1].iteration} iterations in {self.seconds:.0f} s"]
        for name, figures in (("the run and its worker", self.run), ("the server", self.server)):
            middle = figures[len(figures) // 2]
            lines += [name, HEAD, *(each.row() for each in (figures[0], middle, figures[-1]))]
        return "\n".join(lines)

    def problems(self) -> list[str]:
        """What is not flat; nothing where all is."""
        parts = {"the run": self.run, "the server": self.server}
        return [f"{name}: {problem}" for name, figures in parts.items() for problem in rising(figures)]


def rising(figures: list[Figures]) -> list[str]:
    """Which of ``figures`` have gone up from their second quarter to their last, in one sentence each.

    What all of the last quarter has counts, beyond what was usual in the second one: a reading may still have caught a moment.
    Memory is compared by medians.
    """
    quarter = len(figures) // 4
    early, late = figures[quarter : 2 * quarter], figures[-quarter:]
    counts: dict[str, Callable[[Figures], int]] = {
        "descriptors": lambda each: each.descriptors,
        "threads": lambda each: each.threads,
        "processes": lambda each: each.processes,
        "temporary files": lambda each: each.temporary,
        "files of the run": lambda each: each.files,
    }
    found = []
    for name, of in counts.items():
        before, after = statistics.median(map(of, early)), min(map(of, late))
        if after > before:
            found.append(f"{name} rose from {before:g} to {after:g}")
    before, after = (statistics.median(each.memory for each in part) for part in (early, late))
    if after > before * (1 + MEMORY_SHARE) + MEMORY_ALLOWANCE:
        found.append(f"memory rose from {before / MIB:.1f} MiB to {after / MIB:.1f} MiB")
    return found


def train_for_long(folder: Path, iterations: int, measurements: int) -> LongRun:
    """Run ``iterations`` and measure as often, evenly; the run, its worker and the server are processes as users have them."""
    temporary, served_temporary = folder / "tmp", folder / "served-tmp"
    for each in (temporary, served_temporary):
        each.mkdir(parents=True)
    step = max(1, iterations // measurements)
    begun = time.monotonic()
    with serve_reward(environment={"TMPDIR": str(served_temporary)}) as server:
        config = write_config(folder, server.url, iterations, every=max(2, step // 2))
        own = {"TMPDIR": str(temporary), "FLOWFACTORY_PLUGINS": "flowfactory-rewards", "OMP_NUM_THREADS": "1"}
        own |= {"FLOWFACTORY_CACHE": str(folder / "cache")}
        log = (folder / "log.txt").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfactory", "run", str(config), "--out", str(folder / "run")],
            env={**os.environ, **own},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        run: list[Figures] = []
        served: list[Figures] = []
        try:
            done = 0
            while process.poll() is None:
                time.sleep(0.02)
                now = count_lines(folder / "run" / "metrics.jsonl") - 1
                if now >= done + step:
                    done = now - now % step
                    both = (
                        held(process.pid, now, temporary, folder / "run"),
                        held(server.process.pid, now, served_temporary, folder / "none"),
                    )
                    if process.poll() is None:  # else the last reading is of a process that ends
                        run.append(both[0])
                        served.append(both[1])
        finally:
            process.kill()
            process.wait()
            log.close()
        assert process.returncode == 0, (folder / "log.txt").read_text()[-2000:]
        assert count_lines(folder / "run" / "metrics.jsonl") == iterations + 1
        left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]  # of torch itself
        assert left == []
    return LongRun(run, served, time.monotonic() - begun)


def count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0
