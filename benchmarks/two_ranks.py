"""One rank and two on the same work: CPU seconds an image, and bytes that are exchanged, as JSON.

    python benchmarks/two_ranks.py [--out benchmarks/results]

Two iterations after a first one, of GRPO with adapters and with all weights, on the transformer of overhead.py. Seconds are
of all ranks' CPUs, one thread each. Bytes are what a rank receives in the collectives of an iteration, against what the
mathematics needs: half of the weights for every forward and every backward, half of the gradient for every backward when they
are divided over two ranks; the gradient once a step when they are not. Writes two_ranks.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from overhead import SDE, checkpoint, settings
from report import argument_parser, machine, write_results
from torch.utils._python_dispatch import TorchDispatchMode

from flowfactory.config import loading
from flowfactory.distributed.process_group import join_process_group
from flowfactory.distributed.sharding import full_tensor
from flowfactory.runs.versions import versions
from flowfactory.training.iteration import iterate
from flowfactory.training.setup import prepare_run

ITERATIONS = 2
CASES = {
    "lora, sharded": ({"lora": {"rank": 8}}, "auto"),
    "lora, replicated": ({"lora": {"rank": 8}}, 1),
    "full, sharded": ("full", "auto"),
    "full, replicated": ("full", 1),
}


class Received(TorchDispatchMode):
    """Bytes that this rank's collectives bring it from others, by the collective."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.bytes: dict[str, float] = {}
        self._others = (ranks - 1) / ranks

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::").strip("_")
            # of two ranks: half of what is gathered, exchanged or scattered comes from the other; a sum is both of these
            factor = {"_allgather_base": 1, "_reduce_scatter_base": 1, "alltoall_base": 1, "allreduce": 2}
            least = {key.strip("_"): value for key, value in factor.items()}.get(name)
            tensors = [a for given in arguments for a in (given if isinstance(given, list) else [given])]
            sizes = [t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)]
            if least and sizes:
                self.bytes[name] = self.bytes.get(name, 0) + least * self._others * max(sizes)
        return function(*arguments, **(options or {}))


def work(raw: dict[str, Any]) -> dict[str, Any]:
    """What this rank's part of the iterations takes."""
    torch.set_num_threads(1)
    chosen = loading.validate(raw)
    with join_process_group(chosen) as ranks:
        run = prepare_run(chosen, ranks=ranks)
        run.assembly.hooks.run_started(run.info, run.policy)
        iterate(run, 0)
        forwards = {True: 0, False: 0}
        transformer = run.policy.modules["transformer"]

        def count(*_: object) -> None:
            forwards[torch.is_grad_enabled()] += 1

        transformer.register_forward_pre_hook(count)
        started, received = time.process_time(), Received(ranks.count)
        with received:
            for number in range(1, ITERATIONS + 1):
                iterate(run, number)
        seconds = sum(ranks.gather(time.process_time() - started))
        weights = sum(full_tensor(p.detach()).numel() * p.element_size() for p in transformer.parameters())
        trained = sum(p.numel() * p.element_size() for p in run.policy.parameters.values())
        images = ITERATIONS * chosen.sampling.groups * chosen.sampling.group_size
        found: dict[str, Any] = {"cpu_seconds_per_image": seconds / images}
        if ranks.count > 1:
            gathered = (forwards[False] + 2 * forwards[True]) * weights / 2 if ranks.mesh is not None else 0
            reduced = forwards[True] * trained / 2 if ranks.mesh is not None else ITERATIONS * trained
            total = sum(received.bytes.values())
            found |= {"received": received.bytes, "of_what_is_needed": total / (gathered + reduced)}
            found["received_per_iteration"] = total / ITERATIONS
        return found


def measured(raw: dict[str, Any], ranks: int, folder: Path) -> dict[str, Any]:
    (folder / "work.json").write_text(json.dumps(raw))
    command = [str(Path(__file__)), "--work", str(folder / "work.json")]
    group = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    subprocess.run([sys.executable, *(group if ranks > 1 else []), *command], check=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        found = work(json.loads(arguments.work.read_text()))
        if os.environ.get("RANK", "0") == "0":
            (arguments.work.parent / "found.json").write_text(json.dumps(found))
        return
    rows = {}
    with checkpoint() as path:
        folder = path.parent
        for name, (training, shard) in CASES.items():
            raw = settings(path, folder, {"name": "grpo"}, SDE)
            raw["model"]["train"], raw["distributed"] = training, {"shard": shard}
            one, two = (measured(raw, ranks, folder) for ranks in (1, 2))
            ratio = two["cpu_seconds_per_image"] / one["cpu_seconds_per_image"]
            rows[name] = {"cpu_seconds_two_to_one": ratio, "one": one, "two": two}
            print(f"{name:<17} CPU seconds {ratio:.2f} of one rank's; bytes {two['of_what_is_needed']:.2f} of what is needed")
    result = {"rows": rows, "machine": machine(), "versions": versions()}
    write_results(arguments.out / "two_ranks.json", result)


if __name__ == "__main__":
    main()
