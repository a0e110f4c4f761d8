"""What the figures cost that watch over drift: the panel, norms, velocities, movement of weights, and the alarm.

    python benchmarks/drift.py [--out benchmarks/results] [--iterations 6]

``quickstart``: the share of each in the CPU seconds of an iteration of the bundled quickstart, all measured inside the same
iterations, one thread; medians over them. The first iteration is not counted. ``media``: CPU seconds for all samples that the
panel looks at, of larger pictures and of videos, from four of them. Writes drift.json.
"""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from report import argument_parser, machine, write_results

from flowfactory.config import loading
from flowfactory.drift.alarm import DriftWatch
from flowfactory.drift.panel import SAMPLES, Panel, look
from flowfactory.training.iteration import iterate
from flowfactory.training.learner import Learner
from flowfactory.training.movement import Movement
from flowfactory.training.setup import prepare_run
from flowfactory.training.velocity_probe import VelocityProbe

PARTS = {
    "panel": (Panel, ("add", "metrics")),
    "norms": (Learner, ("_norms",)),  # the norm of all gradients, which clipping needs, is among them
    "velocity": (VelocityProbe, ("measure",)),
    "movement": (Movement, ("mark", "metrics")),
    "alarm": (DriftWatch, ("add",)),
}
MEDIA = {"512 x 512": (3, 512, 512), "1024 x 1024": (3, 1024, 1024), "81 frames of 480 x 832": (81, 3, 480, 832)}


def timed(seconds: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] += time.process_time() - started

    return call


def quickstart(iterations: int) -> dict[str, Any]:
    seconds: dict[str, float] = defaultdict(float)
    for name, (kind, methods) in PARTS.items():
        for method in methods:
            setattr(kind, method, timed(seconds, name, getattr(kind, method)))
    shares: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(loading.load("quickstart", [], (), Path(folder) / "run"))
        run.assembly.hooks.run_started(run.info, run.policy)
        watch = DriftWatch()
        for number in range(iterations + 1):
            seconds.clear()
            started = time.process_time()
            watch.add({"iteration": number + 1, **iterate(run, number)})
            whole = time.process_time() - started
            if number:
                for name in PARTS:
                    shares[name].append(seconds[name] / whole)
                shares["all"].append(sum(seconds.values()) / whole)
    return {name: statistics.median(found) for name, found in shares.items()}


def media_seconds(shape: tuple[int, ...]) -> float:
    noise = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(4):
        started = time.process_time()
        look(noise, 8)
        found.append(time.process_time() - started)
    return statistics.median(found) * SAMPLES


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--iterations", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    media = {name: media_seconds(shape) for name, shape in MEDIA.items()}
    result = {"machine": machine(), "media": media, "quickstart": quickstart(options.iterations)}
    print(write_results(options.out / "drift.json", result))


if __name__ == "__main__":
    main()
