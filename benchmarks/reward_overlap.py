"""What a remote reward of 200 ms a picture costs an iteration when drawing a picture takes longer, as JSON.

    python benchmarks/reward_overlap.py [--rounds 3] [--iterations 3] [--steps 0] [--out benchmarks/results]

The embedded generator draws 16 groups of 2 pictures, a group at a time, in as many steps that a picture takes about 300 ms on
this machine (or in --steps), one thread. A real `flowfactory serve` on this machine answers after 200 ms a picture; it sleeps,
so that it takes no time from the drawing. The same work three ways in one run: a reward that costs nothing, the remote one
while the next pictures are drawn, and the remote one with `concurrent: false`, after the pictures. They take turns
for as many rounds, so that what else the machine does falls on all. All figures are ratios of seconds within the run, of the
median iteration; the first one of each turn does not count.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import argument_parser, machine, write_results

from flowfactory.config import loading
from flowfactory.runs.train import train
from flowfactory.runs.versions import versions

PLUGIN = Path(__file__).parent / "slow_reward.py"
PARTS = ("sample", "reward", "update")
GROUPS, GROUP_SIZE, SECONDS, DRAWING = 16, 2, 0.2, 0.3


@contextmanager
def served() -> Iterator[str]:
    """The URL of a server of the slow reward, which ends with this."""
    command = [sys.executable, "-m", "flowfactory", "serve", "slow", "--plugin", str(PLUGIN), "--set", f"seconds={SECONDS}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found.group(0)
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(30)


def run(reward: dict[str, Any], steps: int, iterations: int) -> list[dict[str, float]]:
    """Seconds of each iteration after the first, by what they were spent on."""
    options = [f"rewards={json.dumps({'slow': reward})}", "evaluation.rewards={}", "prompts.heldout=null"]
    options += [f"sampling.groups={GROUPS}", f"sampling.group_size={GROUP_SIZE}", f"sampling.batch_size={GROUP_SIZE}"]
    options += [f"sampling.steps={steps}", f"training.iterations={iterations}", "training.updates=1", "training.batch_size=32"]
    with tempfile.TemporaryDirectory() as folder:
        directory = train(loading.load("quickstart", options, [PLUGIN], Path(folder) / "run"), say=lambda _: None)
        records = directory.records()[2:]
    return [{name: record[f"seconds/{name}"] for name in PARTS} for record in records]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    free = {"name": "slow", "seconds": 0.0}
    steps = arguments.steps
    if not steps:
        steps = 20
        took = run(free, steps, 2)[0]["sample"] / (GROUPS * GROUP_SIZE)
        steps = max(1, round(steps * DRAWING / took))
    started = time.time()
    with served() as url:
        remote = {"name": "remote", "url": url}
        ways = {"free": free, "concurrent": remote, "after": remote | {"concurrent": False}}
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, reward in ways.items():
                turns[name] += run(reward, steps, arguments.iterations)
    found = {name: {part: median(turn[part] for turn in all_) for part in PARTS} for name, all_ in turns.items()}
    totals = {name: median(sum(turn.values()) for turn in all_) for name, all_ in turns.items()}
    pictures = GROUPS * GROUP_SIZE
    result = {
        "pictures": pictures,
        "steps": steps,
        "drawing_of_a_picture_in_rewards": round(found["concurrent"]["sample"] / pictures / SECONDS, 3),
        "wait_for_the_reward_by_iteration": {
            name: round(found[name]["reward"] / totals[name], 4) for name in ("concurrent", "after")
        },
        "iteration_by_iteration_with_a_free_reward": {
            name: round(totals[name] / totals["free"], 4) for name in ("concurrent", "after")
        },
        "seconds": {name: {part: round(value, 3) for part, value in seconds.items()} for name, seconds in found.items()},
        "minutes": round((time.time() - started) / 60, 1),
        "machine": machine(),
        "versions": versions(),
    }
    print(write_results(arguments.out / "reward_overlap.json", result))


if __name__ == "__main__":
    main()
