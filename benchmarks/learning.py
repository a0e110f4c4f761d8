"""Every algorithm on the embedded generator within one budget of transformer forwards: held-out score before and after.

    python benchmarks/learning.py [--seeds 1 2 3] [--forwards 50000] [--workers 2] [--only grpo nft …] [--out FOLDER]

Each runs its bundled example for as many iterations as the budget allows, one thread a run. A forward is one picture through
the transformer once, differentiable or not; evaluation does not count. The held-out strict score is of 4 pictures for each of
240 prompts, with noise that does not change. Writes learning.json, and in docs/algorithms learning.inc, the table, a sentence
for each algorithm's page in measured, and learning.svg: training reward by forwards, a curve an algorithm, the mean of its
seeds. Runs that are in learning.json already are not run again.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

from report import ALONE, SCORE, argument_parser, half_interval, markdown, measured_on, run_apart

ALGORITHMS = ("grpo", "grpo-guard", "dppo", "flash-grpo", "nft", "v-grpo", "awm", "ram", "rvm", "dpo", "dgpo", "crd")
MEMBERS = 4
PAGES = Path(__file__).parents[1] / "docs" / "algorithms"
COLOURS = (
    *("#2563eb", "#7c3aed", "#0891b2", "#dc2626", "#ea580c", "#65a30d"),
    *("#111827", "#db2777", "#a16207", "#0d9488", "#9ca3af", "#f472b6"),
)


def run(name: str, seed: int, forwards: int, evaluations: int = 0) -> dict[str, Any]:
    """One training, and what it took; held-out scores of ``evaluations`` places on the way, beside the first and the last."""
    import torch

    from flowfactory.config import loading
    from flowfactory.runs.train import train
    from flowfactory.testing import ForwardCount

    torch.set_num_threads(1)

    def trained(iterations: int, *options: str) -> tuple[list[dict[str, Any]], ForwardCount]:
        with tempfile.TemporaryDirectory() as folder:
            counted = ForwardCount()
            settings = [f"training.iterations={iterations}", f"seed={seed}", f"evaluation.members={MEMBERS}", *options]
            directory = train(loading.load(name, settings, out=Path(folder) / "run"), observers=[counted], say=lambda _: None)
            return directory.records(), counted

    # averages differ from the present weights from the third iteration on, which takes what every further one does; a group an
    # optimizer step takes its share of it
    groups, few = (loaded := loading.load(name)).sampling.groups, loaded.training.updates
    _, counted = trained(3, "prompts.heldout=null", f"sampling.groups={few}")
    each = _forwards(counted.iterations[3]) * groups // few
    started = time.perf_counter()
    iterations = forwards // each
    every = math.ceil(iterations / (evaluations + 1)) if evaluations else 0
    records, counted = trained(iterations, f"evaluation.every={every}", f"output.checkpoint_every={iterations}")
    total, curve, held_out = 0, list[list[float]](), list[list[float]]()
    for record, taken in zip(records, counted.iterations, strict=True):
        total += _forwards(taken)
        if record["iteration"]:
            curve.append([total, round(record["reward/scene/mean"], 4)])
        if SCORE in record:
            held_out.append([total, record[SCORE]])
    return {
        "algorithm": name,
        "seed": seed,
        "iterations": iterations,
        "forwards": total,
        "seconds": round(time.perf_counter() - started, 1),
        "pictures": 240 * MEMBERS,
        "before": held_out[0][1],
        "after": held_out[-1][1],
        "reward": curve,
        "held_out": held_out,
    }


def _forwards(taken: dict[str, int]) -> int:
    return sum(taken.get(phase, 0) for phase in ("sample", "train", "no_grad"))


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an algorithm, the largest gain first."""
    rows = []
    for name in ALGORITHMS:
        mine = [r for r in runs if r["algorithm"] == name]
        if mine:
            before, after = mean(r["before"] for r in mine), mean(r["after"] for r in mine)
            gains = [100 * (r["after"] - r["before"]) for r in mine]
            rows.append(
                {
                    "algorithm": name,
                    "before": round(100 * before, 1),
                    "after": round(100 * after, 1),
                    "gains": [round(gain, 1) for gain in gains],
                    "gain": round(mean(gains), 1),
                    "interval": round(half_interval(gains), 1) if len(gains) > 1 else None,
                    "iterations": mine[0]["iterations"],
                    "forwards": round(mean(r["forwards"] for r in mine)),
                    "seconds": round(mean(r["seconds"] for r in mine)),
                }
            )
    return sorted(rows, key=lambda row: -row["gain"])


