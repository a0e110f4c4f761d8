"""What blocks left out, weights in fewer bits and kept graphs save and change on a tiny FLUX, as JSON.

    python benchmarks/draw_less.py [--out benchmarks/results] [--rounds 5]

Drawing: 2 samples of a prompt, 20 steps, by the FLUX.1 of overhead.py (2 double and 4 single blocks, width 128, 512 text and
16 image tokens, random weights). ``forwards`` of blocks, of those that there are; ``latents``: how far what is drawn is from
what all blocks and weights draw, as the norm of the difference over the norm; ``seconds``: CPU seconds of drawing, of those
that it takes so. Random weights change little from step to step or much, as it comes: how far a trained model may go, and what
rewards then say, has not been measured.
Kept graphs: an iteration of GRPO with LoRA of overhead.py (4 steps, 3 of them recorded), CPU seconds with replays over those
with ``training.keep_graphs``; the same with one recorded step of 10.
One thread; medians over rounds in which both take turns. Writes draw_less.json.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from overhead import ALGORITHMS, checkpoint, settings
from report import argument_parser, machine, write_results
from torch import Tensor

from flowfactory.config import loading
from flowfactory.models.feature_cache import cached_blocks
from flowfactory.runs.versions import versions
from flowfactory.training.iteration import _batch, iterate
from flowfactory.training.plans import sampling_plan
from flowfactory.training.setup import Run, prepare_run

STEPS = 20
THRESHOLDS = (0.08, 0.15, 0.3, 0.5)
KINDS = ("int8", "fp8", "nf4")


@contextmanager
def counted(run: Run) -> Iterator[list[int]]:
    """How many forwards of blocks there are."""
    blocks, count = cached_blocks(run.policy.modules["transformer"]), [0]

    def counting(forward: Callable[..., Any]) -> Callable[..., Any]:
        def one(*given: Any, **options: Any) -> Any:
            count[0] += 1
            return forward(*given, **options)

        return one

    for block in blocks:
        block.forward = counting(block.forward)
    yield count
    for block in blocks:
        del block.forward


def drawing(path: Path, rounds: int) -> dict[str, Any]:
    """Each way to draw less, against drawing with everything."""
    raw = settings(path, path.parent, *ALGORITHMS["nft"])
    raw["sampling"] |= {"groups": 1, "group_size": 2, "steps": STEPS}
    run = prepare_run(loading.validate(raw))
    run.assembly.hooks.run_started(run.info, run.policy)
    batch = _batch(run, 0)
    plan = sampling_plan(run.assembly, run.config, 0, batch.keys)
    known = run.sampler.conditions(batch.prompts, plan.guidance, plan.canvas)

    def draw(**changes: Any) -> tuple[float, Tensor]:
        started = time.process_time()
        latents = run.sampler.draw(known, replace(plan, **changes), len(batch.keys)).latents
        return time.process_time() - started, latents

    ways: dict[str, dict[str, Any]] = {f"first-block {threshold}": {"cache_threshold": threshold} for threshold in THRESHOLDS}
    ways |= {kind: {"weights_as": kind} for kind in KINDS}
    found = {}
    with counted(run) as every:
        draw()
    for name, changes in ways.items():
        with counted(run) as count:
            draw(**changes)  # makes the copy, too
        shares = []
        for _ in range(rounds):
            whole, latents = draw()
            some, others = draw(**changes)
            shares.append(some / whole)
        found[name] = {
            "forwards": round(count[0] / every[0], 3),
            "latents": round(float((others - latents).norm() / latents.norm()), 5),
            "seconds": round(statistics.median(shares), 3),
        }
        print(f"{name:<18} {found[name]}", flush=True)
    return found


def kept_graphs(path: Path, rounds: int, steps: int, recorded: int) -> dict[str, Any]:
    """An iteration with replays over one without."""
    algorithm, dynamics = ALGORITHMS["grpo"]
    runs = {}
    for keeps in (False, True):
        raw = settings(path, path.parent, algorithm, {**dynamics, "num_sde_steps": recorded})
        raw["sampling"]["steps"] = steps
        raw["training"]["keep_graphs"] = keeps
        runs[keeps] = prepare_run(loading.validate(raw))
        runs[keeps].assembly.hooks.run_started(runs[keeps].info, runs[keeps].policy)
        iterate(runs[keeps], 0)  # warm
    ratios = []
    for number in range(1, rounds + 1):
        taken = {}
        for keeps in (False, True) if number % 2 else (True, False):
            started = time.process_time()
            iterate(runs[keeps], number)
            taken[keeps] = time.process_time() - started
        ratios.append(round(taken[False] / taken[True], 3))
    found = {"steps": steps, "recorded": recorded, "faster": statistics.median(ratios), "rounds": ratios}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with checkpoint() as path:
        graphs = [kept_graphs(path, arguments.rounds, 4, 3), kept_graphs(path, arguments.rounds, 10, 1)]
        rows = drawing(path, arguments.rounds)
    result = {"drawing": rows, "kept_graphs": graphs, "load": os.getloadavg(), "machine": machine(), "versions": versions()}
    write_results(arguments.out / "draw_less.json", result)


if __name__ == "__main__":
    main()
