"""Seconds and memory of a run's start with 16 cached prompts and with 200,000, as JSON.

    python benchmarks/prompts_scale.py [--prompts 200000] [--rounds 3] [--out benchmarks/results]

The model has two parameters, so that what is measured is what prompts cost. Each start is a process of its own, in alternating
rounds, from the config to weights in place, followed by three iterations; all prompts are in the cache by then. Seconds and
megabytes are beyond the imports; those of the prompts themselves, as the file has them, are measured alone. The cache is filled
with one prompt's entry under the names of all, which encoding would take minutes for. Writes prompts_scale.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import argument_parser, machine, resident, write_results

from flowfactory.runs.versions import versions

FEW = 16
ITERATIONS = 3
LINKS = 50_000
"""Names of a file; more are not allowed everywhere."""


def write_config(folder: Path, count: int) -> Path:
    """The config of a run with ``count`` prompts, which lie beside it."""
    from flowfactory.testing.two_parameter import settings

    folder.mkdir()
    raw = settings(folder, "nft", sampling={"groups": 8}, training={"iterations": ITERATIONS})
    (folder / "train.txt").write_text(
        "".join(f"a photo of a cat, number {number}, on a hill in snow\n" for number in range(count))
    )
    path = folder / "config.json"
    path.write_text(json.dumps(raw))
    return path


def start(path: Path) -> dict[str, Any]:
    """What the start of the run takes, and its iterations."""
    from flowfactory.config.loading import validate
    from flowfactory.data.prompts import read_prompts
    from flowfactory.training.iteration import iterate
    from flowfactory.training.setup import prepare_run

    config = validate(json.loads(path.read_text()))
    prepare_run(validate(json.loads((path.parents[1] / "warm/config.json").read_text())))  # what is imported late
    before = resident("VmRSS")
    prompts = read_prompts(config.prompts.train)
    own = resident("VmRSS") - before
    del prompts
    before, started, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    run = prepare_run(config)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    run.assembly.hooks.run_started(run.info, run.policy)
    started = time.perf_counter()
    for number in range(ITERATIONS):
        iterate(run, number)
    found = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seconds_per_iteration": (time.perf_counter() - started) / ITERATIONS,
    }
    found |= {"prompts_mb": own, "peak_mb": resident("VmHWM") - before, "held_mb": resident("VmRSS") - before}
    return {name: round(value, 3) for name, value in found.items()}


def fill(path: Path) -> None:
    """Have an entry for each prompt of the run."""
    from flowfactory.config.loading import validate
    from flowfactory.data.cache_folder import CacheFolder
    from flowfactory.data.encode_cache import EncodeCache
    from flowfactory.data.prompts import read_prompts

    config, folder = validate(json.loads(path.read_text())), CacheFolder.from_environment()
    prompts, canvas = read_prompts(config.prompts.train), config.sampling.canvas
    cache = EncodeCache(
        lambda some, _: [{"length": torch.tensor(float(prompt.index))} for prompt in some], "two-parameter", folder
    )
    cache.prepare(prompts[:FEW], canvas)  # which are compared when a run starts
    entry = folder.entries()[0].path
    for start in range(0, len(prompts), LINKS):
        shutil.copyfile(entry, source := path.with_name(f"{start}"))
        for prompt in prompts[start : start + LINKS]:
            key = cache.key(prompt, canvas)
            (folder.path / key[:2]).mkdir(exist_ok=True)
            with suppress(FileExistsError):
                os.link(source, folder.path / key[:2] / f"{key}.safetensors")


def measured(path: Path) -> dict[str, Any]:
    """A start in a process of its own."""
    command = [sys.executable, __file__, "--start", str(path)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many = write_config(folder / "few", FEW), write_config(folder / "many", arguments.prompts)
        os.environ["FLOWFACTORY_CACHE"] = str(folder / "cache")
        fill(many)  # whose first prompts are the few
        write_config(folder / "warm", FEW)
        measured(few)  # which encodes those of the folder that it imports with
        rounds = [{"few": measured(few), "many": measured(many)} for _ in range(arguments.rounds)]
    result = {
        "prompts": {"few": FEW, "many": arguments.prompts},
        **{f"{key}_more": round(median(one["many"][key] - one["few"][key] for one in rounds), 3) for key in rounds[0]["few"]},
        "rounds": rounds,
        "machine": machine(),
        "versions": versions(),
    }
    write_results(arguments.out / "prompts_scale.json", result)
    print("| | " + " | ".join(rounds[0]["few"]) + " |\n|---|" + "---|" * len(rounds[0]["few"]))
    rows = [(kind, one[kind]) for one in rounds for kind in ("few", "many")]
    for kind, found in rows:
        print(f"| {kind} | " + " | ".join(map(str, found.values())) + " |")


if __name__ == "__main__":
    main()