def table(rows: list[dict[str, Any]]) -> str:
    head = ("algorithm", "before", "after", "gain, mean", "gain, each seed", "iterations", "forwards", "seconds")
    cells = []
    for row in rows:
        name, gain = row["algorithm"], f"{row['gain']:+.1f}" + (f" ± {row['interval']}" if row["interval"] else "")
        scores = (f"{row['before']} %", f"{row['after']} %", gain, listed(row["gains"]))
        cells.append((f"[`{name}`]({name}.md)", *scores, row["iterations"], f"{row['forwards']:,}", row["seconds"]))
    return markdown(head, cells)


def listed(gains: list[float]) -> str:
    return ", ".join(f"{gain:+.1f}" for gain in gains)


def sentence(row: dict[str, Any], forwards: int) -> str:
    """What the page of an algorithm says of it."""
    return (
        f"Within {forwards:,} transformer forwards, the bundled example took the held-out score from {row['before']} to\n"
        f"{row['after']} %: {row['gain']:+.1f} points, the mean of {len(row['gains'])} seeds ({listed(row['gains'])}).\n"
        "See [all results, and how they were measured](index.md#what-was-measured).\n"
    )


def mean_curves(runs: list[dict[str, Any]], key: str, over: int) -> dict[str, list[tuple[float, float]]]:
    """{algorithm: [(forwards, value)]}: what the runs have under ``key``, a mean over seeds and ``over`` points."""
    lines = {}
    for name in ALGORITHMS:
        mine = [r[key] for r in runs if r["algorithm"] == name]
        if mine:
            points = [(mean(p[0] for p in at), mean(p[1] for p in at)) for at in zip(*mine, strict=False)]
            windows = [points[max(0, i - over + 1) : i + 1] for i in range(len(points))]
            lines[name] = [(points[i][0], mean(y for _, y in window)) for i, window in enumerate(windows)][over - 1 :]
    return lines


def draw_curves(lines: dict[str, list[tuple[float, float]]], label: str, width: int = 640, height: int = 300) -> str:
    """An SVG of a line for each algorithm, by forwards."""
    xs, ys = [x for line in lines.values() for x, _ in line], [y for line in lines.values() for _, y in line]
    left, top, right, bottom = 48, 10, width - 110, height - 34
    low, high = min(ys), max(ys)

    def place(x: float, y: float) -> str:
        return f"{left + (right - left) * x / max(xs):.1f},{bottom - (bottom - top) * (y - low) / (high - low):.1f}"

    drawn = f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='#8888'/>"
    coloured = list(zip(lines.items(), cycle(COLOURS)))
    for (_, line), colour in coloured:
        path = " ".join(place(x, y) for x, y in line)
        drawn += f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.8'/>"
    for i, ((name, _), colour) in enumerate(sorted(coloured, key=lambda item: -item[0][1][-1][1])):
        drawn += f"<text x='{right + 8}' y='{top + 14 + 16 * i}' font-size='12' fill='{colour}'>{name}</text>"
    for x, y, anchor, text in (
        (left - 6, top + 8, "end", f"{high:.2f}"),
        (left - 6, bottom, "end", f"{low:.2f}"),
        (right, height - 18, "end", f"{max(xs):,.0f} forwards"),
        (left, height - 4, "start", label),
    ):
        drawn += f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-size='11' fill='currentColor'>{text}</text>"
    box = f"viewBox='0 0 {width} {height}' role='img' font-family='sans-serif'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {box}>{ALONE}{drawn}</svg>\n"


def collect(
    file: Path, seeds: list[int], names: list[str], workers: int, forwards: int, evaluations: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """The runs in ``file`` with each further one, which is written there as it ends; those that are there are not run again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    done = {(r["algorithm"], r["seed"]) for r in runs}
    wanted = [(name, seed, forwards, evaluations) for seed in seeds for name in names if (name, seed) not in done]
    for found in run_apart(run, wanted, workers):
        print({key: value for key, value in found.items() if key not in ("reward", "held_out")}, flush=True)
        runs.append(found)
        runs.sort(key=lambda r: (r["algorithm"], r["seed"]))
        result = {"forwards": forwards, "rows": summary(runs), "runs": runs, **measured_on()}
        file.write_text(json.dumps(result) + "\n")
        yield runs
    yield runs


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--forwards", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(ALGORITHMS))
    chosen = parser.parse_args()
    file = chosen.out / "learning.json"
    for runs in collect(file, chosen.seeds, chosen.only, chosen.workers, chosen.forwards):
        rows = summary(runs)
        (PAGES / "learning.inc").write_text(table(rows))
        for row in rows:
            (PAGES / "measured" / f"{row['algorithm']}.inc").write_text(sentence(row, chosen.forwards))
        reward = "mean training reward, over five iterations and all seeds"
        (PAGES / "learning.svg").write_text(draw_curves(mean_curves(runs, "reward", over=5), reward))
    print(table(summary(runs)))


if __name__ == "__main__":
    main()
