"""The memory that an export takes, beside the largest file that it writes, as JSON.

    python benchmarks/export.py [--out benchmarks/results] [--gigabytes 0.6]

A checkpoint of one transformer in float32, with moments, is made of random numbers, and its weights are exported in bf16 in
files of at most 64 MB. What counts is the peak of anonymous memory of a process that exports it, over what it has once
everything is imported; that of a checkpoint of a tenth of the size is there to tell what does not grow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from report import argument_parser, machine, write_results

SHARD_SIZE, WIDTH = 64_000_000, 2048


def make(folder: Path, layers: int) -> None:
    """Write a checkpoint of ``layers`` matrices, with moments that an export has no use for."""
    import torch

    from flowfactory.runs.checkpoints.manifest import Manifest
    from flowfactory.runs.checkpoints.shards import own_rows, write_shard

    def numbers(ending: str) -> dict[str, Any]:
        return {ending.format(layer): torch.randn(WIDTH, WIDTH) for layer in range(layers)}

    folder.mkdir(parents=True)
    roles = {"weights": ["present/transformer.{}.weight"], "training": ["optimizer/transformer.{}.weight/exp_avg"]}
    files = {}
    for role, names in roles.items():
        file = f"checkpoint-{role}-0.safetensors"
        files[file] = write_shard(folder / file, own_rows({k: v for name in names for k, v in numbers(name).items()}))
    Manifest(1, 1, 1, {}, files, {"transformer": None}).write(folder)


def anonymous() -> int:
    """Bytes of memory of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def measure(folder: Path, out: Path) -> None:
    """Export the checkpoint in ``folder``, and print the figures."""
    import torch

    from flowfactory.runs.checkpoints import lookup
    from flowfactory.runs.checkpoints.stored_modules import read_modules
    from flowfactory.runs.export.weights import write_whole

    torch.set_num_threads(1)
    torch.ones(2).to(torch.bfloat16)
    before, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    (module,) = read_modules(lookup.find(folder.parent, roles=["weights"]))
    files = write_whole(module, out, torch.bfloat16, (), SHARD_SIZE)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    largest = max((out / file).stat().st_size for file in files)
    figures = {"files": len(files), "largest_file": largest, "peak": max(0, peak - before), "seconds": round(seconds, 2)}
    print(json.dumps(figures))


def in_process(layers: int) -> dict[str, Any]:
    """The figures of an export in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints/000001"
        make(folder, layers)
        command = [sys.executable, __file__, "--measure", str(folder), name]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.6, help="of the weights in the checkpoint")
    arguments = parser.parse_args()
    tensor = 4 * WIDTH**2
    layers = round(arguments.gigabytes * 1e9 / tensor)
    found = {name: in_process(count) for name, count in (("whole", layers), ("small", max(2, layers // 10)))}
    bound = 1.3 * found["whole"]["largest_file"] + tensor
    result = {
        "machine": machine(),
        "tensor": tensor,
        "weights": {"whole": layers * tensor, "small": max(2, layers // 10) * tensor},
        **found,
        "bound": round(bound),
        "peak_by_bound": round(found["whole"]["peak"] / bound, 3),
    }
    print(write_results(arguments.out / "export.json", result), end="")


if __name__ == "__main__":
    main()
