"""Every algorithm on the embedded generator within one budget of transformer forwards: held-out score before and after.

    python benchmarks/learning.py [--seeds 1 2 3] [--forwards 50000] [--workers 2] [--only grpo nft …] [--out FOLDER]

Each runs its bundled example for as many iterations as the budget allows, one thread a run. A forward is one picture through
the transformer once, differentiable or not; evaluation does not count. The held-out strict score is of 4 pictures for each of
240 prompts, with noise that does not change. Writes learning.json, and in docs/algorithms learning.inc, the table, and
learning.svg: training reward by forwards, a curve an algorithm, the mean of its seeds. Runs that are in learning.json already
are not run again.
"""

import json
import math
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from report import argument_parser, machine

ALGORITHMS = ("grpo", "grpo-guard", "dppo", "nft", "awm", "dpo", "dgpo", "crd")
MEMBERS = 4
PAGES = Path(__file__).parents[1] / "docs" / "algorithms"
SCORE = "eval/strict/mean"
COLOURS = ("#2563eb", "#7c3aed", "#0891b2", "#dc2626", "#ea580c", "#65a30d", "#111827", "#db2777")


def run(name: str, seed: int, forwards: int) -> dict[str, Any]:
    """One training, and what it took."""
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

    # averages differ from the present weights from the third iteration on, which takes what every further one does; two groups
    # take their share of it
    groups = loading.load(name).sampling.groups
    _, counted = trained(3, "prompts.heldout=null", "sampling.groups=2")
    each = _forwards(counted.iterations[3]) * groups // 2
    started = time.perf_counter()
    records, counted = trained(forwards // each)
    evaluated = [record for record in records if SCORE in record]
    total, curve = 0, []
    for record, taken in zip(records, counted.iterations, strict=True):
        total += _forwards(taken)
        if record["iteration"]:
            curve.append([total, round(record["reward/scene/mean"], 4)])
    return {
        "algorithm": name,
        "seed": seed,
        "iterations": forwards // each,
        "forwards": total,
        "seconds": round(time.perf_counter() - started, 1),
        "pictures": 240 * MEMBERS,
        "before": evaluated[0][SCORE],
        "after": evaluated[-1][SCORE],
        "reward": curve,
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
            pictures = sum(r["pictures"] for r in mine)
            # as if the pictures before and after were drawn from other noise, which understates it
            error = math.sqrt((before * (1 - before) + after * (1 - after)) / pictures)
            gains = [100 * (r["after"] - r["before"]) for r in mine]
            rows.append(
                {
                    "algorithm": name,
                    "before": round(100 * before, 1),
                    "after": round(100 * after, 1),
                    "gains": [round(gain, 1) for gain in gains],
                    "gain": round(mean(gains), 1),
                    "z": round((after - before) / error, 1),
                    "iterations": mine[0]["iterations"],
                    "forwards": round(mean(r["forwards"] for r in mine)),
                    "seconds": round(mean(r["seconds"] for r in mine)),
                }
            )
    return sorted(rows, key=lambda row: -row["gain"])


def table(rows: list[dict[str, Any]]) -> str:
    head = ("algorithm", "before", "after", "gain, mean", "gain, each seed", "z", "iterations", "forwards", "seconds")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        name, gains = row["algorithm"], ", ".join(f"{gain:+.1f}" for gain in row["gains"])
        scores = f"{row['before']} % | {row['after']} % | {row['gain']:+.1f} | {gains}"
        cost = f"{row['iterations']} | {row['forwards']:,} | {row['seconds']}"
        lines.append(f"| [`{name}`]({name}.md) | {scores} | {row['z']} | {cost} |")
    return "\n".join(lines) + "\n"


def curves(runs: list[dict[str, Any]], width: int = 640, height: int = 300) -> str:
    """Training reward, a mean over seeds and five iterations, by forwards."""
    lines = {}
    for name in ALGORITHMS:
        mine = [r["reward"] for r in runs if r["algorithm"] == name]
        if mine:
            points = [(mean(p[0] for p in at), mean(p[1] for p in at)) for at in zip(*mine, strict=False)]
            windows = [points[max(0, i - 4) : i + 1] for i in range(len(points))]
            lines[name] = [(points[i][0], mean(y for _, y in window)) for i, window in enumerate(windows)][4:]
    xs, ys = [x for line in lines.values() for x, _ in line], [y for line in lines.values() for _, y in line]
    left, top, right, bottom = 48, 10, width - 110, height - 34
    low, high = min(ys), max(ys)

    def place(x: float, y: float) -> str:
        return f"{left + (right - left) * x / max(xs):.1f},{bottom - (bottom - top) * (y - low) / (high - low):.1f}"

    drawn = f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='#8888'/>"
    for line, colour in zip(lines.values(), COLOURS, strict=False):
        path = " ".join(place(x, y) for x, y in line)
        drawn += f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.8'/>"
    ends = sorted(zip(lines.items(), COLOURS, strict=False), key=lambda item: -item[0][1][-1][1])
    for i, ((name, _), colour) in enumerate(ends):
        drawn += f"<text x='{right + 8}' y='{top + 14 + 16 * i}' font-size='12' fill='{colour}'>{name}</text>"
    for x, y, anchor, text in (
        (left - 6, top + 8, "end", f"{high:.2f}"),
        (left - 6, bottom, "end", f"{low:.2f}"),
        (right, height - 18, "end", f"{max(xs):,.0f} forwards"),
        (left, height - 4, "start", "mean training reward, over five iterations and all seeds"),
    ):
        drawn += f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-size='11' fill='currentColor'>{text}</text>"
    box = f"viewBox='0 0 {width} {height}' role='img' font-family='sans-serif'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {box}>{drawn}</svg>\n"


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--forwards", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(ALGORITHMS))
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    from flowfactory.runs.versions import versions

    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "learning.json"
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    done = {(r["algorithm"], r["seed"]) for r in runs}
    with ProcessPoolExecutor(arguments.workers) as pool:
        wanted = [(name, seed) for seed in arguments.seeds for name in arguments.only if (name, seed) not in done]
        for future in [pool.submit(run, name, seed, arguments.forwards) for name, seed in wanted]:
            found = future.result()
            print({key: value for key, value in found.items() if key != "reward"}, flush=True)
            runs.append(found)
            rows = summary(runs)
            result = {"forwards": arguments.forwards, "rows": rows, "runs": runs, "machine": machine(), "versions": versions()}
            file.write_text(json.dumps(result) + "\n")
            (PAGES / "learning.inc").write_text(table(rows))
            (PAGES / "learning.svg").write_text(curves(runs))
    print(table(summary(runs)))


if __name__ == "__main__":
    main()
