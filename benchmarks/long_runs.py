"""Every algorithm for 8 times the quickstart's forwards: how the held-out score goes on, and whether it falls again.

    python benchmarks/long_runs.py [--seeds 1 2 3] [--workers 2] [--only grpo nft …] [--times 8] [--out FOLDER]

As learning.py, of which it is the longer: each runs its bundled example, one thread a run, and is evaluated on the way with 4
pictures for each of 240 held-out prompts and noise that does not change. Writes long_runs.json, and in docs/algorithms
long_runs.inc, the table, and long_runs.svg: held-out score by forwards, a curve an algorithm, the mean of its seeds. Runs that
are in long_runs.json already are not run again, so that it can be stopped and begun again.
"""

import math
from statistics import mean
from typing import Any

import learning
from report import argument_parser, markdown

from flowfactory.config import loading

EVALUATIONS = 11


def quickstart_forwards() -> int:
    """What the quickstart draws and learns with, in forwards: drawing, training, and the old policy."""
    config = loading.load("quickstart")
    sampling, times = config.sampling, config.algorithm.timesteps.count  # type: ignore[attr-defined]
    return config.training.iterations * sampling.groups * sampling.group_size * (sampling.steps + 2 * times)


def interval(score: float, pictures: int) -> float:
    """Half the 95 % interval of a share of ``pictures``, in points."""
    return 196 * math.sqrt(score * (1 - score) / pictures)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an algorithm, the best end first; ``kept`` is the least, over seeds, of the end in its best evaluation."""
    rows = []
    for name in learning.ALGORITHMS:
        mine = [r for r in runs if r["algorithm"] == name]
        if mine:
            ends = [r["after"] for r in mine]
            best = [max(score for _, score in r["held_out"]) for r in mine]
            rows.append(
                {
                    "algorithm": name,
                    "before": mean(r["before"] for r in mine),
                    "after": mean(ends),
                    "interval": interval(mean(ends), sum(r["pictures"] for r in mine)),
                    "ends": ends,
                    "best": best,
                    "kept": min(end / top for end, top in zip(ends, best, strict=True)),
                    "iterations": mine[0]["iterations"],
                    "forwards": round(mean(r["forwards"] for r in mine)),
                }
            )
    return sorted(rows, key=lambda row: -row["after"])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ("algorithm", "before", "after", "each seed", "best on the way, each seed", "least end / best", "forwards")
    cells = []
    for row in rows:
        name = row["algorithm"]
        ends, best = (", ".join(f"{100 * score:.1f}" for score in row[key]) for key in ("ends", "best"))
        scores = (f"{100 * row['before']:.1f} %", f"{100 * row['after']:.1f} ± {row['interval']:.1f} %", ends, best)
        cells.append((f"[`{name}`]({name}.md)", *scores, f"{100 * row['kept']:.0f} %", f"{row['forwards']:,}"))
    return markdown(head, cells)


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(learning.ALGORITHMS))
    parser.add_argument("--times", type=float, default=8, help="the quickstart's forwards")
    chosen = parser.parse_args()
    forwards = round(chosen.times * quickstart_forwards())
    file = chosen.out / "long_runs.json"
    for runs in learning.collect(file, chosen.seeds, chosen.only, chosen.workers, forwards, EVALUATIONS):
        (learning.PAGES / "long_runs.inc").write_text(table(summary(runs)))
        curves = learning.mean_curves(runs, "held_out", over=1)
        (learning.PAGES / "long_runs.svg").write_text(learning.draw_curves(curves, "held-out strict, mean of all seeds"))
    print(table(summary(runs)))


if __name__ == "__main__":
    main()
