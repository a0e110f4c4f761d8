"""How the work of a run grows with samples, groups, recorded tensors, prompts and iterations, as JSON.

    python benchmarks/scaling.py [--out benchmarks/results] [--rounds 3]

On the two-parameter model, whose own work is next to nothing: what is left is the run's. Sizes double three times. A slope is
the power of the size by which the work grows, less what it takes at any size: 1 is work in proportion, 2 would be with the
square. Calls of functions and elements of tensors are counted, and do not depend on the machine; CPU seconds are the least of
several rounds, in which the sizes take turns. Writes scaling.json.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "tests" / "shared"))

import growing_work
import torch
from report import argument_parser, machine, write_results

from flowfactory.runs.versions import versions

DOUBLINGS = 3


def seconds(act: Callable[[], object]) -> float:
    """CPU seconds of ``act``."""
    started = time.process_time()
    act()
    return time.process_time() - started


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["FLOWFACTORY_CACHE"] = str(root / "cache")
        for what, (case, smallest) in growing_work.CASES.items():
            sizes = [smallest * 2**i for i in range(DOUBLINGS + 1)]
            case(root / what / "warm", smallest, seconds)
            counted = [case(root / what / f"{size}", size, growing_work.count_work) for size in sizes]
            rounds = [
                [case(root / what / f"{size}-{number}", size, seconds) for size in sizes] for number in range(arguments.rounds)
            ]
            least = [min(same) for same in zip(*rounds, strict=True)]
            work = {"calls": [w.calls for w in counted], "elements": [w.elements for w in counted], "cpu_seconds": least}
            slopes = {kind: growing_work.slope(sizes, figures) for kind, figures in work.items()}
            rows[what] = {"sizes": sizes, **work, "slopes": slopes}
            print(f"{what:<13}" + "  ".join(f"{kind} {power:.2f}" for kind, power in slopes.items()))
    write_results(arguments.out / "scaling.json", {"rows": rows, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
