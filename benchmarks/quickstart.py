"""Three seeds of `flowfactory run quickstart`: held-out strict score before and after, as JSON, with the curve.

    python benchmarks/quickstart.py [--seeds 1 2 3] [--out benchmarks/results] [-- --set a.b=value …]

Writes quickstart.json and quickstart.svg (training reward by iteration, a line a seed) and prints the JSON.
Scores are absolute; seconds are of this machine and say nothing about another.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from report import argument_parser, machine, write_results

from flowfactory.runs.charts import chart
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.versions import versions

SCORE = "eval/strict/mean"


def run(seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    out = folder / str(seed)
    command = [sys.executable, "-m", "flowfactory", "run", "quickstart", "--set", f"seed={seed}", "--out", str(out), *options]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - started
    records = RunDirectory(out).records()
    evaluated = [record for record in records if SCORE in record]
    before, after = evaluated[0][SCORE], evaluated[-1][SCORE]
    return {
        "seed": seed,
        "before": before,
        "after": after,
        "points": round(100 * (after - before), 2),
        "seconds": round(seconds, 1),
        "evaluations": [[record["iteration"], record[SCORE]] for record in evaluated],
        "reward": [[record["iteration"], round(record["reward/scene/mean"], 4)] for record in records if record["iteration"]],
    }


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    arguments, options = parser.parse_known_args()
    options = [option for option in options if option != "--"]
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder), options) for seed in arguments.seeds]
    result = {
        "command": " ".join(["flowfactory run quickstart", "--set seed=N", *options]),
        "mean_before": round(mean(r["before"] for r in runs), 4),
        "mean_after": round(mean(r["after"] for r in runs), 4),
        "mean_points": round(mean(r["points"] for r in runs), 2),
        "runs": runs,
        "machine": machine(),
        "versions": versions(),
    }
    write_results(arguments.out / "quickstart.json", result)
    (arguments.out / "quickstart.svg").write_text(chart(*([(x, y) for x, y in r["reward"]] for r in runs)) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
