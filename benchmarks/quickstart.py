"""Three seeds of `flowfactory run quickstart`: held-out strict score before and after, as JSON, with the curve.

    python benchmarks/quickstart.py [--example quickstart] [--seeds 1 2 3] [--out benchmarks/results] [-- --set a.b=value …]

Writes quickstart.json and quickstart.svg (training reward by iteration, a line a seed), and in docs quickstart.inc, a table,
and quickstart.svg, some of the first seed's held-out pictures before and after; of another example under its name. Prints the
JSON.
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

from line_chart import chart
from report import SCORE, argument_parser, draw_sheet, machine, markdown, write_results

from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.versions import versions

PAGES = Path(__file__).parents[1] / "docs"
PICTURES = 8


def run(example: str, seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    out = folder / str(seed)
    command = [sys.executable, "-m", "flowfactory", "run", example, "--set", f"seed={seed}", "--out", str(out), *options]
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


def table(runs: list[dict[str, Any]]) -> str:
    """The runs, and their mean, as Markdown."""
    whole = {"seed": "mean"} | {key: mean(r[key] for r in runs) for key in ("before", "after", "points")}
    rows = [
        (r["seed"], f"{100 * r['before']:.1f}", f"{100 * r['after']:.1f}", f"{r['points']:+.1f}", r.get("seconds", ""))
        for r in [*({**r, "seconds": round(r["seconds"])} for r in runs), whole]
    ]
    return markdown(("seed", "before", "after", "points", "seconds in total"), rows)


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--example", default="quickstart")
    arguments, options = parser.parse_known_args()
    options, example = [option for option in options if option != "--"], arguments.example
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(example, seed, Path(folder), options) for seed in arguments.seeds]
        first = sorted((Path(folder) / str(arguments.seeds[0]) / "samples").glob("[0-9]*"))
        draw_sheet({"before": first[0], "after": first[-1]}, PICTURES, PAGES / f"{example}.svg")
    result = {
        "command": " ".join([f"flowfactory run {example}", "--set seed=N", *options]),
        "mean_before": round(mean(r["before"] for r in runs), 4),
        "mean_after": round(mean(r["after"] for r in runs), 4),
        "mean_points": round(mean(r["points"] for r in runs), 2),
        "runs": runs,
        "machine": machine(),
        "versions": versions(),
    }
    write_results(arguments.out / f"{example}.json", result)
    (arguments.out / f"{example}.svg").write_text(chart(*([(x, y) for x, y in r["reward"]] for r in runs)) + "\n")
    (PAGES / f"{example}.inc").write_text(table(runs))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
